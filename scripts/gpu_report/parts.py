"""What is measured: layers, training, decoding, the paper's efficiency table."""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, Dict

from torch.nn.attention import SDPBackend, sdpa_kernel

from luna_fairseq.measuring import environment, kernels, peak_allocated
from scripts.bench import length as efficiency
from scripts.bench.attention import layer_step
from scripts.bench.generation import generation_step, sentences
from scripts.bench.sizes import TRANSLATION
from scripts.bench.training import examples, training_step
from scripts.gpu_report import correctness
from scripts.gpu_report.findings import Findings
from scripts.gpu_report.measuring import Step, in_mode, launched, modes, repeats, steps_of, times

KINDS = ("causal Luna", "causal softmax", "Luna", "softmax")


def _layer_step(kind: str, size: int, length: int, backward: bool, args: argparse.Namespace) -> Step:
    """A step of one layer; softmax attention by FlashAttention where there is a GPU."""
    step = layer_step(kind, size, length, backward, args)

    def run() -> None:
        flash = kind.endswith("softmax") and args.device.type == "cuda"
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if flash else nullcontext():
            step()

    return run


def _layer(kind: str, mode: str, dim: int, rows: int, length: int, args: argparse.Namespace) -> Dict[str, Any]:
    own = argparse.Namespace(**{**vars(args), "dim": dim, "heads": max(1, dim // 64)})
    with kernels(mode):
        both, forward = (_layer_step(kind, rows, length, backward, own) for backward in (True, False))
        number = repeats(both, args)
        steps = {"seconds": both, "forward seconds": forward}
        taken = times({name: in_mode(step, number, mode) for name, step in steps.items()}, args.rounds, args.device)
        found = {name: seconds / number for name, seconds in taken.items()}
        return {"kind": kind, "kernels": mode, "d": dim, "l": rows, "length": length, **found,
                "bytes": peak_allocated(both, args.device), **launched(both, args.device)}  # fmt: skip


def measure_layers(args: argparse.Namespace, findings: Findings) -> None:
    """One layer with its projections, bfloat16: forward and backward, forward alone, memory, launches."""
    for dim, rows, length in args.rows:
        for kind in KINDS:
            # Without kernels there is one form of Luna that is not causal.
            ways = modes(args.device, kind) if kind.startswith("causal") else {"auto": kind}
            for mode, name in ways.items():
                measure = partial(_layer, kind, mode, dim, rows, length, args)
                findings.add(f"{name}, d = {dim}, l = {rows}, {length:,} positions", measure)


def _model(
    arch: str, mode: str, make: Callable[..., Step], words: int, args: argparse.Namespace, rounds: int
) -> Dict[str, Any]:
    """Words a second and memory of a whole model, which is held to the formulas when it is made."""
    with kernels(mode):
        # Its parameters and the optimizer's state count, too: it is made once for its memory alone.
        unchecked = argparse.Namespace(**{**vars(args), "memory_of": "this process"})

        def work() -> None:
            step = make(args=unchecked)
            for _ in range(2):
                step()

        size = peak_allocated(work, args.device)
        seconds = times({arch: make(args=args)}, rounds, args.device)[arch]
    return {"arch": arch, "kernels": mode, "words a second": words / seconds, "seconds": seconds, "bytes": size}


def measure_training(args: argparse.Namespace, findings: Findings) -> None:
    """Updates of the models for WMT on random symbols, bfloat16 by autocast, Adam."""
    for length in args.training_lengths:
        for arch in TRANSLATION:
            for mode, name in modes(args.device, arch).items():
                make = partial(training_step, arch, length)
                words = examples(arch, length, args) * length
                findings.add(
                    f"{name}, {length} words a sentence",
                    lambda: {"length": length, **_model(arch, mode, make, words, args, args.rounds)},  # noqa: B023
                )


def measure_decoding(args: argparse.Namespace, findings: Findings) -> None:
    """Beam search to a length that is given, bfloat16 by autocast."""
    for length in args.output_lengths:
        for arch, graph in ((each, way) for each in TRANSLATION for way in steps_of(args.device, each)):
            make = partial(generation_step, arch, length, args.beam)
            words = sentences(length, args) * length

            def one() -> Dict[str, Any]:
                with environment("LUNA_GRAPH", graph):  # noqa: B023
                    found = _model(arch, "auto", make, words, args, args.decoding_rounds)  # noqa: B023
                return {"length": length, **found, "arch": f"{arch}, graphs" if int(graph) else arch}  # noqa: B023

            name = f"{arch}, steps as CUDA graphs" if int(graph) else arch
            findings.add(f"{name}, {length} words, beam {args.beam}", one)


def measure_lra(args: argparse.Namespace, findings: Findings) -> None:
    """Training of the Text task's architecture by input length, half precision by autocast."""
    names = ["Transformer", *(f"Luna-{rows}" for rows in args.lra_rows)]

    def one(name: str, length: int) -> Dict[str, Any]:
        def made() -> Step:
            model, optimizer = efficiency.build(name, args.device)
            run = partial(efficiency.update, model, optimizer, length, args.batch_size, args.device, True)
            return lambda: [run() for _ in range(args.updates)]

        size = peak_allocated(lambda: made()(), args.device)
        seconds = times({name: made()}, args.rounds, args.device)[name] / args.updates
        return {"model": name, "length": length, "updates a second": 1 / seconds, "bytes": size}

    for length in sorted(args.lra_lengths, reverse=True):  # the paper's figure first
        for name in names:
            findings.add(f"{name}, {length:,} bytes", partial(one, name, length))


PARTS: Dict[str, Callable[[argparse.Namespace, Findings], None]] = {
    "correctness": correctness.measure,
    "layers": measure_layers,
    "training": measure_training,
    "decoding": measure_decoding,
    "lra": measure_lra,
}
