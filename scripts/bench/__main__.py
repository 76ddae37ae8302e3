"""Luna next to softmax attention: time and memory of one attention layer, of training, of generation.

    python -m scripts.bench                          everything, in sizes for two CPU cores (one to two hours)
    python -m scripts.bench attention --threads 1    one part
    python -m scripts.bench --full                   the paper's vocabulary and larger batches
    python -m scripts.bench --report benchmark.json  the tables of a finished run, as Markdown
    python -m scripts.bench --draw benchmark.json    its pictures, into OUTPUT

Whatever is compared is timed in turn in one process, after a round to warm up; the medians count, and the
spread is (slowest - fastest) / median. Peak memory of one layer on a CPU is what torch has allocated, of a whole
model what is resident in a process of its own. Before it is timed, every Luna attention is held to a transcription of
the paper's formulas in float64; there is no speed for one that differs. OUTPUT gets benchmark.json, and two
pictures (which need: pip install '.[plots]').
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any, Dict

import torch

from luna_fairseq.data.files import write_json
from scripts.bench.checks import Mismatch
from scripts.bench.measuring import keep_memory, machine
from scripts.bench.parts import PARTS, memory_of
from scripts.bench.picture import draw
from scripts.bench.report import report
from scripts.bench.sizes import DTYPES, SIZES

PROG = "python -m scripts.bench"


def read_before(results: Path) -> Dict[str, Any]:
    """What an earlier run has left in the file; a file of another program ends this one."""
    if not results.exists():
        return {}
    try:
        before = json.loads(results.read_text())
        before["machine"], before["rounds"]
    except (ValueError, TypeError, KeyError):
        sys.exit(f"{PROG}: {results} is not of a benchmark: name another --output, or remove it")
    return before


def draw_pictures(found: Dict[str, Any], folder: Path) -> int:
    """Draw what a run has found; returns the exit code: 1, and a line, if that cannot be done."""
    try:
        if "attention" in found:
            draw(found["attention"], found["sizes"]["tokens"], folder)
    except ValueError as error:
        print(f"{PROG}: no pictures: {error}", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all of them if none is named")
    parser.add_argument("--full", action="store_true", help="for a GPU")
    parser.add_argument("--smoke", action="store_true", help="sizes that mean nothing, in a minute")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count; one more warms up")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--dtype", choices=DTYPES, help="of a layer; of a model, by autocast (--full: bfloat16)")
    parser.add_argument("--lengths", type=int, nargs="+", help="of one layer's input")
    parser.add_argument("--output-lengths", type=int, nargs="+", help="of what is generated")
    parser.add_argument(
        "--output", type=Path, default=Path("bench-out"), help="a folder; finished parts are kept there"
    )
    parser.add_argument("--report", type=Path, metavar="JSON", help="print the tables of a finished run")
    parser.add_argument("--draw", type=Path, metavar="JSON", help="draw the pictures of a finished run")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.report:
        print(report(json.loads(args.report.read_text())), end="")
        return 0
    logging.disable(logging.INFO)
    if args.draw:
        found = json.loads(args.draw.read_text())
        args.output.mkdir(parents=True, exist_ok=True)
        return draw_pictures(found, args.output)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    args.dtype = args.dtype or ("bfloat16" if args.full else "float32")
    sizes = dict(SIZES["smoke" if args.smoke else "full" if args.full else ""])
    for name in ("lengths", "output_lengths"):
        if getattr(args, name):
            sizes[name] = tuple(getattr(args, name))
    for name, value in sizes.items():
        setattr(args, name, value)
    torch.set_num_threads(args.threads)
    args.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.memory_of:
        print(memory_of(args.memory_of[0], json.loads(args.memory_of[1]), args))
        return 0
    results = args.output / "benchmark.json"
    before = read_before(results)
    args.output.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(args.device), "dtype": args.dtype, "rounds": args.rounds, "sizes": sizes}
    if before and {**before, **json.loads(json.dumps(found))} == before:  # other parts of the same run
        found = before
    for part in args.parts or PARTS:
        try:
            found[part] = PARTS[part](args)
        except Mismatch as error:
            print(f"{PROG}: {error}", file=sys.stderr)
            return 1
        write_json(results, found)
    print(report(found), end="")
    draw_pictures(found, args.output)  # the figures are there, with matplotlib or without
    return 0


if __name__ == "__main__":
    keep_memory()
    sys.exit(main())
