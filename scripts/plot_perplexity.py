#!/usr/bin/env python
"""Validation perplexity of several runs against updates and against time, as one picture.

The time of an update is the run's median between two lines of its log, so that pauses of the machine and
restarts do not count; the runs should have had the machine to themselves, or shared it alike. --words-per-second
gives it instead, from a measurement of benchmark_training.py.

    plot_perplexity.py masked-lm-out/wikitext2_{roberta,luna_tied_32,luna_untied_32} --output perplexity.svg
"""

import argparse
import re
import statistics
import sys
from pathlib import Path
from typing import Dict, List, Tuple

VALID = re.compile(r"valid on 'valid' subset \|.*? ppl ([\d.]+) .*?num_updates (\d+)")
TRAIN = re.compile(r"train_inner.*? ups=([\d.]+), wpb=([\d.]+)")


def read_log(path: Path, words_per_second: float) -> Tuple[List[int], List[float], float]:
    """Updates, perplexities, and the seconds of one update.

    Args:
        path: a train.log.
        words_per_second: measured elsewhere, or 0 to take the log's own.

    Raises:
        ValueError: if the log holds no validation or no training.
    """
    text = path.read_text()
    points: Dict[int, float] = {int(update): float(ppl) for ppl, update in VALID.findall(text)}
    speed = [(float(ups), float(wpb)) for ups, wpb in TRAIN.findall(text) if float(ups) > 0]
    if not points or not speed:
        raise ValueError(f"{path} holds no finished validation: train first")
    words = statistics.median(wpb for _, wpb in speed)
    seconds = words / words_per_second if words_per_second else 1 / statistics.median(ups for ups, _ in speed)
    updates = sorted(points)
    return updates, [points[update] for update in updates], seconds


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders with a train.log")
    parser.add_argument("--output", type=Path, required=True, help="the picture, .svg or .png")
    parser.add_argument("--words-per-second", type=float, nargs="+", default=[], help="one for each run")
    args = parser.parse_args()
    try:
        import matplotlib
    except ImportError:
        print("plot_perplexity.py: matplotlib is missing: pip install '.[plots]'", file=sys.stderr)
        return 1
    matplotlib.use("Agg")
    from matplotlib import pyplot

    speeds = args.words_per_second or [0.0] * len(args.runs)
    if len(speeds) != len(args.runs):
        parser.error(f"{len(speeds)} speeds for {len(args.runs)} runs: give one for each")
    matplotlib.rcParams["svg.hashsalt"] = "luna"  # the same picture from the same logs
    figure, (by_update, by_time) = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for run, speed in zip(args.runs, speeds, strict=True):
        try:
            updates, perplexities, seconds = read_log(run / "train.log", speed)
        except (OSError, ValueError) as error:
            print(f"plot_perplexity.py: {error}", file=sys.stderr)
            return 1
        by_update.plot(updates, perplexities, label=run.name)
        by_time.plot([update * seconds / 60 for update in updates], perplexities, label=run.name)
        print(f"{run.name}: perplexity {perplexities[-1]} after {updates[-1]} updates, {seconds:.2f} s each")
    by_update.set(xlabel="updates", ylabel="validation perplexity", yscale="log")
    by_time.set(xlabel="minutes")
    by_update.legend()
    figure.tight_layout()
    figure.savefig(args.output, metadata={"Date": None} if args.output.suffix == ".svg" else None)
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
