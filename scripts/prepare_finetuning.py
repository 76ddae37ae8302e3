"""Labelled data to folders for fairseq's fine-tuning tasks, in the pieces of a pretrained model.

    prepare_finetuning.py glue --task SST-2 --data GLUE_FOLDER --pieces FOLDER --out OUT      sentence_prediction
    prepare_finetuning.py race --data RACE_FOLDER --pieces FOLDER --out OUT                   sentence_ranking
    prepare_finetuning.py csqa --data FOLDER --pieces FOLDER --out OUT                        sentence_ranking

FOLDER is an OUT of prepare_corpus.py, or has dict.txt beside sentencepiece.model, or dict.txt beside encoder.json and
vocab.bpe, as for a published model. OUT appears when it is finished. The data, as they are published:

    glue   SST-2/{train,dev,test}.tsv and so on; the folder of the task alone will do
    race   {train,dev,test}/{middle,high}/*.txt; the splits are valid (dev), test, test1 (middle) and test2 (high)
    csqa   {train,dev}_rand_split.jsonl; the test set has no answers and is left out
"""

import argparse
import itertools
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from text_pieces import (
    DICTIONARY,
    Pieces,
    PreparationError,
    check_known,
    copy_file,
    digest,
    fill_folder,
    listing,
    need_file,
    one_line,
    positive,
    quiet_import,
    read_dictionary,
    read_lines,
    run,
    split_builder,
    wrong_dictionary,
)

SMOKE_EXAMPLES = 300
BATCH = 1000
# A passage and an option fit 512 positions, with the symbols before, between and after them.
OPTION_PIECES = 128
PASSAGE_PIECES = 512 - OPTION_PIECES - 4


@dataclass(frozen=True)
class Example:
    """The texts of one example; the label is None if it is not known."""

    texts: tuple[str, ...]
    label: str | None


# ------------------------------------------------------------------------------------------------- GLUE
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
    raise PreparationError(f"{place}: the label {label!r} is no number from 0 to {MOST_SIMILAR}: mend it")


def glue(args: argparse.Namespace, out: "Output") -> str:
    """A GLUE task; returns options of fairseq-train."""
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


# ------------------------------------------------------------------------------------- multiple choice
def read_race(folders: Sequence[Path]) -> Iterator[Example]:
    """The questions of RACE: the passage, then the question with each option."""
    for folder in folders:
        for path in sorted(folder.glob("*.txt"), key=lambda path: (len(path.stem), path.stem)):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                passage = _spaced(content["article"])
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


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _answered(question: str, option: str) -> str:
    if "_" in question:
        return _spaced(re.sub("_+", lambda _: option, question))
    return _spaced(f"{question} {option}")


def choice(answer: Any, letters: Sequence[str], place: str) -> str:
    """The number of a letter."""
    if not isinstance(answer, str) or answer not in list(letters):
        raise PreparationError(f"{place}: the label {answer!r} is none of {', '.join(letters)}: mend it")
    return str(list(letters).index(answer))


def race(args: argparse.Namespace, out: "Output") -> str:
    """RACE; returns options of fairseq-train."""
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
            answers = [f"A: {_spaced(option['text'])}" for option in question["choices"]]
            stem = f"Q: {_spaced(question['stem'])}"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PreparationError(f"{place} is no question with choices and answerKey: {one_line(error)}") from error
        if len(answers) != 5:
            raise PreparationError(f"{place} has {len(answers)} choices, and CommonsenseQA has 5: mend it")
        yield Example((stem, *answers), choice(answer, letters, place))


def csqa(args: argparse.Namespace, out: "Output") -> str:
    """CommonsenseQA; returns options of fairseq-train."""
    names = {"train": "train_rand_split.jsonl", "valid": "dev_rand_split.jsonl"}
    files = {split: need_file(args.data / name) for split, name in names.items()}
    out.begin(6, ())
    for split, path in files.items():
        out.write(split, read_csqa(path))
    if (args.data / "test_rand_split_no_answers.jsonl").exists():
        print("no test split: test_rand_split_no_answers.jsonl has no answers")
    return "--task sentence_ranking --num-classes 5"


# ----------------------------------------------------------------------------------------------- output
class Output:
    """A data folder in the making.

    Args:
        folder: where to write.
        pieces: the files of the encoder.
        dictionary: the dict.txt that belongs to them.
        limit: write at most so many examples of every split.
    """

    def __init__(self, folder: Path, pieces: Pieces, dictionary: Path, limit: int | None) -> None:
        self._folder, self._pieces, self._source, self._limit = folder, pieces, dictionary, limit

    def begin(self, inputs: int, labels: Sequence[str], first_pieces: int | None = None) -> None:
        """Load the pieces and make the folders.

        Args:
            inputs: how many texts an example has.
            labels: the classes; without them, labels are numbers in a text file.
            first_pieces: keep only so many pieces of the first text.
        """
        read_dictionary(self._source)  # its errors are clearer than fairseq's
        self._encoder = self._pieces.load()
        with quiet_import():
            from fairseq.data import Dictionary
        self._dictionary, self._labels = Dictionary.load(str(self._source)), Dictionary()
        self._inputs = [self._folder / f"input{number}" for number in range(inputs)]
        self._first_pieces = first_pieces
        for folder in self._inputs:
            folder.mkdir()
            shutil.copyfile(self._source, folder / DICTIONARY)
        (self._folder / "label").mkdir()
        for label in labels:
            self._labels.add_symbol(label, n=0)

    def write(self, split: str, examples: Iterable[Example]) -> None:
        """Binarise one split."""
        counts: Counter[str] = Counter()
        labels: list[str] = []
        examples = itertools.islice(examples, self._limit)
        with ExitStack() as stack:
            inputs = [split_builder(stack, folder / split, self._dictionary) for folder in self._inputs]
            while batch := list(itertools.islice(examples, BATCH)):
                for number, target in enumerate(inputs):
                    for ids in self._encode([example.texts[number] for example in batch], number):
                        target.add_item(ids)
                        counts.update(pieces=len(ids) - 1, unknown=int((ids == self._dictionary.unk()).sum()))
                counts.update(examples=len(batch))
                labels += [example.label for example in batch if example.label is not None]
        if not counts["examples"]:
            raise PreparationError(f"there are no examples for {split}: name a folder that has some")
        if split == "train":
            check_known(counts["unknown"], counts["pieces"], split, wrong_dictionary(self._source))
        self._write_labels(split, labels)
        share = counts["unknown"] / max(1, counts["pieces"])
        print(f"{split}: {counts['examples']:,} examples, {counts['pieces']:,} pieces, {share:.2%} unknown")

    def _write_labels(self, split: str, labels: Sequence[str]) -> None:
        folder = self._folder / "label"
        if not labels:
            return
        if len(self._labels) == self._labels.nspecial:
            text = "".join(f"{label}\n" for label in labels)
            (folder / f"{split}.label").write_text(text, encoding="utf-8")
            return
        with ExitStack() as stack:
            target = split_builder(stack, folder / split, self._labels)
            for label in labels:
                target.add_item(self._labels.encode_line(label, add_if_not_exist=False))
        if split == "train":
            for label in labels:
                self._labels.add_symbol(label)
            self._labels.save(str(folder / DICTIONARY))

    def _encode(self, texts: Sequence[str], number: int) -> Iterator[Any]:
        different = list(dict.fromkeys(texts))  # the questions about a passage follow one another
        ids = {}
        for text, pieces in zip(different, self._encoder.encode(different), strict=True):
            if number == 0 and self._first_pieces is not None:
                pieces = " ".join(pieces.split()[: self._first_pieces])
            ids[text] = self._dictionary.encode_line(pieces, add_if_not_exist=False)
        return (ids[text] for text in texts)


READERS = {"glue": glue, "race": race, "csqa": csqa}


def prepare(args: argparse.Namespace) -> None:
    """Make OUT, or see that it is there."""
    if not args.data.is_dir():
        raise PreparationError(f"the folder {args.data} does not exist: name the one with the data")
    pieces = Pieces.of_folder(args.pieces)
    dictionary = args.pieces / DICTIONARY
    settings = {"script": "prepare_finetuning.py", "data": args.kind, "smoke": args.smoke}
    settings.update({name: getattr(args, name) for name in ("task", "max_passage_pieces") if name in args})
    folder = args.data / args.task if "task" in args and (args.data / args.task).is_dir() else args.data
    files = (path for path in sorted(folder.rglob("*")) if path.suffix in (".tsv", ".txt", ".jsonl"))
    settings["files"] = listing(files, folder)
    settings.update({name: digest(path) for name, path in {**pieces.files, DICTIONARY: dictionary}.items()})

    def fill(folder: Path) -> str:
        options = READERS[args.kind](args, Output(folder, pieces, dictionary, SMOKE_EXAMPLES if args.smoke else None))
        # Beside the data, so that whoever loads the fine-tuned model has its pieces.
        for name, path in {**pieces.files, DICTIONARY: dictionary}.items():
            copy_file(path, folder / name)
        return f"{options} --init-token 0 --separator-token 2"

    fill_folder(args.out, args.smoke, settings, fill)


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare OUT; returns the exit code."""
    parser = argparse.ArgumentParser(description="labelled data to folders for fairseq's fine-tuning tasks")
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, reader in READERS.items():
        options = kinds.add_parser(kind, help=(reader.__doc__ or "").split(";")[0])
        options.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the published data")
        options.add_argument("--pieces", type=Path, required=True, metavar="FOLDER", help="OUT of prepare_corpus.py")
        options.add_argument("--out", type=Path, required=True, help="folder to write")
        options.add_argument("--smoke", action="store_true", help=f"{SMOKE_EXAMPLES} examples a split, to OUT/smoke")
        if kind == "glue":
            options.add_argument("--task", choices=GLUE, required=True)
        if kind == "race":
            options.add_argument("--max-passage-pieces", type=positive, default=PASSAGE_PIECES, metavar="N")
    args = parser.parse_args(argv)
    return run("prepare_finetuning.py", lambda: prepare(args))


if __name__ == "__main__":
    sys.exit(main())
