"""Whether a GPU computes what it should: before anything is timed."""

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Dict, Tuple

import torch
import torch.nn.functional as F

from luna_fairseq.doctor import attention, machine, training
from luna_fairseq.doctor.verdicts import FAILED, Finding, NotTried, attempt
from luna_fairseq.ops import fused, parts, proving
from scripts.bench.checks import Mismatch
from scripts.bench.sizes import TRANSLATION
from scripts.bench.whole_models import build_model, random_tokens
from scripts.gpu_report.findings import Findings

# Of a gradient's norm, beside a thousandth of the largest: float32 on two devices.
TOLERANCE = 1e-3


def check_kernels(dtype: torch.dtype, rows: int, head_dim: int, device: torch.device) -> Finding:
    """The Triton kernels against the torch form, as the first use of a configuration does.

    Raises:
        NotTried: without a GPU that they are for.
        Mismatch: if they do not compile, or disagree.
    """
    if device.type != "cuda" or not fused._new_enough(torch.device("cuda", torch.cuda.current_device())):
        raise NotTried("no GPU from Ampere on")
    try:
        launch = fused._launcher()
    except ImportError:
        raise NotTried("triton is not installed") from None
    wrong = fused.compare(launch, torch.device("cuda", torch.cuda.current_device()), dtype, rows, head_dim)
    if wrong is not None:
        raise Mismatch(wrong)
    return Finding("output and every gradient agree with the torch form")


def check_parts(dtype: torch.dtype, device: torch.device) -> Finding:
    """Softmax attention in parts against the formula, as the first use of a type does.

    Raises:
        NotTried: without a GPU that it is for.
        Mismatch: if they disagree.
    """
    if device.type not in parts.DEVICES:
        raise NotTried("no GPU of NVIDIA's")
    wrong = parts.compare(torch.device("cuda", torch.cuda.current_device()), dtype, 64)
    if wrong is not None:
        raise Mismatch(wrong)
    return Finding("output and every gradient agree with the formula")


def check_model(arch: str, args: argparse.Namespace) -> Finding:
    """Loss and gradients of a whole model in float32 against the CPU's.

    Raises:
        Mismatch: if they differ by more than rounding.
    """
    on_cpu = argparse.Namespace(**{**vars(args), "device": torch.device("cpu"), "vocabulary": 200, "smoke": True})
    model = build_model(arch, 80, on_cpu).eval()
    tokens = random_tokens(3, 70, args=on_cpu)
    found = []
    for device in (args.device, on_cpu.device):
        own, words = copy.deepcopy(model).to(device), tokens.to(device)
        logits = own(words, torch.full((3,), 70), words.roll(1, dims=1))[0]
        loss = F.cross_entropy(logits.flatten(0, 1), words.flatten())
        loss.backward()
        grads = {name: p.grad.cpu() for name, p in own.named_parameters() if p.grad is not None}
        found.append({"loss": loss.detach().cpu(), **grads})
    got, want = found
    largest = max(float(x.norm()) for x in want.values())
    for name, wanted in want.items():
        error = float((got[name] - wanted).norm())
        if not error <= TOLERANCE * (float(wanted.norm()) + 1e-3 * largest):
            raise Mismatch(f"{name} is off by {error:.1e}, its norm is {float(wanted.norm()):.1e}")
    return Finding(f"the loss and {len(want) - 1} gradients are those of the CPU")


def checks(args: argparse.Namespace, folder: Path) -> Iterator[Tuple[str, Callable[[], Finding]]]:
    """All of them by name, what matters most first."""
    device = "cpu" if args.device.type == "cpu" else f"cuda:{torch.cuda.current_device()}"
    dtypes = ("float32",) if args.smoke else machine.DTYPES
    for name in dtypes:
        yield f"attention, {name}", partial(attention.check_attention, device, name)
    for dtype, rows, dim in (
        *((torch.bfloat16, rows, 64) for rows in (16, 32, 128)),
        *((dtype, 16, 64) for dtype in (torch.float32, torch.float16)),
    ):
        name = str(dtype).removeprefix("torch.")
        yield f"kernels, {name}, l = {rows}, heads of {dim}", partial(check_kernels, dtype, rows, dim, args.device)
    for dtype in proving.TOLERANCE:
        yield f"attention in parts, {str(dtype).removeprefix('torch.')}", partial(check_parts, dtype, args.device)
    for arch in TRANSLATION[1:]:
        yield f"{arch}, float32", partial(check_model, arch, args)
    if not args.smoke:
        data = training.make_data(folder)
        yield "training", partial(training.check_training, data, folder, device)
        yield "generation", partial(training.check_generation, data, folder, device)


def measure(args: argparse.Namespace, findings: Findings) -> None:
    """A row for each check."""

    def look(name: str, check: Callable[[], Finding]) -> Dict[str, Any]:
        verdict = attempt(name, check)
        if verdict.verdict == FAILED:
            raise Mismatch(verdict.text)
        return {"verdict": verdict.verdict, "text": verdict.text, "seconds": verdict.seconds}

    with tempfile.TemporaryDirectory(prefix="luna-report-") as folder:
        for name, check in checks(args, Path(folder)):
            findings.add(name, partial(look, name, check))
