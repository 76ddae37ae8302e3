#!/usr/bin/env python
"""What training did, of one or more runs, as one picture from fairseq's own logs.

    plot_training.py masked-lm-out/wikitext2_* --output wikitext2.svg
    plot_training.py run1 run2/train.log --panels ppl lr --against updates minutes --output runs.png

A run is a folder with train.log, or a log, of fairseq-train or fairseq-hydra-train, in the format simple, tqdm or
json. Validation is drawn with a line and points, training with a thin line. The time of an update is the run's
median, so that pauses of the machine and restarts do not count; --words-per-second gives it instead, from a
measurement of benchmark_training.py.
"""

import argparse
import json
import re
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Tuple

from luna_fairseq.pictures import load_pyplot

PANELS = {
    "loss": "loss, bits", "ppl": "perplexity", "accuracy": "accuracy, %", "bleu": "BLEU", "lr": "learning rate",
    "wps": "training words/s",
}  # fmt: skip
TRAIN_ONLY = ("lr", "wps")
NUMBER = r"[-+\d.einfa]+"
TRAIN = re.compile(r"\btrain_inner\b.* epoch \d+: .*?(\w+=.*)")
VALID = re.compile(r"\bvalid\b.* valid on 'valid' subset \| (.*)")
JSON = re.compile(r"\b(train_inner|valid)\b[^{]*(\{\"epoch\":.*\})\s*$")


@dataclass
class Run:
    """What a log says.

    Attributes:
        name: the folder, or the file.
        train, valid: metric -> update -> value.
    """

    name: str
    train: Dict[str, Dict[int, float]] = field(default_factory=dict)
    valid: Dict[str, Dict[int, float]] = field(default_factory=dict)

    def add(self, split: str, values: Dict[str, Any]) -> None:
        """Note the values of one line; a later line of the same update replaces an earlier one."""
        update = values.get("num_updates")
        for name, value in values.items():
            if update is not None and re.fullmatch(NUMBER, str(value)):
                getattr(self, split).setdefault(name, {})[int(update)] = float(value)

    def seconds(self, words_per_second: float = 0.0) -> float:
        """The seconds of one update: measured elsewhere, or the median of the log."""
        if words_per_second:
            return statistics.median(self.train["wpb"].values()) / words_per_second
        return 1 / statistics.median(ups for ups in self.train["ups"].values() if ups > 0)


def read_run(path: Path) -> Run:
    """Read a log.

    Args:
        path: the log, or the folder of a train.log.

    Raises:
        ValueError: if it holds nothing of a training.
    """
    log = path / "train.log" if path.is_dir() else path
    run = Run(path.name if path.is_dir() else path.stem)
    for line in log.read_text(errors="replace").splitlines():
        if found := JSON.search(line):
            split, values = found[1], json.loads(found[2])
            split = "valid" if split == "valid" else "train"
            run.add(split, {name.removeprefix("valid_"): value for name, value in values.items()})
        elif found := TRAIN.search(line):
            run.add("train", dict(re.findall(rf"(\w+)=({NUMBER})", found[1])))
        elif found := VALID.search(line):
            run.add("valid", dict(pair.split() for pair in found[1].split("|") if len(pair.split()) == 2))
    if not run.train and not run.valid:
        raise ValueError(f"{log} says nothing of a training: name the log of fairseq-train, or its folder")
    return run


def lines_of(run: Run, panel: str) -> List[Tuple[str, Dict[int, float]]]:
    """The lines of a run in a panel: "train" or "valid", and the values."""
    found = [("train", run.train.get(panel, {})), ("valid", {} if panel in TRAIN_ONLY else run.valid.get(panel, {}))]
    return [(split, values) for split, values in found if values]


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders with a train.log, or logs")
    parser.add_argument("--output", type=Path, required=True, help="the picture, .svg or .png")
    parser.add_argument("--panels", nargs="+", choices=PANELS, help="default: all that the logs hold")
    parser.add_argument("--against", nargs="+", choices=("updates", "minutes"), default=["updates"])
    parser.add_argument("--words-per-second", type=float, nargs="+", help="one for each run")
    args = parser.parse_args()
    speeds = args.words_per_second or [0.0] * len(args.runs)
    if len(speeds) != len(args.runs):
        parser.error(f"{len(speeds)} speeds for {len(args.runs)} runs: give one for each")
    try:
        pyplot = load_pyplot()
        runs = [read_run(path) for path in args.runs]
    except (OSError, ValueError) as error:
        print(f"plot_training.py: {error}", file=sys.stderr)
        return 1
    panels = args.panels or [panel for panel in PANELS if any(lines_of(run, panel) for run in runs)]
    # One kind of time: a row of panels; both: a row for each panel.
    shape = (1, len(panels)) if len(args.against) == 1 else (len(panels), len(args.against))
    figure, axes = pyplot.subplots(
        *shape, figsize=(4.5 * shape[1], 3.4 * shape[0]), squeeze=False, layout="constrained"
    )
    places = iter(axes.flat)
    for panel in panels:
        for against in args.against:
            axis = next(places)
            for number, (run, speed) in enumerate(zip(runs, speeds, strict=True)):
                scale = 1.0 if against == "updates" else run.seconds(speed) / 60
                for split, values in lines_of(run, panel):
                    style = dict(marker="o", markersize=2) if split == "valid" else dict(linewidth=0.6)
                    axis.plot(
                        [update * scale for update in sorted(values)], [values[update] for update in sorted(values)],
                        color=f"C{number}", label=f"{run.name}, {split}", **style,
                    )  # fmt: skip
            axis.set(xlabel=against, ylabel=PANELS[panel], yscale="log" if panel == "ppl" else "linear")
    axes[0, 0].legend(fontsize="x-small")
    figure.savefig(args.output, metadata={"Date": None} if args.output.suffix == ".svg" else None)
    for run, speed in zip(runs, speeds, strict=True):
        said = [
            f"{panel} {values[max(values)]:g}"
            for panel in PANELS
            for split, values in lines_of(run, panel)
            if split == "valid"
        ]
        print(f"{run.name}: {', '.join(said) or 'no validation yet'}; {run.seconds(speed):.2f} s an update")
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
