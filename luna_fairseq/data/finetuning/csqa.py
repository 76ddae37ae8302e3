"""``luna-fairseq prepare csqa``: the questions of CommonsenseQA with five answers, as they are published."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from luna_fairseq.console import one_line
from luna_fairseq.data.files import need_file, read_lines
from luna_fairseq.data.finetuning import command
from luna_fairseq.data.finetuning.choices import choice, spaced
from luna_fairseq.data.finetuning.output import Example, Output
from luna_fairseq.errors import PreparationError

DESCRIPTION = """CommonsenseQA, multiple choice, for --task sentence_ranking.

    luna-fairseq prepare csqa --data csqa-files --pieces corpus --out csqa
"""


def read_csqa(path: Path) -> Iterator[Example]:
    """The questions of CommonsenseQA: the question, then each answer."""
    for number, (_, line) in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            content = json.loads(line)
            question, answer = content["question"], content["answerKey"]
            letters = [option["label"] for option in question["choices"]]
            answers = [f"A: {spaced(option['text'])}" for option in question["choices"]]
            stem = f"Q: {spaced(question['stem'])}"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PreparationError(
                f"{place} is not a question with choices and answerKey: {one_line(error)}"
            ) from error
        if len(answers) != 5:
            raise PreparationError(f"{place} has {len(answers)} choices, and CommonsenseQA has 5: mend it")
        yield Example((stem, *answers), choice(answer, letters, place))


def read(args: argparse.Namespace, out: Output) -> str:
    """Write the splits of CommonsenseQA; returns options of fairseq-train."""
    names = {"train": "train_rand_split.jsonl", "valid": "dev_rand_split.jsonl"}
    files = {split: need_file(args.data / name) for split, name in names.items()}
    out.begin(6, ())
    for split, path in files.items():
        out.write(split, read_csqa(path))
    if (args.data / "test_rand_split_no_answers.jsonl").exists():
        print("no test split: test_rand_split_no_answers.jsonl has no answers")
    return "--task sentence_ranking --num-classes 5"


def main(prog: str, arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = command.new_parser(prog, DESCRIPTION)
    return command.prepare(prog, "csqa", parser.parse_args(arguments), read)
