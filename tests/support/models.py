"""What several tests need: tolerances, tiny dictionaries and models, golden files."""

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Optional

import torch
from fairseq.data import Dictionary, data_utils
from torch import Tensor

from luna_fairseq.models.lra import CLS, LRAConfig, LRAModel
from luna_fairseq.models.luna import LunaConfig, LunaModel
from luna_fairseq.models.luna_bert import LunaBertConfig, LunaBertModel
from luna_fairseq.models.luna_lm import LunaLanguageModel, LunaLanguageModelConfig

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
PAD, EOS = 1, 2  # in every dictionary of fairseq


def load_golden(name: str) -> Dict[str, Any]:
    return torch.load(GOLDEN / f"{name}.pt", weights_only=True)


def golden_names(prefix: str) -> List[str]:
    names = sorted(path.stem for path in GOLDEN.glob(f"{prefix}*.pt"))
    assert names, f"no golden file {prefix}*"
    return names


def assert_close(
    got: Tensor, want: Tensor, what: str, rel: float = 1e-5, floor: float = 1.0, mask: Optional[Tensor] = None
) -> None:
    """``|got - want| <= rel * max(floor, max|want|)``, where ``mask`` (if given) is True; never NaN."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    bound = rel * max(floor, want.abs().max().item())
    if mask is not None:
        got, want = got[mask], want[mask]
    assert torch.isfinite(got).all(), f"{what}: not finite"
    error = (got.double() - want.double()).abs().max().item()
    assert error <= bound, f"{what}: off by {error:.3g}, allowed {bound:.3g}"


def assert_grads_close(got: Dict[str, Tensor], want: Dict[str, Tensor]) -> None:
    """The tolerance that the golden files come with: 1e-3 of each gradient, 1e-6 of the largest."""
    largest = max(g.abs().max().item() for g in want.values())
    for name, reference in want.items():
        bound = 1e-3 * reference.abs().max().item() + 1e-6 * largest
        error = (got[name] - reference).abs().max().item()
        assert error <= bound, f"gradient of {name}: off by {error:.3g}, allowed {bound:.3g}"


def make_dictionary(words: int = 46) -> Dictionary:
    dictionary = Dictionary()
    for i in range(words):
        dictionary.add_symbol(f"w{i}")
    return dictionary


def make_sentences(lengths: List[int], words: int = 50, seed: int = 0) -> List[Tensor]:
    """Random words below ``words``, and the end of the sentence."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.cat([torch.randint(4, words, (n - 1,), generator=generator), torch.tensor([EOS])]) for n in lengths]


def make_batch(sentences: List[Tensor], side: str, extra: int = 0) -> Tensor:
    """With the padding on that side, and at least ``extra`` of it."""
    width = max(map(len, sentences)) + extra
    return data_utils.collate_tokens(sentences, PAD, left_pad=side == "left", pad_to_length=width)


def make_config(**changes: Any) -> LunaConfig:
    """A tiny model's config with every interpolation filled in."""
    options: Dict[str, Any] = dict(
        encoder_embed_dim=32,
        decoder_embed_dim=32,
        encoder_ffn_embed_dim=64,
        decoder_ffn_embed_dim=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_projected_attention_heads=4,
        decoder_projected_attention_heads=4,
        projection_length=8,
        max_source_positions=1024,
        max_target_positions=1024,
        dropout=0.0,
    )
    options.update(changes)
    options.setdefault("decoder_input_dim", options["decoder_embed_dim"])
    options.setdefault("decoder_output_dim", options["decoder_embed_dim"])
    return LunaConfig(**options)


def make_task(src: Optional[Dictionary] = None, tgt: Optional[Dictionary] = None) -> Any:
    """As much of a translation task as building a model needs."""
    src = src or make_dictionary()
    tgt = tgt or src
    return SimpleNamespace(source_dictionary=src, target_dictionary=tgt)


def make_model(seed: int = 1, **changes: Any) -> LunaModel:
    torch.manual_seed(seed)
    changes.setdefault("share_all_embeddings", True)
    return LunaModel.build_model(make_config(**changes), make_task())


def golden_model(golden: Dict[str, Any]) -> LunaModel:
    """The model of a golden file, with its weights loaded strictly."""
    meta = golden["meta"]
    src = make_dictionary(len(meta["src_dict_symbols"]) - 4)
    tgt = src if meta["joined_dictionary"] else make_dictionary(len(meta["tgt_dict_symbols"]) - 4)
    args = vars(Namespace(**meta["args"]))
    known = {k: v for k, v in args.items() if k in LunaConfig.__dataclass_fields__ and not k.startswith("_")}
    model = LunaModel.build_model(make_config(**known), make_task(src, tgt))
    model.load_state_dict(dict(golden["state_dict"]), strict=True)
    return model.eval()


def make_bert_config(**changes: Any) -> LunaBertConfig:
    """A tiny masked-LM model's config."""
    options: Dict[str, Any] = dict(
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=64,
        encoder_layers=2,
        encoder_attention_heads=4,
        projection_length=8,
        max_positions=64,
        dropout=0.0,
        attention_dropout=0.0,
    )
    return LunaBertConfig(**{**options, **changes})


def make_bert(seed: int = 1, words: int = 46, **changes: Any) -> LunaBertModel:
    torch.manual_seed(seed)
    return LunaBertModel.build_model(make_bert_config(**changes), make_task(make_dictionary(words)))


def golden_bert(golden: Dict[str, Any]) -> LunaBertModel:
    """The model of a golden file with its heads, and its weights loaded strictly."""
    meta = golden["meta"]
    known = {k: v for k, v in meta["args"].items() if k in LunaBertConfig.__dataclass_fields__}
    model = make_bert(words=len(meta["dict_symbols"]) - 4, **known)
    for name in meta["heads"]:
        model.register_classification_head(name, meta["num_classes"], meta["inner_dim"])
    model.load_state_dict(dict(golden["state_dict"]), strict=True)
    return model.eval()


# As much of the task lra-image as building a model needs.
NO_SYMBOLS: Any = SimpleNamespace(source_dictionary=None)


def make_lra_config(**changes: Any) -> LRAConfig:
    """A tiny classifier's config."""
    options: Dict[str, Any] = dict(
        layer_type="luna",
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=64,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_projection_length=8,
        classifier_out_dim=24,
        sentence_class_num=5,
        max_positions=64,
        dropout=0.0,
        attention_dropout=0.0,
    )
    return LRAConfig(**{**options, **changes})


def make_lra(seed: int = 1, words: int = 20, **changes: Any) -> LRAModel:
    torch.manual_seed(seed)
    dictionary = None
    if changes.get("input_type") != "image":
        dictionary = make_dictionary(words)
        dictionary.add_symbol(CLS)
    return LRAModel.build_model(make_lra_config(**changes), make_task(dictionary) if dictionary else NO_SYMBOLS)


def make_lm_config(**changes: Any) -> LunaLanguageModelConfig:
    """A tiny language model's config."""
    options: Dict[str, Any] = dict(
        decoder_embed_dim=32,
        decoder_ffn_embed_dim=64,
        decoder_layers=2,
        decoder_attention_heads=4,
        projection_length=8,
        max_target_positions=64,
        dropout=0.0,
    )
    return LunaLanguageModelConfig(**{**options, **changes})


def make_lm(seed: int = 1, words: int = 46, **changes: Any) -> LunaLanguageModel:
    torch.manual_seed(seed)
    return LunaLanguageModel.build_model(make_lm_config(**changes), make_task(make_dictionary(words)))
