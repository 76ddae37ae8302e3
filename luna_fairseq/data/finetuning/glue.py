"""``luna-fairseq prepare glue``: eight tasks of GLUE, as they are published."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from luna_fairseq.data.files import need_file, read_lines
from luna_fairseq.data.finetuning import command
from luna_fairseq.data.finetuning.output import Example, Output
from luna_fairseq.errors import PreparationError

DESCRIPTION = """A task of GLUE, or a table of your own in its layout, for --task sentence_prediction.

    luna-fairseq prepare glue --task SST-2 --data glue --pieces corpus --out sst2

--data is the folder of train.tsv and dev.tsv (and test.tsv, if there is one), or the one with a folder of the task's
name in it; SST-2 has the columns sentence and label, with a line of names.
"""


@dataclass(frozen=True)
class GlueTask:
    """Where a GLUE task keeps its texts; columns count from 0.

    Args:
        texts: the columns of the sentences in train and dev.
        label: the column of the label; -1 is the last one.
        labels: what stands there, class 0 first; none for a regression.
        columns: how many columns train and dev have at least.
        test_texts: the columns of the sentences in test, if they differ.
        header: whether train and dev begin with a line of names, as test always does.
        short_lines: whether lines with too few columns are known to occur, and are skipped.
        variants: endings of the names of dev and test.
    """

    texts: tuple[int, ...]
    label: int
    labels: tuple[str, ...]
    columns: int
    test_texts: tuple[int, ...] = ()
    header: bool = True
    short_lines: bool = False
    variants: tuple[str, ...] = ("",)


TWO = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")
GLUE = {
    "CoLA": GlueTask((3,), 1, TWO, 4, test_texts=(1,), header=False),
    "MNLI": GlueTask(
        (8, 9), -1, ("contradiction", "neutral", "entailment"), 12, variants=("_matched", "_mismatched")
    ),
    "MRPC": GlueTask((3, 4), 0, TWO, 5),
    "QNLI": GlueTask((1, 2), 3, ENTAILMENT, 4),
    "QQP": GlueTask((3, 4), 5, TWO, 6, test_texts=(1, 2), short_lines=True),
    "RTE": GlueTask((1, 2), 3, ENTAILMENT, 4),
    "SST-2": GlueTask((0,), 1, TWO, 2, test_texts=(1,)),
    "STS-B": GlueTask((7, 8), 9, (), 10),
}
# STS-B's similarity goes up to this; the model learns it as a number from 0 to 1.
MOST_SIMILAR = 5


def read_glue(task: GlueTask, path: Path, test: bool, short: list[int]) -> Iterator[Example]:
    """The examples of one file; ``short`` gets the numbers of the lines that are skipped."""
    columns = task.test_texts or task.texts if test else task.texts
    needed = max(columns) + 1 if test else task.columns
    for number, (_, line) in enumerate(read_lines(path), 1):
        cells = [cell.strip() for cell in line.split("\t")]
        if (number == 1 and (test or task.header)) or not any(cells):
            continue
        if len(cells) >= needed:
            label = None if test else glue_label(task, cells[task.label], f"{path}, line {number}")
            yield Example(tuple(cells[column] for column in columns), label)
        elif task.short_lines:
            short.append(number)
        else:
            raise PreparationError(f"{path}, line {number} has {len(cells)} columns and needs {needed}: mend it")


def glue_label(task: GlueTask, label: str, place: str) -> str:
    """The label, or for a regression the number to learn."""
    if task.labels:
        if label not in task.labels:
            raise PreparationError(f"{place}: the label {label!r} is none of {', '.join(task.labels)}: mend it")
        return label
    try:
        if 0 <= (score := float(label)) <= MOST_SIMILAR:
            return str(score / MOST_SIMILAR)
    except ValueError:
        pass
    raise PreparationError(f"{place}: the label {label!r} is not a number from 0 to {MOST_SIMILAR}: mend it")


def read(args: argparse.Namespace, out: Output) -> str:
    """Write the splits of a task of GLUE; returns options of fairseq-train."""
    task = GLUE[args.task]
    folder = args.data / args.task if (args.data / args.task).is_dir() else args.data
    if not (folder / "train.tsv").is_file():
        raise PreparationError(
            f"{args.data} has neither {args.task}/train.tsv nor train.tsv: name the folder of GLUE"
        )
    files = {"train": folder / "train.tsv"}
    for split, name in (("valid", "dev"), ("test", "test")):
        for number, variant in enumerate(task.variants):
            path = folder / f"{name}{variant}.tsv"
            if split == "valid" or path.is_file():
                files[f"{split}{number or ''}"] = need_file(path)
    out.begin(len(task.texts), task.labels)
    for split, path in files.items():
        short: list[int] = []
        out.write(split, read_glue(task, path, split.startswith("test"), short))
        if short:
            print(f"{path}: {len(short)} lines with too few columns are left out, the first is line {short[0]}")
    if "test" not in files:
        print("no test split: it is not there")
    classes = f"--num-classes {len(task.labels)}" if task.labels else "--num-classes 1 --regression-target"
    return f"--task sentence_prediction {classes}"


def main(prog: str, arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = command.new_parser(prog, DESCRIPTION)
    parser.add_argument("--task", choices=GLUE, required=True)
    return command.prepare(prog, "glue", parser.parse_args(arguments), read)
