"""``luna-fairseq prepare race``: questions about a passage with four answers, as they are published."""

import argparse
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from luna_fairseq.console import one_line, positive
from luna_fairseq.data.finetuning import command
from luna_fairseq.data.finetuning.choices import choice, spaced
from luna_fairseq.data.finetuning.output import Example, Output
from luna_fairseq.errors import PreparationError

# A passage and an option fit 512 positions, with the symbols before, between and after them.
OPTION_PIECES = 128
PASSAGE_PIECES = 512 - OPTION_PIECES - 4

DESCRIPTION = """RACE, multiple choice, for --task sentence_ranking.

    luna-fairseq prepare race --data RACE --pieces corpus --out race
"""


def read_race(folders: Sequence[Path]) -> Iterator[Example]:
    """The questions of RACE: the passage, then the question with each option."""
    for folder in folders:
        for path in sorted(folder.glob("*.txt"), key=lambda path: (len(path.stem), path.stem)):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                passage = spaced(content["article"])
                rows = [
                    ((passage, *(_answered(question, option) for option in options)), answer)
                    for question, options, answer in zip(
                        content["questions"], content["options"], content["answers"], strict=True
                    )
                ]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise PreparationError(
                    f"{path} is not a file of RACE with article, questions, options and answers: {one_line(error)}"
                ) from error
            for number, (texts, answer) in enumerate(rows, 1):
                place = f"{path}, question {number}"
                if len(texts) != 5:
                    raise PreparationError(f"{place} has {len(texts) - 1} options, and RACE has 4: mend it")
                yield Example(texts, choice(answer, "ABCD", place))


def _answered(question: str, option: str) -> str:
    if "_" in question:
        return spaced(re.sub("_+", lambda _: option, question))
    return spaced(f"{question} {option}")


def read(args: argparse.Namespace, out: Output) -> str:
    """Write the splits of RACE; returns options of fairseq-train."""
    splits = {"train": ["train/middle", "train/high"], "valid": ["dev/middle", "dev/high"]}
    if (args.data / "test").is_dir():
        splits.update(test=["test/middle", "test/high"], test1=["test/middle"], test2=["test/high"])
    folders = {split: [args.data / name for name in names] for split, names in splits.items()}
    for folder in itertools.chain.from_iterable(folders.values()):
        if not folder.is_dir():
            raise PreparationError(f"the folder {folder} does not exist: name the folder of RACE")
    out.begin(5, (), first_pieces=args.max_passage_pieces)
    for split, parts in folders.items():
        out.write(split, read_race(parts))
    if "test" not in folders:
        print("no test split: it is not there")
    return f"--task sentence_ranking --num-classes 4 --max-option-length {OPTION_PIECES}"


def main(prog: str, arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = command.new_parser(prog, DESCRIPTION)
    parser.add_argument("--max-passage-pieces", type=positive, default=PASSAGE_PIECES, metavar="N")
    return command.prepare(prog, "race", parser.parse_args(arguments), read)
