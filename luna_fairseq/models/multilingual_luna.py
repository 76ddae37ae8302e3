"""One Luna model a pair of languages, in parts or as a whole the same: ``--arch multilingual_luna``."""

import argparse
import dataclasses
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any, Dict

from fairseq.models import register_model, register_model_architecture
from fairseq.models.multilingual_transformer import MultilingualTransformerModel
from torch import nn

from luna_fairseq.checkpoint import check_position_bias, check_tied_kv
from luna_fairseq.models._config import LunaConfig, add_options, check_config, namespace, nested_config
from luna_fairseq.models.luna import LunaDecoder, LunaEncoder


@dataclass
class MultilingualLunaConfig(LunaConfig):
    """The options of the translation model, and what the languages have in common."""

    share_encoder_embeddings: bool = field(default=False, metadata={"help": "all source languages share embeddings"})
    share_decoder_embeddings: bool = field(default=False, metadata={"help": "all target languages share embeddings"})
    share_encoders: bool = field(default=False, metadata={"help": "all source languages share an encoder"})
    share_decoders: bool = field(default=False, metadata={"help": "all target languages share a decoder"})


@register_model("multilingual_luna")
class MultilingualLunaModel(MultilingualTransformerModel):
    """For fairseq's tasks ``multilingual_translation`` and ``semisupervised_translation``.

    Both have no dataclass and read their options beside the model's, so the model has none either, and
    ``fairseq-train`` is the only command line.
    """

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        add_options(parser, MultilingualLunaConfig)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "MultilingualLunaModel":
        """A model for each of the task's pairs.

        Raises:
            ValueError: for options that cannot work.
        """
        fill_in(args)
        check_config(args)
        models = super().build_model(args, task).models
        return cls({k: m.encoder for k, m in models.items()}, {k: m.decoder for k, m in models.items()})

    @classmethod
    def _get_module_class(
        cls, is_encoder: bool, args: Any, lang_dict: Any, embed_tokens: nn.Embedding, langs: Any
    ) -> nn.Module:
        return (LunaEncoder if is_encoder else LunaDecoder)(nested_config(args), lang_dict, embed_tokens)

    def upgrade_state_dict_named(self, state_dict: Dict[str, Any], name: str) -> None:
        check_tied_kv(state_dict, self)
        check_position_bias(state_dict, self)
        super().upgrade_state_dict_named(state_dict, name)


@register_model_architecture("multilingual_luna", "multilingual_luna")
def fill_in(args: Namespace) -> None:
    """Give options that were left out their defaults: those of ``luna``."""
    config = MultilingualLunaConfig()
    given = {name: value for name, value in vars(args).items() if value is not None}
    names = [option.name for option in dataclasses.fields(config)]
    whole = namespace(Namespace(**{name: given.get(name, getattr(config, name)) for name in names}))
    for name, value in vars(whole).items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
