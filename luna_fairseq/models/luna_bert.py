"""The Luna masked-LM model: ``--arch luna_bert`` and its six sizes (paper, section 4.3)."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple, cast

from fairseq import utils
from fairseq.dataclass import ChoiceEnum
from fairseq.models.roberta.model import RobertaEncoder, RobertaModel
from fairseq.modules.transformer_sentence_encoder import init_bert_params
from torch import Tensor, nn

from luna_fairseq.checkpoint import check_position_bias, check_shapes, check_tied_kv, translate_published_names
from luna_fairseq.errors import CheckpointMismatch
from luna_fairseq.models._config import (
    LunaOptions,
    add_options,
    check_at_least,
    check_position_bias_options,
    check_probabilities,
    check_refused,
    check_stack,
    flat_encoder_config,
    namespace,
    nested_config,
    register_architectures,
)
from luna_fairseq.models._hub import LunaHubInterface, StrPath, load_for_hub
from luna_fairseq.models.luna import LunaEncoder, source_padding
from luna_fairseq.modules.heads import HEADS, FirstTokenHead
from luna_fairseq.modules.packed_input import BERT_STD

_EncoderOptions: Any = flat_encoder_config(
    encoder_embed_dim=768,
    encoder_ffn_embed_dim=3072,
    encoder_layers=12,
    encoder_attention_heads=12,
    activation_fn="gelu",
    dropout=0.1,
    attention_dropout=0.1,
)


@dataclass
class LunaBertConfig(LunaOptions, _EncoderOptions):
    """Options of the masked-LM model; the defaults are those of ``luna_base_512``, the size of RoBERTa-base."""

    projection_length: int = field(
        default=128, metadata={"help": "length l of the packed sequence P (projection length), at least 1"}
    )
    pooler_activation_fn: ChoiceEnum(utils.get_available_activation_fns()) = field(  # type: ignore[valid-type]
        default="tanh", metadata={"help": "activation function of the classification heads"}
    )
    pooler_dropout: float = field(default=0.0, metadata={"help": "dropout probability in the classification heads"})
    max_positions: int = field(default=512, metadata={"help": "number of positional embeddings to learn"})
    untie_weights_luna: bool = field(
        default=False, metadata={"help": "an output matrix of its own (default: the token embeddings)"}
    )
    untie_weights_roberta: bool = field(default=False, metadata={"help": "the same, as fairseq's RoBERTa calls it"})
    layernorm_embedding: bool = field(
        default=False, metadata={"help": "the norm of the embeddings, which RoBERTa can do without: always there"}
    )
    spectral_norm_classification_head: bool = field(
        default=False, metadata={"help": "spectral normalisation of the classification heads' last matrix"}
    )
    mha_reg_scale_factor: float = field(default=0.0, metadata={"help": "refused: it prunes softmax attention"})
    ffn_reg_scale_factor: float = field(default=0.0, metadata={"help": "refused: nothing prunes Luna's layers by it"})
    mha_heads_to_keep: int = field(default=-1, metadata={"help": "refused: it prunes softmax attention"})
    ffn_blocks_to_remove: int = field(default=-1, metadata={"help": "refused: nothing prunes Luna's layers by it"})
    load_checkpoint_heads: bool = field(
        default=False, metadata={"help": "register and load the classification heads that a checkpoint holds"}
    )


# Options of fairseq's RoBERTa that have no meaning here: field -> why. Giving one is an error.
REFUSED: Dict[str, str] = {
    "mha_reg_scale_factor": "it prunes the heads of softmax attention",
    "ffn_reg_scale_factor": "fairseq prunes layers of its own by it",
    "mha_heads_to_keep": "it prunes the heads of softmax attention",
    "ffn_blocks_to_remove": "fairseq prunes layers of its own by it",
}


class LunaBertEncoder(RobertaEncoder):
    """fairseq's RoBERTa encoder (body and LM head) with Luna's encoder as its body.

    Args:
        args: a Namespace of options.
        dictionary: of the tokens, ``<mask>`` included.
    """

    if TYPE_CHECKING:  # torch.jit reads annotations, and knows no types of modules
        sentence_encoder: LunaEncoder

    def build_encoder(self, args: Any, dictionary: Any, embed_tokens: nn.Embedding) -> LunaEncoder:
        return LunaEncoder(nested_config(args), dictionary, embed_tokens)

    def extract_features(
        self, src_tokens: Tensor, return_all_hiddens: bool = False, **kwargs: Any
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """States of the last layer.

        Args:
            src_tokens: ``[B, N]`` int64, padded on either side.
            return_all_hiddens: also return the input of the first layer and the output of each.
            kwargs: ``token_embeddings`` ``[B, N, D]``, to use instead of a look-up.

        Returns:
            ``[B, N, D]``, and a dictionary: ``inner_states`` (list of ``[N, B, D]``, or None);
            ``packed_features`` ``[B, L, D]``; ``padding_mask`` ``[B, N]`` and ``packed_padding_mask``
            ``[B, L]`` (True = padding), or None when nothing is padded.
        """
        out = self.sentence_encoder(
            src_tokens,
            return_all_hiddens=return_all_hiddens,
            token_embeddings=kwargs.get("token_embeddings"),
        )
        extra = {
            "packed_features": out["packed_out"][0],
            "padding_mask": source_padding(out),
            "packed_padding_mask": out["packed_padding_mask"][0] if out["packed_padding_mask"] else None,
            "inner_states": out["encoder_states"] if return_all_hiddens else None,
        }
        return out["encoder_out"][0].transpose(0, 1), extra


class LunaBertModel(RobertaModel):
    """Luna with a masked-LM head, and classification heads (paper, section 4.3); used like fairseq's RoBERTa.

    The seven architectures work with fairseq's tasks ``masked_lm``, ``sentence_prediction``,
    ``sentence_ranking`` and ``multilingual_masked_lm``.
    """

    if TYPE_CHECKING:
        encoder: LunaBertEncoder
        classification_heads: nn.ModuleDict
    fresh_heads: Dict[str, str] = {}  # after loading: head without weights of the checkpoint -> why

    def __init__(self, args: Any, encoder: LunaBertEncoder) -> None:
        super().__init__(args, encoder)  # BERT initialisation of every Linear and Embedding
        encoder.sentence_encoder.packed_input.init_like_bert()
        if args.untie_weights_luna:  # a bare parameter
            nn.init.normal_(encoder.lm_head.weight, std=BERT_STD)
        self._packed_is_read(False)

    def _packed_is_read(self, value: bool) -> None:
        """Say whether anything reads P after the last layer.

        If nothing does, its last norm gets no gradient. It is kept for the heads and for checkpoints, and
        frozen: DistributedDataParallel then needs no ``--find-unused-parameters``.
        """
        for parameter in self.encoder.sentence_encoder.last_packed_norm().parameters():
            parameter.requires_grad_(value)

    @classmethod
    def add_args(cls, parser: Any) -> None:
        add_options(parser, LunaBertConfig)
        # Tasks read it too, and have no or another default.
        config = getattr(cls, "__dataclass", LunaBertConfig)  # set by register_model
        parser.set_defaults(max_positions=config.max_positions)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "LunaBertModel":
        args = namespace(cfg, task)
        _check_bert_config(args, task)
        args.untie_weights_roberta = args.untie_weights_luna = args.untie_weights_luna or args.untie_weights_roberta
        args.max_source_positions = args.max_positions
        args.encoder_learned_pos = args.layernorm_embedding = args.no_scale_embedding = True
        args.encoder_projected_attention_heads = args.encoder_attention_heads
        args.word_dropout = 0.0
        args.encoder_layers_to_keep = args.encoder_layers_to_keep or None
        return cls(args, LunaBertEncoder(args, task.source_dictionary))

    def forward(
        self,
        src_tokens: Tensor,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        classification_head_name: Optional[str] = None,
        **kwargs: Any,
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """Logits over the dictionary, features, or scores of classes.

        Args:
            src_tokens: ``[B, N]`` int64, padded on either side.
            features_only: return features instead of logits.
            return_all_hiddens: see :meth:`LunaBertEncoder.extract_features`.
            classification_head_name: return the scores of this head.
            kwargs: ``masked_tokens``, ``[B, N]`` bool: project only these positions to the vocabulary.

        Returns:
            ``[B, N, V]``, or ``[positions, V]`` with ``masked_tokens``; ``[B, N, D]`` with ``features_only``;
            ``[B, num_classes]`` from a head; and the dictionary of :meth:`LunaBertEncoder.extract_features`.

        Raises:
            ValueError: for a head that the model does not have, or more symbols than positions.
        """
        if src_tokens.size(1) > self.max_positions():
            raise ValueError(
                f"an input has {src_tokens.size(1)} symbols and the model {self.max_positions()} positions: "
                "shorten it"
            )
        if classification_head_name is None:
            return self.encoder(src_tokens, features_only, return_all_hiddens, **kwargs)
        if classification_head_name not in self.classification_heads:
            known = ", ".join(self.classification_heads) or "none"
            raise ValueError(f"the model has no head {classification_head_name}, its heads are: {known}")
        x, extra = self.encoder(src_tokens, True, return_all_hiddens, **kwargs)
        head = self.classification_heads[classification_head_name]
        return head(x, extra["packed_features"], extra["padding_mask"], extra["packed_padding_mask"]), extra

    def register_classification_head(
        self, name: str, num_classes: Optional[int] = None, inner_dim: Optional[int] = None, **kwargs: Any
    ) -> None:
        """Add a classification head, or replace the one of this name.

        Args:
            name: ``pooling_classification_head`` and ``attention_classification_head`` read the packed
                sequence; a head of any other name reads the first token.
            num_classes: number of classes, at least 1.
            inner_dim: width of its hidden layer; default D.
            kwargs: not read (fairseq's tasks pass some to other models).

        Raises:
            ValueError: if ``num_classes`` is missing or below 1.
        """
        if num_classes is None or num_classes < 1:
            raise ValueError(f"--num-classes is {num_classes}: head {name} needs at least 1")
        args = self.args
        head = HEADS.get(name, FirstTokenHead)(
            input_dim=args.encoder_embed_dim,
            inner_dim=inner_dim or args.encoder_embed_dim,
            num_classes=num_classes,
            num_heads=args.encoder_attention_heads,
            activation_fn=args.pooler_activation_fn,
            pooler_dropout=args.pooler_dropout,
            q_noise=args.quant_noise_pq,
            qn_block_size=args.quant_noise_pq_block_size,
            do_spectral_norm=args.spectral_norm_classification_head,
        )
        head.apply(init_bert_params)
        self.classification_heads[name] = head
        self._packed_is_read(any(head.reads_packed for head in self.classification_heads.values()))

    def upgrade_state_dict_named(self, state_dict: Dict[str, Any], name: str) -> None:
        translate_published_names(state_dict)
        check_tied_kv(state_dict, self)
        check_position_bias(state_dict, self)
        body = f"{name}." if name else ""
        body += "encoder.sentence_encoder."
        check_shapes(
            state_dict,
            self.encoder.sentence_encoder.state_dict(prefix=body),
            {
                (f"{body}embed_tokens.weight", 1): "--encoder-embed-dim",
                (f"{body}embed_tokens.weight", 0): "the dictionary's number of symbols",
                (f"{body}embed_positions.weight", 0): "--max-positions (and the padding rows: 2)",
                (f"{body}packed_input.embeddings", 0): "--projection-length",
            },
        )
        heads = f"{name}." if name else ""
        heads += "classification_heads."
        saved = {key[len(heads) :].split(".")[0] for key in state_dict if key.startswith(heads)}
        spectral = {head for head in saved if f"{heads}{head}.out_proj.weight_orig" in state_dict}
        for head in spectral:  # fairseq reads the sizes from it
            state_dict[f"{heads}{head}.out_proj.weight"] = state_dict[f"{heads}{head}.out_proj.weight_orig"]
        classes = {head: state_dict[f"{heads}{head}.out_proj.weight"].size(0) for head in saved}
        hidden = {head: state_dict[f"{heads}{head}.dense.weight"] for head in saved}
        super().upgrade_state_dict_named(state_dict, name)
        for head in saved:
            if state_dict.get(f"{heads}{head}.dense.weight") is not hidden[head]:  # not asked for, or of another size
                continue
            if (head in spectral) != hasattr(self.classification_heads[head].out_proj, "weight_orig"):
                what, change = ("", "add") if head in spectral else ("no ", "leave out")
                raise CheckpointMismatch(
                    f"head {head} of the checkpoint has {what}spectral normalisation: {change} "
                    "--spectral-norm-classification-head"
                )
            if head in spectral:
                del state_dict[f"{heads}{head}.out_proj.weight"]
        # fairseq fills in the fresh weights of a head that the checkpoint lacks, or has in another size. That is
        # right for fine-tuning; whoever loads to evaluate looks here.
        self.fresh_heads = {}
        for head, module in self.classification_heads.items():
            own = cast(nn.Linear, module.out_proj).out_features
            if head not in saved:
                known = ", ".join(sorted(saved)) or "none"
                self.fresh_heads[head] = f"it has no head {head}, its heads are: {known}"
            elif classes[head] != own:
                self.fresh_heads[head] = f"its head {head} has {classes[head]} classes and --num-classes is {own}"

    @classmethod
    def hub_models(cls) -> Dict[str, Any]:
        return {}  # the published models must be downloaded by hand: see docs/masked-lm.md

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: StrPath,
        checkpoint_file: StrPath = "model.pt",
        data_name_or_path: StrPath = ".",
        bpe: Optional[str] = None,
        **kwargs: Any,
    ) -> LunaHubInterface:
        """Load a checkpoint, with its heads, for use from Python; in evaluation mode.

        Args:
            model_name_or_path: folder of the checkpoint.
            checkpoint_file: its name there.
            data_name_or_path: folder of ``dict.txt``; one that starts with a dot is looked for from the
                checkpoint's folder.
            bpe: ``sentencepiece`` or ``gpt2``; by default what lies beside ``dict.txt`` decides
                (:func:`luna_fairseq.models._hub.find_pieces`).
            kwargs: other options to override, such as ``sentencepiece_model``.

        Raises:
            FileNotFoundError: if the checkpoint or the dictionary does not exist.
        """
        loaded = load_for_hub(
            model_name_or_path, checkpoint_file, data_name_or_path, bpe=bpe, load_checkpoint_heads=True, **kwargs
        )
        return LunaHubInterface(loaded["args"], loaded["task"], loaded["models"][0]).eval()


def _check_bert_config(args: Any, task: Any) -> None:
    """Refuse what cannot work, before anything is built.

    Raises:
        ValueError: with the option, its value, and what to change.
    """
    check_refused(args, REFUSED)
    check_stack(args, "encoder")
    check_probabilities(args, "pooler_dropout")
    if args.spectral_norm_classification_head and args.quant_noise_pq > 0:
        raise ValueError(
            f"--spectral-norm-classification-head does not go with --quant-noise-pq {args.quant_noise_pq}: leave "
            "one of them out"
        )
    check_at_least(1, args, "max_positions")
    check_position_bias_options(args)
    block = getattr(getattr(task, "cfg", None) or getattr(task, "args", None), "tokens_per_sample", None)
    if block is not None and block > args.max_positions:
        raise ValueError(
            f"--tokens-per-sample is {block} and the model has --max-positions {args.max_positions}: lower the "
            "one or raise the other"
        )


_LARGE = dict(
    encoder_embed_dim=1024, encoder_ffn_embed_dim=4096, encoder_layers=24, encoder_attention_heads=16
)  # of RoBERTa-large
_LONG = dict(projection_length=256, max_positions=2048)  # the published luna_large_2048 forgets the positions

register_architectures(
    LunaBertModel,
    LunaBertConfig,
    {
        "luna_bert": {},
        "luna_base_512": {},
        "luna_base_tied_512": {},
        "luna_base_untied_512": dict(untie_luna_kv=True),
        "luna_base_2048": _LONG,
        "luna_large_512": _LARGE,
        "luna_large_2048": {**_LARGE, **_LONG},
    },
)
