"""The paper's efficiency table: training speed and peak memory of Luna next to the Transformer, by input length.

The architecture is that of the Text task (imdb), on random bytes, a batch that all of them fit. Time: in every
round each model trains a few updates at one length, one after the other; the medians count. Memory: each model and
length in a process of its own, the most that training takes on top of the idle process.

    python -m scripts.bench.length --batch-size 32 --output efficiency.svg   (pictures need: pip install '.[plots]')
"""

import argparse
import logging
import statistics
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Tuple

import torch
from fairseq.data import Dictionary
from fairseq.models import MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY

from luna_fairseq.measuring import interleaved
from luna_fairseq.models.lra import CLS
from luna_fairseq.pictures import legend_below, load_pyplot, save
from scripts.bench.measuring import in_own_process, keep_memory, machine, peak_bytes

LENGTHS = (1000, 2000, 3000, 4000)
# Luna-256 at 4,000 bytes, relative to the Transformer: updates per second, memory; paper, section 4.1.
PAPER = (4.9, 0.16)
BIAS = "+bias"


def byte_dictionary() -> Dictionary:
    """The symbols of the byte-level tasks."""
    dictionary = Dictionary()
    for byte in range(256):
        dictionary.add_symbol(str(byte))
    dictionary.add_symbol(CLS)
    return dictionary


def build(name: str, device: torch.device) -> Tuple[Any, Any]:
    """A model of the imdb architecture and its optimizer.

    Args:
        name: ``Transformer``, or ``Luna-`` and its projection length, with a position bias if ``+bias`` follows.
        device: where it trains.
    """
    torch.manual_seed(1)
    task = SimpleNamespace(source_dictionary=byte_dictionary())
    kind, _, length = name.removesuffix(BIAS).partition("-")
    arch = f"{kind.lower()}_lra_imdb"
    options: Dict[str, Any] = {"encoder_projection_length": int(length)} if length else {}
    if name.endswith(BIAS):
        options["packed_position_bias"] = 1.0
    config = MODEL_DATACLASS_REGISTRY[arch](**options)
    model = MODEL_REGISTRY[arch].build_model(config, task).to(device).train()
    return model, torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-5)


def update(model: Any, optimizer: Any, length: int, batch_size: int, device: torch.device, fp16: bool) -> None:
    """One update on random bytes."""
    tokens = torch.randint(4, 260, (batch_size, length), device=device)
    target = torch.randint(0, 2, (batch_size,), device=device)
    with torch.autocast(device.type, torch.float16 if device.type == "cuda" else torch.bfloat16, enabled=fp16):
        loss = torch.nn.functional.cross_entropy(model(tokens)[0].float(), target)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def speeds(names: List[str], length: int, args: argparse.Namespace, device: torch.device) -> Dict[str, float]:
    """Updates per second of each model, the medians over the rounds."""

    def updates(model: Any, optimizer: Any) -> None:
        for _ in range(args.updates):
            update(model, optimizer, length, args.batch_size, device, args.fp16)

    steps = {name: partial(updates, *build(name, device)) for name in names}
    seconds = interleaved(steps, args.rounds, device)
    return {name: args.updates / statistics.median(values) for name, values in seconds.items()}


def memory(name: str, length: int, args: argparse.Namespace, device: torch.device) -> float:
    """The most memory that two updates take on top of the idle process, in GiB."""

    def train() -> None:
        model, optimizer = build(name, device)
        for _ in range(2):
            update(model, optimizer, length, args.batch_size, device, args.fp16)

    return peak_bytes(train, device) / 2**30


def measure(args: argparse.Namespace, device: torch.device) -> Dict[str, Dict[int, Tuple[float, float]]]:
    """Updates per second and GiB for each model and length."""
    lunas = [f"Luna-{length}" for length in args.projection_lengths]
    names = ["Transformer", *lunas, *(name + BIAS for name in lunas if args.bias)]
    found: Dict[str, Dict[int, Tuple[float, float]]] = {name: {} for name in names}
    for length in args.lengths:
        by_name = speeds(names, length, args, device)
        for name in names:
            found[name][length] = by_name[name], in_own_process("--memory-of", name, str(length))
            print(
                f"{name}, {length} bytes: {by_name[name]:.3f} updates/s, {found[name][length][1]:.2f} GiB", flush=True
            )
    return found


def draw(found: Dict[str, Dict[int, Tuple[float, float]]], output: Path) -> None:
    """The two ratios against the length."""
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    base = found["Transformer"]
    markers = {name: "so^Dvp*"[number % 7] for number, name in enumerate(found)}
    for axis, what in zip(axes, (0, 1), strict=True):
        for name, values in found.items():
            ratios = [values[n][what] / base[n][what] for n in values]
            line = {"color": "black", "linestyle": ":"} if name == "Transformer" else {}
            axis.plot(list(values), ratios, marker=markers[name], label=name, **line)
        axis.plot([4000], [PAPER[what]], "k*", markersize=10, label="Luna-256 in the paper (a V100)")
        title = ("training speed", "peak memory")[what]
        axis.set(title=f"{title}, Transformer = 1", xlabel="bytes", ylim=(0, None), xticks=list(base))
        axis.grid(alpha=0.3)
    legend_below(figure, axes[0], min(5, len(found) + 1))
    save(figure, output)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.length",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--projection-lengths", type=int, nargs="+", default=[16, 128, 256])
    parser.add_argument(
        "--bias", action="store_true", help="also Luna with a position bias (--packed-position-bias 1)"
    )
    parser.add_argument("--updates", type=int, default=2, help="of each model in a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count; one more warms up")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--fp16", action="store_true", help="autocast, to float16 on a GPU and bfloat16 on a CPU")
    parser.add_argument("--output", type=Path, help="a picture, .svg or .png")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()

    logging.disable(logging.INFO)
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.memory_of:
        print(memory(args.memory_of[0], int(args.memory_of[1]), args, device))
        return 0
    found = measure(args, device)
    precision = "autocast" if args.fp16 else "float32"
    print(f"\nbatch {args.batch_size}, {precision}, medians of {args.rounds} rounds, {machine(device)}; ", end="")
    print("speed, memory of the Transformer = 1\n")
    print("| | " + " | ".join(f"{length:,} bytes" for length in args.lengths) + " | the paper at 4K |")
    print("|---" * (len(args.lengths) + 2) + "|")
    for name, values in found.items():
        base = found["Transformer"]
        cells = [f"{v[0] / base[n][0]:.2f}x, {v[1] / base[n][1]:.2f}x" for n, v in values.items()]
        print(f"| {name} | " + " | ".join(cells) + f" | {'{}x, {}x'.format(*PAPER) if name == 'Luna-256' else ''} |")
    print("| Transformer, updates/s and GiB | " + " | ".join(f"{a:.3f}, {b:.2f}" for a, b in base.values()) + " | |")
    if args.output:
        draw(found, args.output)
    return 0


if __name__ == "__main__":
    keep_memory()
    sys.exit(main())
