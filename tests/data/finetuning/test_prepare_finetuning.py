"""Labelled data to fine-tuning data: the right columns, labels and splits, as fairseq's own tasks read them."""

import json
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest
import sentencepiece
from fairseq.data import Dictionary, data_utils
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask
from fairseq.tasks.sentence_ranking import SentenceRankingTask

from support.gpt2_files import tiny_gpt2
from support.running import run_command


def prepare(*args: Any, code: int = 0) -> str:
    return run_command("luna-fairseq", "prepare", *args, code=code)


def error(*args: Any) -> str:
    """The one line that the command says when it fails."""
    output = prepare(*args, code=1)
    assert "Traceback" not in output
    lines = output.rstrip("\n").splitlines()
    start = f"luna-fairseq prepare {args[0]}: "
    assert lines[-1].startswith(start)
    return lines[-1].removeprefix(start)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like an OUT of luna-fairseq prepare corpus."""
    folder = tmp_path_factory.mktemp("pieces")
    text = ["the quick brown fox jumps over a lazy dog", "0 1 2 3 4 5 6 7 8 9", "A: Q: B ? . , _"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_prefix=str(folder / "sentencepiece"),
        model_type="bpe",
        vocab_size=90,
        character_coverage=1.0,
        minloglevel=2,
    )
    (folder / "sentencepiece.vocab").unlink()
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.model"))
    names = [model.id_to_piece(number) for number in range(3, len(model))]
    (folder / "dict.txt").write_text("".join(f"{name} 1\n" for name in names))
    return folder


class Reader:
    """Reads back what was written."""

    def __init__(self, pieces: Path, out: Path) -> None:
        self.out = out
        self.model = sentencepiece.SentencePieceProcessor(model_file=str(pieces / "sentencepiece.model"))

    def encoded(self, name: str, split: str) -> List[str]:
        dictionary = Dictionary.load(str(self.out / name / "dict.txt"))
        data = data_utils.load_indexed_dataset(str(self.out / name / split), dictionary)
        assert data is not None
        assert all(ids[-1] == dictionary.eos() for ids in data)
        return [dictionary.string(ids) for ids in data]

    def texts(self, name: str, split: str) -> List[str]:
        lines = self.encoded(name, split)
        texts = [self.model.decode(line.split()) for line in lines]
        assert [" ".join(self.model.encode(text, out_type=str)) for text in texts] == lines
        return texts

    def labels(self, split: str) -> List[str]:
        """In words, or as the lines of the text file."""
        text = self.out / "label" / f"{split}.label"
        if text.exists():
            assert not (self.out / "label" / f"{split}.bin").exists()
            return text.read_text().splitlines()
        return self.encoded("label", split)


# ------------------------------------------------------------------------------------------------- GLUE
def cells(columns: int, split: str, row: int, **labels: str) -> str:
    """A line whose every cell says where it is, but for the labels: c3 is column 3."""
    line = [f"{split} row {row} column {column}" for column in range(columns)]
    for name, label in labels.items():
        line[int(name[1:])] = label
    return "\t".join(line) + "\n"


def write_glue(folder: Path, task: str, labels: List[str]) -> None:
    """A task as it is published: train and dev of three lines, test of two."""

    def write(name: str, lines: List[str], header: bool = True) -> None:
        (folder / f"{name}.tsv").write_text("".join(["the header\n"] * header + lines), encoding="utf-8")

    folder.mkdir(parents=True)
    columns, label = {
        "CoLA": (4, "c1"),
        "MNLI": (12, "c11"),
        "MRPC": (5, "c0"),
        "QNLI": (4, "c3"),
        "QQP": (6, "c5"),
        "RTE": (4, "c3"),
        "SST-2": (2, "c1"),
        "STS-B": (10, "c9"),
    }[task]
    rows = list(enumerate(labels))
    write("train", [cells(columns, "train", n, **{label: name}) for n, name in rows], header=task != "CoLA")
    if task == "MNLI":
        for variant in ("matched", "mismatched"):
            # Here the columns of five single judgements come before the label.
            write(f"dev_{variant}", [cells(16, variant, n, c15=name) for n, name in rows])
            write(f"test_{variant}", [cells(10, variant, n) for n in range(2)])
        return
    write("dev", [cells(columns, "dev", n, **{label: name}) for n, name in rows], header=task != "CoLA")
    test = {"CoLA": 2, "MRPC": 5, "QNLI": 3, "QQP": 3, "RTE": 3, "SST-2": 2, "STS-B": 9}[task]
    write("test", [cells(test, "test", n) for n in range(2)])


TWO, ENTAILMENT = ["1", "0", "1"], ["not_entailment", "entailment", "not_entailment"]


@pytest.mark.parametrize(
    ("task", "labels", "classes", "columns", "test_columns"),
    [
        ("CoLA", TWO, ["0", "1"], [3], [1]),
        (
            "MNLI",
            ["neutral", "entailment", "contradiction"],
            ["contradiction", "neutral", "entailment"],
            [8, 9],
            [8, 9],
        ),
        ("MRPC", TWO, ["0", "1"], [3, 4], [3, 4]),
        ("QNLI", ENTAILMENT, ["entailment", "not_entailment"], [1, 2], [1, 2]),
        ("QQP", TWO, ["0", "1"], [3, 4], [1, 2]),
        ("RTE", ENTAILMENT, ["entailment", "not_entailment"], [1, 2], [1, 2]),
        ("SST-2", TWO, ["0", "1"], [0], [1]),
        ("STS-B", ["5.000", "1.25", "0"], None, [7, 8], [7, 8]),
    ],
)
def test_glue(
    task: str,
    labels: List[str],
    classes: Optional[List[str]],
    columns: List[int],
    test_columns: List[int],
    pieces: Path,
    tmp_path: Path,
) -> None:
    write_glue(tmp_path / "glue" / task, task, labels)
    out = tmp_path / "out"
    output = prepare("glue", "--task", task, "--data", tmp_path / "glue", "--pieces", pieces, "--out", out)
    size = "--num-classes 1 --regression-target" if classes is None else f"--num-classes {len(classes)}"
    last = f"data for --task sentence_prediction {size} --init-token 0 --separator-token 2: {out}"
    assert output.splitlines()[-1] == last

    splits = {"train": "train", "valid": "dev", "test": "test"}
    if task == "MNLI":
        splits = {"train": "train", "valid": "matched", "valid1": "mismatched"}
        splits.update(test="matched", test1="mismatched")
    reader = Reader(pieces, out)
    wanted = [str(float(label) / 5) for label in labels] if classes is None else labels
    for split, name in splits.items():
        test = split.startswith("test")
        for number, column in enumerate(test_columns if test else columns):
            expected = [f"{name} row {row} column {column}" for row in range(2 if test else 3)]
            assert reader.texts(f"input{number}", split) == expected
        if test:
            assert not list((out / "label").glob(f"{split}.*"))
        else:
            assert reader.labels(split) == wanted
    assert sorted(path.name for path in out.iterdir()) == [
        "dict.txt",
        *(f"input{number}" for number in range(len(columns))),
        "label",
        "sentencepiece.model",
        "settings.json",
    ]

    regression = classes is None
    config = SentencePredictionConfig(data=str(out), num_classes=len(classes or "1"), init_token=0, separator_token=2)
    config.regression_target, config.seed, config.no_shuffle = regression, 1, True
    config.classification_head_name = "head"
    fairseq_task = SentencePredictionTask.setup_task(config)
    for split in splits:
        fairseq_task.load_dataset(split)
    data = fairseq_task.dataset("valid")
    targets = data.collater([data[number] for number in range(3)])["target"].flatten().tolist()
    expected_targets = [float(label) / 5 for label in labels] if regression else [classes.index(x) for x in labels]
    assert targets == pytest.approx(expected_targets)
    assert "target" not in fairseq_task.dataset("test")[0]


def test_qqp_lines_with_too_few_columns(pieces: Path, tmp_path: Path) -> None:
    write_glue(tmp_path / "QQP", "QQP", TWO)
    with open(tmp_path / "QQP" / "train.tsv", "a") as file:
        file.write("a question that\nends on\tanother line\n" + cells(6, "train", 3, c5="0"))
    # The folder of the task itself will do.
    options = ["glue", "--task", "QQP", "--data", tmp_path / "QQP", "--pieces", pieces, "--out", tmp_path / "out"]
    output = prepare(*options)
    path = tmp_path / "QQP" / "train.tsv"
    assert f"{path}: 2 lines with too few columns are left out, the first is line 5" in output
    reader = Reader(pieces, tmp_path / "out")
    assert reader.texts("input1", "train")[3:] == ["train row 3 column 4"]
    assert reader.labels("train") == [*TWO, "0"]
    assert reader.labels("valid") == TWO


def test_sst2_as_it_is_with_smoke_and_again(pieces: Path, tmp_path: Path) -> None:
    """A folder under another name without test; a smoke run before the real one; a run that was killed."""
    data, out = tmp_path / "sst", tmp_path / "out"
    write_glue(data, "SST-2", TWO)
    (data / "test.tsv").unlink()
    with open(data / "train.tsv", "a") as file:
        file.write("the dog \t1\n" * 400)
    options = ["glue", "--task", "SST-2", "--data", data, "--pieces", pieces, "--out", out]
    assert "train: 300 examples" in prepare(*options, "--smoke")
    assert len(Reader(pieces, out / "smoke").texts("input0", "train")) == 300
    smoke = tmp_path / ".out.tmp-1"
    smoke.mkdir()
    (smoke / "input0").write_text("half")
    output = prepare(*options)
    assert "no test split: it is not there" in output
    assert "train: 403 examples" in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "sst"]
    assert sorted(path.name for path in out.iterdir()) == [
        "dict.txt", "input0", "label", "sentencepiece.model", "settings.json", "smoke",
    ]  # fmt: skip
    before = (out / "input0" / "train.bin").stat().st_mtime_ns
    assert prepare(*options) == f"already prepared: {out}\n"
    assert (out / "input0" / "train.bin").stat().st_mtime_ns == before
    said = error(*options, "--task", "CoLA")
    assert said == f'{out} was begun with task "SST-2", not "CoLA": repeat it, or name another folder'


def test_gpt2_pieces(tmp_path: Path) -> None:
    """A published model's dictionary with GPT-2's files beside it."""
    gpt2 = tmp_path / "gpt2"
    tiny_gpt2(gpt2)
    write_glue(tmp_path / "RTE", "RTE", ENTAILMENT)
    out = tmp_path / "out"
    prepare("glue", "--task", "RTE", "--data", tmp_path, "--pieces", gpt2, "--out", out)
    assert (out / "input0" / "dict.txt").read_bytes() == (gpt2 / "dict.txt").read_bytes()
    config = GPT2BPEConfig(gpt2_encoder_json=str(gpt2 / "encoder.json"), gpt2_vocab_bpe=str(gpt2 / "vocab.bpe"))
    dictionary = Dictionary.load(str(gpt2 / "dict.txt"))
    data = data_utils.load_indexed_dataset(str(out / "input0" / "train"), dictionary)
    assert [GPT2BPE(config).decode(dictionary.string(ids)) for ids in data] == [
        f"train row {row} column 1" for row in range(3)
    ]


# ------------------------------------------------------------------------------------- multiple choice
def write_race(folder: Path) -> None:
    for split, word in (("train", "quick"), ("dev", "brown"), ("test", "lazy")):
        for level in ("middle", "high"):
            (folder / split / level).mkdir(parents=True)
            for number in (10, 9):
                content = {
                    "article": f"the {word}\n dog  {level} {number} " + "fox " * 40,
                    "questions": ["what is it ?", "a dog _ over a fox ."],
                    "options": [["a", "b", "c", "d"], ["jumps", "is", "lazy", "fox"]],
                    "answers": ["B", "D"],
                    "id": f"{level}{number}.txt",
                }
                (folder / split / level / f"{number}.txt").write_text(json.dumps(content))


def ranking_task(out: Path, classes: int) -> SentenceRankingTask:
    return SentenceRankingTask.setup_task(
        Namespace(
            data=str(out),
            criterion="sentence_ranking",
            num_classes=classes,
            init_token=0,
            separator_token=2,
            max_option_length=128,
            dataset_impl=None,
            shorten_method="none",
            shorten_data_split_list="",
            max_positions=512,
            seed=1,
            no_shuffle=True,
        )
    )


def test_race(pieces: Path, tmp_path: Path) -> None:
    write_race(tmp_path / "race")
    out = tmp_path / "out"
    options = ["race", "--data", tmp_path / "race", "--pieces", pieces, "--max-passage-pieces", 30]
    output = prepare(*options, "--out", out)
    last = "--task sentence_ranking --num-classes 4 --max-option-length 128 --init-token 0 --separator-token 2"
    assert output.splitlines()[-1] == f"data for {last}: {out}"
    reader = Reader(pieces, out)
    whole = {"train": "quick", "valid": "brown", "test": "lazy", "test1": "lazy", "test2": "lazy"}
    for split, word in whole.items():
        levels = {"test1": ["middle"], "test2": ["high"]}.get(split, ["middle", "high"])
        # Article 9 before article 10, two questions each.
        starts = [f"the {word} dog {level} {number} fox fox" for level in levels for number in (9, 9, 10, 10)]
        passages = reader.encoded("input0", split)
        assert len(passages) == len(starts)
        for passage, start in zip(passages, starts, strict=True):
            text = reader.model.decode(passage.split())
            assert text.startswith(start)
            assert len(passage.split()) == 30
        for number, (option, filler) in enumerate(zip("abcd", ["jumps", "is", "lazy", "fox"], strict=True), 1):
            answers = [f"what is it ? {option}", f"a dog {filler} over a fox ."] * (len(starts) // 2)
            assert reader.texts(f"input{number}", split) == answers
        assert reader.labels(split) == ["1", "3"] * (len(starts) // 2)
    assert not (out / "input5").exists()

    task = ranking_task(out, 4)
    task.load_dataset("valid")
    data = task.dataset("valid")
    assert data.collater([data[number] for number in range(3)])["target"].tolist() == [1, 3, 1]
    option = data[0]["net_input3.src_tokens"]
    dictionary = task.source_dictionary
    expected = [0, *dictionary.encode_line(reader.encoded("input3", "valid")[0], add_if_not_exist=False).tolist(), 2]
    assert option[: len(expected)].tolist() == expected
    assert len(option) == len(expected) + 30 + 1


def test_race_fits_512_positions(pieces: Path, tmp_path: Path) -> None:
    write_race(tmp_path / "race")
    shutil.rmtree(tmp_path / "race" / "test")
    path = tmp_path / "race" / "train" / "high" / "9.txt"
    content = json.loads(path.read_text())
    content.update(article="fox " * 1000, options=[["dog " * 200] * 4] * 2)
    path.write_text(json.dumps(content))
    output = prepare("race", "--data", tmp_path / "race", "--pieces", pieces, "--out", tmp_path / "out")
    assert "no test split: it is not there" in output
    task = ranking_task(tmp_path / "out", 4)
    task.load_dataset("train")
    data = task.dataset("train")
    assert max(len(data[number]["net_input1.src_tokens"]) for number in range(len(data))) == 510


def csqa_line(number: int, answer: Optional[str] = "C") -> str:
    question: Dict[str, Any] = {"stem": f"what is {number} ?", "question_concept": "dog"}
    question["choices"] = [{"label": letter, "text": f"fox {n}"} for n, letter in enumerate("ABCDE")]
    return json.dumps({"id": str(number), "question": question, **({"answerKey": answer} if answer else {})}) + "\n"


def test_csqa(pieces: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "csqa", tmp_path / "out"
    data.mkdir()
    (data / "train_rand_split.jsonl").write_text(csqa_line(0, "E") + csqa_line(1, "A"))
    (data / "dev_rand_split.jsonl").write_text(csqa_line(2))
    (data / "test_rand_split_no_answers.jsonl").write_text(csqa_line(3, None))
    output = prepare("csqa", "--data", data, "--pieces", pieces, "--out", out)
    assert "no test split: test_rand_split_no_answers.jsonl has no answers" in output
    assert f"data for --task sentence_ranking --num-classes 5 --init-token 0 --separator-token 2: {out}" in output
    reader = Reader(pieces, out)
    assert reader.texts("input0", "train") == ["Q: what is 0 ?", "Q: what is 1 ?"]
    assert reader.texts("input0", "valid") == ["Q: what is 2 ?"]
    for number in range(1, 6):
        assert reader.texts(f"input{number}", "train") == [f"A: fox {number - 1}"] * 2
    assert reader.labels("train") == ["4", "0"]
    assert reader.labels("valid") == ["2"]
    task = ranking_task(out, 5)
    task.load_dataset("train")
    data_set = task.dataset("train")
    assert data_set.collater([data_set[0], data_set[1]])["target"].tolist() == [4, 0]


# ------------------------------------------------------------------------------------------------- errors
def test_missing_folders_and_files(pieces: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "SST-2", tmp_path / "out"
    write_glue(data, "SST-2", TWO)
    usual = ["glue", "--task", "SST-2", "--data", data, "--pieces", pieces, "--out", out]
    nowhere = tmp_path / "nowhere"
    assert error(*usual, "--data", nowhere) == f"the folder {nowhere} does not exist: name the one with the data"
    assert error(*usual, "--pieces", nowhere).startswith(f"the folder {nowhere} does not exist: name a folder of")
    empty = tmp_path / "empty"
    empty.mkdir()
    said = error(*usual, "--pieces", empty)
    assert said.startswith(f"{empty} has no dict.txt: name a folder of luna-fairseq prepare corpus")
    shutil.copy(pieces / "dict.txt", empty)
    assert error(*usual, "--pieces", empty).startswith(
        f"{empty} has neither sentencepiece.model nor encoder.json and"
    )
    (empty / "encoder.json").write_text("{}")
    assert error(*usual, "--pieces", empty) == f"the file {empty}/vocab.bpe does not exist: name one that does"
    assert error(*usual, "--data", empty).startswith(f"{empty} has neither SST-2/train.tsv nor train.tsv: name the")
    (data / "dev.tsv").unlink()
    assert error(*usual) == f"the file {data}/dev.tsv does not exist: name one that does"
    assert error(*usual, "--out", empty).startswith(f"{empty} has a ")
    write_race(tmp_path / "race")
    shutil.rmtree(tmp_path / "race" / "dev" / "high")
    said = error("race", "--data", tmp_path / "race", "--pieces", pieces, "--out", out)
    assert said == f"the folder {tmp_path}/race/dev/high does not exist: name the folder of RACE"
    said = error("csqa", "--data", empty, "--pieces", pieces, "--out", out)
    assert said == f"the file {empty}/train_rand_split.jsonl does not exist: name one that does"
    assert not list(tmp_path.glob(".out*"))
    assert not out.exists()


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        ("SST-2", "the dog\tgood\n", "line 5: the label 'good' is none of 0, 1: mend it"),
        ("SST-2", "the dog\n", "line 5 has 1 columns and needs 2: mend it"),
        ("STS-B", cells(10, "train", 3, c9="7"), "line 5: the label '7' is not a number from 0 to 5: mend it"),
        ("QQP", cells(6, "train", 3, c5="yes"), "line 5: the label 'yes' is none of 0, 1: mend it"),
    ],
)
def test_bad_lines_of_glue(task: str, line: str, message: str, pieces: Path, tmp_path: Path) -> None:
    write_glue(tmp_path / task, task, ["1", "0", "1"])
    with open(tmp_path / task / "train.tsv", "a") as file:
        file.write(line)
    said = error("glue", "--task", task, "--data", tmp_path, "--pieces", pieces, "--out", tmp_path / "out")
    assert said == f"{tmp_path}/{task}/train.tsv, {message}"
    assert [path.name for path in tmp_path.iterdir()] == [task]


def test_bad_files_of_race_and_csqa(pieces: Path, tmp_path: Path) -> None:
    write_race(tmp_path / "race")
    options = ["race", "--data", tmp_path / "race", "--pieces", pieces, "--out", tmp_path / "out"]
    path = tmp_path / "race" / "train" / "high" / "9.txt"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "answers": ["B", "E"]}))
    assert error(*options) == f"{path}, question 2: the label 'E' is none of A, B, C, D: mend it"
    path.write_text(json.dumps({**content, "answers": ["B"]}))
    assert error(*options).startswith(f"{path} is not a file of RACE with article, questions, options and answers: ")
    data = tmp_path / "csqa"
    data.mkdir()
    (data / "dev_rand_split.jsonl").write_text(csqa_line(0))
    (data / "train_rand_split.jsonl").write_text(csqa_line(0) + csqa_line(1, None))
    options = ["csqa", "--data", data, "--pieces", pieces, "--out", tmp_path / "out"]
    said = error(*options)
    assert said.startswith(f"{data}/train_rand_split.jsonl, line 2 is not a question with choices and answerKey")
    (data / "train_rand_split.jsonl").write_text(csqa_line(0) + csqa_line(1, "F"))
    said = error(*options)
    assert said == f"{data}/train_rand_split.jsonl, line 2: the label 'F' is none of A, B, C, D, E: mend it"


def test_dictionary_of_other_pieces(pieces: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(pieces, other)
    lines = (other / "dict.txt").read_text().splitlines(keepends=True)
    (other / "dict.txt").write_text("".join(lines[: len(lines) // 2]))
    write_glue(tmp_path / "RTE", "RTE", ENTAILMENT)
    options = ["glue", "--task", "RTE", "--data", tmp_path, "--pieces", other, "--out", tmp_path / "out"]
    said = error(*options)
    assert (
        f"of the pieces of train are <unk>: the dictionary {other}/dict.txt does not belong to these pieces" in said
    )
    (other / "dict.txt").write_text("".join([*lines, lines[0]]))
    assert (
        error(*options)
        == f"{other}/dict.txt, line {len(lines) + 1}: fairseq has {lines[0].split()[0]!r} already: remove the line"
    )
    assert not (tmp_path / "out").exists()
