"""``luna-fairseq plot``: what training did, of one or more runs, as one picture from fairseq's own logs."""

import argparse
import json
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from luna_fairseq import console
from luna_fairseq.pictures import legend_below, load_pyplot, save

DESCRIPTION = """What training did, of one or more runs, as one picture from fairseq's own logs.

    luna-fairseq plot masked-lm-out/wikitext2_* --output wikitext2.svg
    luna-fairseq plot run1 run2/train.log --panels ppl lr --against updates minutes --output runs.png

A run is a folder with train.log, or a log, of fairseq-train or fairseq-hydra-train, in the format simple, tqdm or
json. Validation is drawn with a line and points, training with a thin line. The time of an update is the run's
median, so that pauses of the machine and restarts do not count; --words-per-second gives it instead, as measured by
python -m scripts.bench.training_speed in a clone.
"""
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
        """The seconds of one update: from a speed that was measured elsewhere, or the median of the log.

        Raises:
            ValueError: if the log does not say what is needed.
        """
        name = "wpb" if words_per_second else "ups"
        values = [value for value in self.train.get(name, {}).values() if value > 0]
        if not values:
            raise ValueError(f"the log of {self.name} says no {name} of a training: name one with more updates")
        median = statistics.median(values)
        return median / words_per_second if words_per_second else 1 / median


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


def draw(
    runs: Sequence[Run], speeds: Sequence[float], panels: Sequence[str], against: Sequence[str], output: Path
) -> None:
    """Draw the runs.

    Args:
        runs: one colour each.
        speeds: words a second of each run, or 0 for what its log says.
        panels: keys of PANELS; a panel with each of them.
        against: "updates", "minutes" or both.
        output: the file of the picture.

    Raises:
        ValueError: if matplotlib is missing.
    """
    pyplot = load_pyplot()
    # One kind of time: a row of panels; both: a row for each panel.
    shape = (1, len(panels)) if len(against) == 1 else (len(panels), len(against))
    figure, axes = pyplot.subplots(
        *shape, figsize=(4.5 * shape[1], 3.4 * shape[0]), squeeze=False, layout="constrained"
    )
    places = [(panel, time) for panel in panels for time in against]
    for axis, (panel, time) in zip(axes.flat, places, strict=True):
        for number, (run, speed) in enumerate(zip(runs, speeds, strict=True)):
            scale = 1.0 if time == "updates" else run.seconds(speed) / 60
            for split, values in lines_of(run, panel):
                style = dict(marker="o", markersize=2) if split == "valid" else dict(linewidth=0.6)
                axis.plot(
                    [update * scale for update in sorted(values)], [values[update] for update in sorted(values)],
                    color=f"C{number}", label=f"{run.name}, {split}", **style,
                )  # fmt: skip
        axis.set(xlabel=time, ylabel=PANELS[panel], yscale="log" if panel == "ppl" else "linear")
    legend_below(figure, axes[0, 0], min(3, len(runs)))
    save(figure, output)


def summary(run: Run, speed: float) -> str:
    """The last validation of a run, and the time of an update."""
    said = [
        f"{panel} {values[max(values)]:g}"
        for panel in PANELS
        for split, values in lines_of(run, panel)
        if split == "valid"
    ]
    try:
        time = f"; {run.seconds(speed):.2f} s an update"
    except ValueError:  # a log of a validation alone, which can be drawn against updates
        time = ""
    return f"{run.name}: {', '.join(said) or 'no validation yet'}{time}"


def _plot(args: argparse.Namespace, speeds: Sequence[float]) -> None:
    runs = [read_run(path) for path in args.runs]
    panels = args.panels or [panel for panel in PANELS if any(lines_of(run, panel) for run in runs)]
    draw(runs, speeds, panels, args.against, args.output)
    for run, speed in zip(runs, speeds, strict=True):
        print(summary(run, speed))
    print(f"wrote {args.output}")


def main(prog: str, arguments: List[str]) -> int:
    """Run the command; returns the exit code."""
    parser = console.help_parser(prog, DESCRIPTION)
    parser.add_argument("runs", nargs="+", type=Path, help="folders with a train.log, or logs")
    parser.add_argument("--output", type=Path, required=True, help="the picture, .svg or .png")
    parser.add_argument("--panels", nargs="+", choices=PANELS, help="default: all that the logs hold")
    parser.add_argument(
        "--against", nargs="+", choices=("updates", "minutes"), default=["updates"], help="what time is"
    )
    parser.add_argument("--words-per-second", type=float, nargs="+", help="one for each run")
    args = parser.parse_args(arguments)
    speeds = args.words_per_second or [0.0] * len(args.runs)
    if len(speeds) != len(args.runs):
        parser.error(f"{len(speeds)} speeds for {len(args.runs)} runs: give one for each")
    return console.run(prog, lambda: _plot(args, speeds), ValueError)
