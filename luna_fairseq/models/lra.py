"""The Long Range Arena classifier: ``--arch lra`` and its named sizes (paper, section 4.1)."""

import argparse
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Dict, Iterator, Optional, Tuple

import torch
from fairseq import utils
from fairseq.data import Dictionary
from fairseq.dataclass import ChoiceEnum
from fairseq.distributed.utils import get_data_parallel_world_size
from fairseq.models import BaseFairseqModel
from fairseq.models.transformer import Embedding, TransformerEncoderBase
from fairseq.modules.transformer_sentence_encoder import init_bert_params
from torch import Tensor, nn

from luna_fairseq.checkpoint import check_position_bias, check_shapes, check_tied_kv, translate_published_names
from luna_fairseq.errors import CheckpointMismatch
from luna_fairseq.models._config import (
    POSITION_BIAS,
    add_options,
    check_at_least,
    check_position_bias_options,
    check_probabilities,
    check_stack,
    flat_encoder_config,
    namespace,
    nested_config,
    register_architectures,
)
from luna_fairseq.models.luna import LunaEncoder, source_padding
from luna_fairseq.modules.heads import first_state

CLS = "<CLS>"  # the symbol that the task puts in front of a text

# "first" is what the paper's release calls "cls".
SEN_REP_TYPES = ("cls", "mp", "first")

_EncoderOptions: Any = flat_encoder_config(
    without=("encoder_normalize_before", "activation_dropout"),
    encoder_embed_dim=512,
    encoder_ffn_embed_dim=2048,
    encoder_layers=6,
    encoder_attention_heads=8,
    activation_fn="gelu",
    dropout=0.1,
    attention_dropout=0.1,
)


@dataclass
class LRAConfig(_EncoderOptions):
    """Options of the classifier (published names); the defaults are those of arch ``lra``, a Transformer."""

    layer_type: ChoiceEnum(["transformer", "luna"]) = field(  # type: ignore[valid-type]
        default="transformer", metadata={"help": "kind of the encoder's layers"}
    )
    input_type: ChoiceEnum(["text", "image"]) = field(  # type: ignore[valid-type]
        default="text",
        metadata={
            "help": "text: symbols of a dictionary, grey values too; image: pixels as real numbers (lra-image)"
        },
    )
    encoder_projection_length: int = field(
        default=16, metadata={"help": "length l of the packed sequence P (projection length), at least 1"}
    )
    fix_projection_length: bool = field(
        default=False,
        metadata={"help": "use all l rows of P for every document, however short (default: at most its length)"},
    )
    tie_kv: bool = field(
        default=False, metadata={"help": "one matrix for keys and values in pack and unpack (default: two)"}
    )
    packed_position_bias: float = field(default=0.0, metadata={"help": POSITION_BIAS})
    tie_layer_weights: bool = field(default=False, metadata={"help": "one set of weights for all layers"})
    act_dropout: float = field(default=0.0, metadata={"help": "dropout probability after the activation in the FFN"})
    encoder_learned_pos: bool = field(
        default=True, metadata={"help": "learned positions (default), or --no-encoder-learned-pos: sinusoidal"}
    )
    no_token_positional_embeddings: bool = field(default=False, metadata={"help": "no positions at all"})
    max_positions: int = field(
        default=1024, metadata={"help": "longest input in symbols, <CLS> and </s> included; the rest is cut off"}
    )
    apply_bert_init: bool = field(default=True, metadata={"help": "initialise everything as BERT does, N(0, 0.02)"})
    sen_rep_type: ChoiceEnum(SEN_REP_TYPES) = field(  # type: ignore[valid-type]
        default="cls",
        metadata={"help": "what is classified: cls (or first), the first position; mp, a mean over the positions"},
    )
    use_p: bool = field(default=False, metadata={"help": "classify a mean over the packed sequence instead"})
    documents: int = field(
        default=1, metadata={"help": "documents of an example; the states of 2 are put side by side (Retrieval)"}
    )
    sentence_class_num: int = field(default=2, metadata={"help": "number of classes"})
    classifier_layers: int = field(default=1, metadata={"help": "hidden layers of the classifier"})
    classifier_out_dim: int = field(default=2048, metadata={"help": "their width"})
    classifier_activation_fn: ChoiceEnum(utils.get_available_activation_fns()) = field(  # type: ignore[valid-type]
        default="relu", metadata={"help": "their activation function"}
    )


class SharedLayers(nn.ModuleList):
    """One layer, applied several times.

    Args:
        layer: the only one that has weights.
        times: how often an iteration gives it.
        drop: probability with which each of them is left out while training (``--encoder-layerdrop``).
    """

    def __init__(self, layer: nn.Module, times: int, drop: float = 0.0) -> None:
        super().__init__([layer])
        self.times = times
        self.drop = drop

    def __iter__(self) -> Iterator[nn.Module]:
        for layer in repeat(self[0], self.times):
            if not self.training or self.drop == 0.0 or torch.rand(()) > self.drop:
                yield layer


class PixelEmbedding(nn.Linear):
    """A grey value, a real number, as a vector.

    Args:
        embed_dim: D.
    """

    padding_idx = Dictionary().pad()  # read by fairseq's encoder

    def __init__(self, embed_dim: int) -> None:
        super().__init__(1, embed_dim)

    @property
    def embedding_dim(self) -> int:
        """D."""
        return self.out_features

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed ``[B, N]`` of any floating type as ``[B, N, D]``."""
        return super().forward(pixels.to(self.weight).unsqueeze(-1))


class LRAModel(BaseFairseqModel):
    """Classify a long document, two of them, or an image (paper, section 4.1).

    Args:
        args: a Namespace of the options in :class:`LRAConfig`.
        encoder: fairseq's or Luna's encoder.
        cls: index of the symbol ``<CLS>``, or None if the task has no symbols.
    """

    def __init__(self, args: Any, encoder: TransformerEncoderBase, cls: Optional[int]) -> None:
        super().__init__()
        self.args = args
        self.encoder = encoder
        self.cls = cls
        self.classifier_activation = utils.get_activation_fn(args.classifier_activation_fn)
        width = args.classifier_out_dim
        inputs = [args.encoder_embed_dim * args.documents] + [width] * (args.classifier_layers - 1)
        self.classifier = nn.ModuleList(nn.Linear(n, width) for n in inputs)
        self.sentence_projection_layer = nn.Linear(width, args.sentence_class_num, bias=False)
        if args.apply_bert_init:
            self.apply(init_bert_params)
            if isinstance(encoder, LunaEncoder):
                encoder.packed_input.init_like_bert()
        for parameter in self._unread_parameters():
            parameter.requires_grad_(False)

    def _unread_parameters(self) -> Iterator[nn.Parameter]:
        """What the class does not depend on: frozen, so that DDP needs no ``--find-unused-parameters``.

        With several layers of one set of weights, the earlier ones need all of it.
        """
        if not isinstance(self.encoder, LunaEncoder) or (
            self.args.tie_layer_weights and self.args.encoder_layers > 1
        ):
            return
        layer: Any = self.encoder.layers[-1]
        if self.args.use_p:
            packed = {id(parameter) for parameter in layer.packed_parameters()}
            yield from (parameter for parameter in layer.parameters() if id(parameter) not in packed)
        else:
            yield from self.encoder.last_packed_norm().parameters()

    @classmethod
    def add_args(cls, parser: Any) -> None:
        # fairseq makes a flag of what is on by default turn it off, and nothing can turn off what an architecture
        # has turned on.
        for name in ("encoder_learned_pos", "apply_bert_init", "tie_layer_weights"):
            parser.add_argument(
                "--" + name.replace("_", "-"),
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=LRAConfig.__dataclass_fields__[name].metadata["help"],
            )
        add_options(parser, LRAConfig)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "LRAModel":
        args = namespace(cfg, task)
        if args.sen_rep_type == "first":
            args.sen_rep_type = "cls"
        # Other names of the same things.
        args.projection_length = args.encoder_projection_length
        args.untie_luna_kv = not args.tie_kv
        args.activation_dropout = args.act_dropout
        dictionary = task.source_dictionary
        _check_lra_config(args, dictionary)
        args.max_source_positions = args.max_positions
        args.layernorm_embedding = True
        # Sinusoids have amplitude 1, and would drown unscaled embeddings.
        args.no_scale_embedding = args.encoder_learned_pos or args.no_token_positional_embeddings
        args.encoder_normalize_before = False
        args.encoder_projected_attention_heads = args.encoder_attention_heads
        args.word_dropout = 0.0
        args.encoder_layers_to_keep = args.encoder_layers_to_keep or None
        if args.encoder_layers_to_keep:
            args.encoder_layers = len(args.encoder_layers_to_keep.split(","))

        embed_tokens: Any
        if dictionary is None:
            embed_tokens = PixelEmbedding(args.encoder_embed_dim)
        else:
            embed_tokens = Embedding(len(dictionary), args.encoder_embed_dim, dictionary.pad())
        config = nested_config(args)
        if args.tie_layer_weights:
            config.encoder.layers = 1
        encoder_class = LunaEncoder if args.layer_type == "luna" else TransformerEncoderBase
        encoder = encoder_class(config, dictionary, embed_tokens)
        if args.tie_layer_weights:
            encoder.layers = SharedLayers(encoder.layers[0], args.encoder_layers, args.encoder_layerdrop)
        return cls(args, encoder, None if dictionary is None else dictionary.index(CLS))

    def max_positions(self) -> int:
        """The longest input."""
        return self.args.max_positions

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Optional[Tensor] = None,
        src1_tokens: Optional[Tensor] = None,
        src1_lengths: Optional[Tensor] = None,
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """Scores of the classes.

        Args:
            src_tokens: the (first) documents, ``[B, N]`` int64, padded on either side; or images, ``[B, N]`` of
                a floating type, all of one size.
            src_lengths: not read; lengths follow from the padding.
            src1_tokens: the second documents, ``[B, N']``, padded for themselves.
            src1_lengths: not read.

        Returns:
            ``[B, classes]``; and a dictionary: ``sentence_rep`` ``[B, D * documents]``, what is classified.

        Raises:
            ValueError: for more or fewer documents than ``--documents``, or longer ones than the positions.
        """
        longest = max(src_tokens.size(1), 0 if src1_tokens is None else src1_tokens.size(1))
        if longest > self.max_positions():
            raise ValueError(
                f"an input has {longest} symbols and --max-positions is {self.max_positions()}: shorten it"
            )
        documents = 1 if src1_tokens is None else 2
        if documents != self.args.documents:
            raise ValueError(
                f"--documents is {self.args.documents} and an example of the data has {documents}: make them equal "
                "(the aan architectures read 2)"
            )
        sentence_rep = self.represent(src_tokens)
        if src1_tokens is not None:  # the published order
            sentence_rep = torch.cat([self.represent(src1_tokens), sentence_rep], dim=-1)
        x = sentence_rep
        for layer in self.classifier:
            x = self.classifier_activation(layer(x))
        return self.sentence_projection_layer(x), {"sentence_rep": sentence_rep}

    def get_normalized_probs(
        self, net_output: Tuple[Tensor, Any], log_probs: bool, sample: Optional[Dict[str, Any]] = None
    ) -> Tensor:
        """Probabilities of the classes, or their logarithms; read by fairseq's own criteria, such as cross_entropy.

        Args:
            net_output: of :meth:`forward`.
            log_probs: return logarithms.
            sample: not read.

        Returns:
            ``[B, classes]`` float32.
        """
        scores = net_output[0]
        return utils.log_softmax(scores, dim=-1) if log_probs else utils.softmax(scores, dim=-1)

    def represent(self, src_tokens: Tensor) -> Tensor:
        """One vector for each document or image, ``[B, D]``; the argument is that of :meth:`forward`."""
        pad: Any = self.encoder.padding_idx
        embeddings = None
        if src_tokens.is_floating_point():
            embeddings = self.encoder.embed_tokens(src_tokens)
            src_tokens = torch.full_like(src_tokens, pad + 1, dtype=torch.long)  # for the positions: no padding
        elif self.args.use_p and self.args.sen_rep_type == "cls":
            # P needs no <CLS>. As padding it is not there, and the next symbol has its position.
            assert self.cls is not None
            src_tokens = src_tokens.masked_fill(src_tokens.eq(self.cls), pad)
        out = self.encoder(src_tokens, token_embeddings=embeddings)
        if self.args.use_p:
            return _mean(out["packed_out"][0], out["packed_padding_mask"][0] if out["packed_padding_mask"] else None)
        x, mask = out["encoder_out"][0].transpose(0, 1), source_padding(out)
        return _mean(x, mask) if self.args.sen_rep_type == "mp" else first_state(x, mask)

    def upgrade_state_dict_named(self, state_dict: Dict[str, Any], name: str) -> None:
        translate_published_names(state_dict)
        prefix = f"{name}." if name else ""
        own = self.state_dict(prefix=prefix)
        parts = {
            "encoder.packed_input.embeddings": "--layer-type",
            "encoder.embed_tokens.bias": "--input-type",
            "encoder.embed_positions.weight": "--encoder-learned-pos",
        }
        if not self.args.encoder_layers_to_keep:  # fairseq prunes after this
            parts["encoder.layers.1.fc1.weight"] = "--tie-layer-weights or --encoder-layers"
        for part, option in parts.items():
            if (prefix + part in state_dict) != (prefix + part in own):
                raise CheckpointMismatch(
                    f"the checkpoint was trained with another {option}: make it the same here, or choose the "
                    "checkpoint that belongs to it"
                )
        check_tied_kv(state_dict, self, tie="add --tie-kv", untie="leave out --tie-kv")
        check_position_bias(state_dict, self)
        sizes = {
            ("encoder.layernorm_embedding.weight", 0): "--encoder-embed-dim",
            ("encoder.embed_positions.weight", 0): "--max-positions (and the padding rows: 2)",
            ("encoder.packed_input.embeddings", 0): "--encoder-projection-length",
            ("classifier.0.weight", 0): "--classifier-out-dim",
            ("classifier.0.weight", 1): "--encoder-embed-dim times --documents",
            ("sentence_projection_layer.weight", 0): "--sentence-class-num",
        }
        if self.cls is not None:
            sizes["encoder.embed_tokens.weight", 0] = "the dictionary's number of symbols"
        check_shapes(state_dict, own, {(prefix + part, dim): option for (part, dim), option in sizes.items()})
        super().upgrade_state_dict_named(state_dict, name)


def _mean(x: Tensor, padding_mask: Optional[Tensor]) -> Tensor:
    """The mean of ``[B, N, D]`` over the positions that are not masked, summed in float32; 0 if all are."""
    if padding_mask is None:
        return x.mean(dim=1, dtype=torch.float32).to(x)
    real = (~padding_mask).unsqueeze(-1)
    total = x.masked_fill(~real, 0.0).sum(dim=1, dtype=torch.float32)
    return (total / real.sum(dim=1).clamp(min=1)).to(x)


def _check_lra_config(args: Any, dictionary: Optional[Any]) -> None:
    """Refuse what cannot work, before anything is built.

    Raises:
        ValueError: with the option, its value, and what to change.
    """
    check_probabilities(args, "act_dropout")
    check_stack(args, "encoder", length="encoder_projection_length")
    check_at_least(1, args, "max_positions", "classifier_layers", "classifier_out_dim")
    check_at_least(2, args, "sentence_class_num")
    if args.documents not in (1, 2):
        raise ValueError(f"--documents is {args.documents}: an example has 1 or 2")
    if args.encoder_layers_to_keep and args.tie_layer_weights:
        raise ValueError(
            f"--encoder-layers-to-keep is {args.encoder_layers_to_keep}: layers that share their weights are all "
            "the same; give --encoder-layers instead"
        )
    shared = args.documents == 2 or (args.tie_layer_weights and args.encoder_layers > 1)
    if args.checkpoint_activations and shared and get_data_parallel_world_size() > 1:
        raise ValueError(
            "--checkpoint-activations works on one device where layers are used twice (--tie-layer-weights, "
            "--documents 2): leave it out"
        )
    if args.use_p and args.layer_type != "luna":
        raise ValueError(f"--use-p needs --layer-type luna, not {args.layer_type}: others have no packed sequence")
    check_position_bias_options(args)
    if args.packed_position_bias and args.layer_type != "luna":
        raise ValueError(
            f"--packed-position-bias is {args.packed_position_bias:g} and needs --layer-type luna, not "
            f"{args.layer_type}: others have no packed sequence"
        )
    if args.input_type == "image" and args.quant_noise_scalar:
        raise ValueError(
            f"--quant-noise-scalar is {args.quant_noise_scalar}: fairseq cannot quantise the embedding of pixels; "
            "leave it out"
        )
    if args.input_type == "text" and dictionary is None:
        raise ValueError("--input-type is text and the task lra-image reads real numbers: add --input-type image")
    if args.input_type == "image" and dictionary is not None:
        raise ValueError("--input-type is image and the task reads symbols: take --task lra-image, or leave it out")


# What differs from the defaults, for each task of the paper.
_SIZES: Dict[str, Dict[str, Any]] = {
    # Six layers that share their weights.
    "listop": dict(tie_layer_weights=True, max_positions=2002, sentence_class_num=10),
    "imdb": dict(
        encoder_embed_dim=256, encoder_ffn_embed_dim=1024, encoder_layers=4, encoder_attention_heads=4,
        max_positions=4002, classifier_out_dim=1024,
    ),
    "aan": dict(
        encoder_embed_dim=128, encoder_ffn_embed_dim=512, encoder_layers=4, encoder_attention_heads=4,
        max_positions=4002, documents=2, apply_bert_init=False, classifier_out_dim=512,
    ),
    "cifar10": dict(
        encoder_embed_dim=64, encoder_ffn_embed_dim=128, encoder_layers=1, encoder_attention_heads=8,
        sentence_class_num=10, classifier_out_dim=128,
    ),
    "pf32": dict(
        encoder_embed_dim=128, encoder_ffn_embed_dim=128, encoder_layers=1, encoder_attention_heads=4,
        max_positions=1026, sen_rep_type="mp", apply_bert_init=False, classifier_out_dim=256,
    ),
}  # fmt: skip
_LUNA = dict(layer_type="luna")

register_architectures(
    LRAModel,
    LRAConfig,
    {
        "lra": {},
        **{f"transformer_lra_{name}": options for name, options in _SIZES.items()},
        **{f"luna_lra_{name}": {**options, **_LUNA} for name, options in _SIZES.items()},
        "luna_lra_pf128": {**_SIZES["pf32"], **_LUNA, "max_positions": 128 * 128 + 2},
    },
)
