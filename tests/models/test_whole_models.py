"""Whole models of every named architecture can be pickled, copied, traced and differentiated twice."""

import copy
import io
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest
import torch
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.tasks import TASK_REGISTRY
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from luna_fairseq import ops
from luna_fairseq.models.lra import CLS, LRAModel
from luna_fairseq.models.luna import LunaModel
from luna_fairseq.models.luna_bert import LunaBertModel
from luna_fairseq.models.luna_lm import LunaLanguageModel
from luna_fairseq.ops import both_sums, products
from support.models import (
    PAD,
    assert_close,
    make_batch,
    make_bert_config,
    make_config,
    make_dictionary,
    make_lm_config,
    make_lra_config,
    make_sentences,
    make_task,
)

FAMILIES: Dict[type, Any] = {
    LunaModel: make_config,
    LunaBertModel: make_bert_config,
    LunaLanguageModel: make_lm_config,
    LRAModel: make_lra_config,
}
NAMES: List[str] = sorted(name for name, model in ARCH_MODEL_REGISTRY.items() if issubclass(model, tuple(FAMILIES)))


def _build(name: str) -> Any:
    """A tiny model of the class of an architecture, with a position bias if ``+bias`` follows its name."""
    torch.manual_seed(1)
    name, _, bias = name.partition("+")
    dictionary = make_dictionary()
    dictionary.add_symbol(CLS)
    model = ARCH_MODEL_REGISTRY[name]
    make = next(make for family, make in FAMILIES.items() if issubclass(model, family))
    config = make(packed_position_bias=1.0) if bias else make()
    return model.build_model(config, make_task(dictionary)).eval()


def _run(model: Any) -> Tensor:
    source = make_batch(make_sentences([3, 12]), "left")
    inputs = (source, None, source) if isinstance(model, LunaModel) else (source,)
    with torch.no_grad():
        out: Tensor = model(*inputs)[0]
    return out


@pytest.mark.parametrize("name", NAMES)
def test_models_can_be_saved_whole(name: str) -> None:
    model = _build(name)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [
        torch.load(buffer, weights_only=False),
        *(pickle.loads(pickle.dumps(model, protocol)) for protocol in (2, pickle.HIGHEST_PROTOCOL)),
        copy.deepcopy(model),
    ]
    for copied in copies:
        assert type(copied) is type(model) is ARCH_MODEL_REGISTRY[name]
        assert torch.equal(_run(copied), _run(model))


@pytest.mark.parametrize("name", NAMES)
def test_configs_can_be_pickled(name: str) -> None:
    config = MODEL_DATACLASS_REGISTRY[name]
    assert pickle.loads(pickle.dumps(config)) is config
    again = pickle.loads(pickle.dumps(config()))
    assert type(again) is config and again == config()


def test_classes_have_names_of_their_own() -> None:
    """And tell who asks for the plain name what they are."""
    classes = [ARCH_MODEL_REGISTRY[name] for name in NAMES]
    assert len({cls.__qualname__ for cls in classes}) == len(NAMES) > 20
    assert {cls.__name__ for cls in classes} == {family.__name__ for family in FAMILIES}


@pytest.mark.parametrize("name", ["lra-text", "long_range_arena", "lra-image"])
def test_tasks_can_be_pickled(name: str) -> None:
    assert pickle.loads(pickle.dumps(TASK_REGISTRY[name])) is TASK_REGISTRY[name]


@pytest.mark.long
def test_another_process_loads_a_model(tmp_path: Path) -> None:
    """One that has imported nothing yet, as multiprocessing's spawn starts it."""
    model = _build("luna_base_untied")
    torch.save((model, make_batch(make_sentences([3, 12]), "left")), tmp_path / "model.pt")
    code = (
        "import sys, torch\n"
        "model, source = torch.load(sys.argv[1], weights_only=False)\n"
        "with torch.no_grad(): torch.save(model(source, None, source)[0], sys.argv[2])\n"
    )
    paths = [str(tmp_path / name) for name in ("model.pt", "out.pt")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, capture_output=True, timeout=120)
    assert_close(torch.load(paths[1]), _run(model), "output")


class _Outputs(nn.Module):
    """Tensors in, a tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tokens: Tensor) -> Tensor:
        inputs = (tokens[0], None, tokens[1]) if len(tokens) == 2 else tokens
        out: Tensor = self.model(*inputs)[0]
        return out


# Below and above the 8 rows of P, and the 128 positions of one product; each is traced with, and tried with all of
# its kind: whether something is padded is decided when a model is traced, as in fairseq's Transformer.
_LENGTHS: Dict[str, List[Any]] = {
    "padded": [([3, 12, 7], [6, 2, 9]), ([3, 2], [4, 4]), ([9, 30], [200, 3])],
    "plain": [([9], [6]), ([3, 3], [4, 4]), ([30], [200])],
}


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("kind", _LENGTHS)
@pytest.mark.parametrize(
    "name", ["luna", "luna_base_untied", "luna_bert", "luna_lm", "lra", "luna+bias", "luna_bert+bias", "lra+bias"]
)
def test_traced_models_are_right_at_other_lengths(name: str, kind: str, first: int) -> None:
    model = _Outputs(_build(name))

    def batch(lengths: Any) -> Any:
        parts = [
            make_batch(make_sentences([min(n, 60) if name[:4] != "luna" else n for n in part], seed=seed), side)
            for seed, (part, side) in enumerate(zip(lengths, ("left", "right"), strict=True))
        ]
        return tuple(parts) if isinstance(model.model, LunaModel) else (parts[0],)

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of values that are taken for constants
        traced = torch.jit.trace(model, batch(_LENGTHS[kind][first]), check_trace=False)
        for lengths in _LENGTHS[kind]:
            inputs = batch(lengths)
            # What stands at padded targets is read by nobody, and a graph masks more of it.
            real = inputs[-1].ne(PAD) if isinstance(model.model, LunaModel) else ...
            assert_close(traced(*inputs)[real], model(*inputs)[real], f"lengths {lengths}")


@pytest.mark.parametrize("name", ["luna", "luna_base_untied", "luna_bert", "luna_lm", "lra", "luna+bias", "lra+bias"])
def test_a_gradient_penalty_has_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of plain products, which PyTorch differentiates by itself."""
    model = _Outputs(_build(name).double().train())
    source = make_batch(make_sentences([3, 12]), "left")
    tokens = (source, source) if isinstance(model.model, LunaModel) else (source,)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients() -> List[Optional[Tensor]]:
        loss = model(*tokens).logsumexp(-1).sum()
        first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        penalty = torch.stack([grad.square().sum() for grad in first if grad is not None]).sum()
        return [*torch.autograd.grad(penalty, parameters, allow_unused=True)]

    with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no second derivative
        got = gradients()
        monkeypatch.setattr(ops, "folding_pays", lambda *_: False)
        for module in (both_sums, products):
            monkeypatch.setattr(module, "making_a_graph", lambda: True)
        want = gradients()
    largest = max(grad.abs().max().item() for grad in want if grad is not None)
    for one, other in zip(got, want, strict=True):
        if one is not None and other is not None:
            assert (one - other).abs().max().item() <= 1e-9 * largest
        else:
            assert one is None and other is None
    assert len([grad for grad in got if grad is not None]) > len(got) / 2
