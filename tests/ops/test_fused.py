"""When the Triton kernels are used: LUNA_KERNELS, what they are compared with first, and the one warning."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from luna_fairseq import ops
from luna_fairseq.ops import fused
from luna_fairseq.ops.proving import Proofs


class _OnGpu(SimpleNamespace):
    """What the decision reads of a tensor on a GPU."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tensor as of a GPU on which the kernels agree; :attr:`wrong` is what a comparison says."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("LUNA_KERNELS", raising=False)
    monkeypatch.setattr(fused, "Tensor", _OnGpu)
    monkeypatch.setattr(fused, "_new_enough", lambda _: True)
    monkeypatch.setattr(fused, "_proofs", Proofs("the Triton kernels"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    found = SimpleNamespace(compared=[], wrong=None, launch=SimpleNamespace(fits=lambda *_: True))
    monkeypatch.setattr(fused, "_launcher", lambda: found.launch)

    def compare(_: Any, *configuration: Any) -> Any:
        found.compared.append(configuration)
        return found.wrong

    monkeypatch.setattr(fused, "compare", compare)
    device = torch.device("cuda", 0)
    found.x = _OnGpu(device=device, is_cuda=True, dtype=torch.bfloat16, size=lambda _: 64)
    found.used = lambda rows=16: fused.kernels(found.x, found.x, found.x, rows) is found.launch
    return found


def test_a_configuration_is_compared_once(gpu: Any) -> None:
    assert gpu.used() and gpu.used() and gpu.used(32)
    device = torch.device("cuda", 0)
    assert gpu.compared == [(device, torch.bfloat16, rows, 64) for rows in (16, 32)]


def test_what_disagrees_is_not_used_and_said_once(gpu: Any, recwarn: pytest.WarningsRecorder) -> None:
    gpu.wrong = "off by 3"
    assert [gpu.used(), gpu.used(), gpu.used(32)] == [False] * 3
    (said,) = recwarn.list
    assert "off by 3; please tell us what luna-fairseq doctor prints" in str(said.message)


def test_modes(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNA_KERNELS", "torch")
    assert not gpu.used() and not gpu.compared
    monkeypatch.setenv("LUNA_KERNELS", "triton")
    gpu.wrong = "off by 3"
    with pytest.raises(RuntimeError, match=r"kernels fail here \(off by 3\): set it to torch"):
        gpu.used()
    monkeypatch.setenv("LUNA_KERNELS", "fast")
    with pytest.raises(ValueError, match="LUNA_KERNELS is 'fast': set it to auto, triton or torch"):
        gpu.used()


def test_without_triton(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError

    monkeypatch.setattr(fused, "_launcher", missing)
    assert not gpu.used()
    monkeypatch.setenv("LUNA_KERNELS", "triton")
    with pytest.raises(RuntimeError, match="not installed: pip install triton"):
        gpu.used()


def test_what_stays_with_torch(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that is captured before the first use, tensors that are compiled or traced, those without a kernel."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert not gpu.used() and not gpu.compared
    for where, name in ((torch.compiler, "is_compiling"), (torch.jit, "is_tracing")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, lambda: True)
            assert not gpu.used()
    gpu.launch.fits = lambda *_: False
    assert not gpu.used() and not gpu.compared


def test_a_cpu_never_looks_for_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(fused, "_launcher", lambda: pytest.fail("looked for"))
    x = torch.randn(1, 1, 3, 4)
    for chosen in ("auto", "triton"):
        monkeypatch.setenv("LUNA_KERNELS", chosen)
        ops.causal_luna_attention(x, x, x, torch.ones(1, 1, 3, 2))
