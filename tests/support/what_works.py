"""What fairseq does with a Transformer, tried with Luna; the cases are in what_is_tried.py.

Each case is a command that is run: two updates and a validation, or the decoding of a test set. What comes out of it
is a row of docs/what-works.md, and ``tests/commands/test_what_works.py`` runs each again. Where Luna fails without
saying why, fairseq's own architecture is run in its place: if it fails, too, the fault is not ours.

``PYTHONPATH=tests:. python -m support.what_works`` runs all of them, and prints the page's tables; with words behind
it only those cases whose names begin with one of them.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, Iterable, List, Sequence, Tuple

from support.forks import commands
from support.running import ADAM, USER_DIR, Corpus, LMCorpus, run_command
from support.what_is_tried import LANGUAGE, TRANSLATION, Case, all_cases

OURS = "--projection-length"  # fairseq's own do not know it
_HERE = re.compile(r"/[^\s'\"]+/")
_NAME_OF_ERROR = re.compile(r"^[\w.-]+(Error|Exception|Mismatch|InUse)(: |$)")


class Data:
    """Data folders in every form that the cases want, and a trained model; all are made once.

    Args:
        folder: an empty one.
        corpus: of sentence pairs.
        lm_corpus: of text.
    """

    def __init__(self, folder: Path, corpus: Corpus, lm_corpus: LMCorpus) -> None:
        self.folder, self.corpus, shards = folder, corpus, lm_corpus.folder
        self.folders: Dict[str, str] = {
            "pairs": str(corpus.data), "shards": lm_corpus.shards, "shard": f"{shards}/shard0", "none": "",
            "labelled": f"{shards}/pairs", "choice": f"{shards}/choice",
        }  # fmt: skip
        self._of_pairs()
        self._of_text(shards)
        made = {
            "FILE": self._embeddings(),
            "FOLDER": folder / "made",
            "NEW": folder / "new",
            "MODEL": self._language_model(),
        }
        self.values = {name: str(path) for name, path in made.items()}

    def _of_pairs(self) -> None:
        text, data = self.corpus.text, self.corpus.data
        prefixes = [f"--{split}pref={text}/{split}.spm.de" for split in ("train", "valid")]
        run_command(
            *("fairseq-preprocess", "--only-source", f"--srcdict={data}/dict.de.txt"),
            *(f"--destdir={self.folder}/text", *prefixes),
        )
        self.folders["text"] = f"{self.folder}/text"
        several = self.folder / "several"
        shutil.copytree(data, several)
        shutil.copy(data / "dict.en.txt", several / "dict.txt")
        self.folders["several"] = str(several)
        aligned = self.folder / "raw-aligned"
        aligned.mkdir()
        for split in ("train", "valid", "test"):
            lines = [(text / f"{split}.spm.{language}").read_text() for language in ("en", "de")]
            for language, content in zip(("en", "de"), lines, strict=True):
                (aligned / f"{split}.{language}").write_text(content)
            (aligned / f"{split}.align").write_text("0-0\n" * lines[0].count("\n"))
        run_command(
            *("fairseq-preprocess", "-s", "en", "-t", "de", f"--srcdict={data}/dict.en.txt", "--joined-dictionary"),
            *(f"--{split}pref={aligned}/{split}" for split in ("train", "valid", "test")),
            *("--align-suffix", "align", f"--destdir={self.folder}/aligned"),
        )
        raw = self.folder / "raw"
        raw.mkdir()
        for split in ("train", "valid", "test"):
            for language in ("en", "de"):
                shutil.copy(aligned / f"{split}.{language}", raw / f"{split}.en-de.{language}")
                shutil.copy(data / f"dict.{language}.txt", raw)
        self.folders.update(aligned=f"{self.folder}/aligned", raw=str(raw))
        texts = self.folder / "texts"
        for language in ("en", "de"):
            for split in ("train", "valid"):
                for end in ("bin", "idx"):
                    source = data / f"{split}.en-de.{language}.{end}"
                    if split == "train":
                        shutil.copy(source, several / f"train.{language}-None.{language}.{end}")
                        (several / language).mkdir(exist_ok=True)
                        shutil.copy(source, several / language / f"train.{end}")
                    (texts / language).mkdir(parents=True, exist_ok=True)
                    shutil.copy(self.folder / "text" / f"{split}.{end}", texts / language / f"{split}.{end}")
        shutil.copy(self.folder / "text" / "dict.txt", texts / "dict.txt")
        self.folders["texts"] = str(texts)

    def _of_text(self, shards: Path) -> None:
        languages = self.folder / "languages"
        for language, shard in (("en", "shard0"), ("de", "shard1")):
            shutil.copytree(shards / shard, languages / language)
        shutil.copy(shards / "shard0" / "dict.txt", languages / "dict.txt")
        numbers = self.folder / "numbers"
        shutil.copytree(shards / "pairs", numbers)
        self.folders.update(languages=str(languages), numbers=str(numbers))
        shutil.rmtree(numbers / "label")
        (numbers / "label").mkdir()
        for split, count in (("train", 24), ("valid", 10)):
            lines = "".join(f"{0.1 * (i % 7)}\n" for i in range(count))
            (numbers / "label" / f"{split}.label").write_text(lines)

    def model(self, arch: str) -> Path:
        """A checkpoint of two updates."""
        path = self.folder / f"model-{arch}"
        if not path.exists():
            options = _without(TRANSLATION.options, [] if arch == TRANSLATION.arch else [OURS])
            run_command(
                *("fairseq-train", self.folders["pairs"], "--user-dir", USER_DIR, "--arch", arch, *options, *ADAM),
                *("--max-update", "2", "--save-dir", path),
            )
        return path / "checkpoint_last.pt"

    def _language_model(self) -> Path:
        run_command(
            *("fairseq-train", self.folders["text"], "--user-dir", USER_DIR, "--arch", LANGUAGE.arch, *ADAM),
            *(*LANGUAGE.options, "--max-update", "2", "--save-dir", self.folder / "lm"),
        )
        return self.folder / "lm" / "checkpoint_last.pt"

    def _embeddings(self) -> Path:
        words = [line.split()[0] for line in (self.corpus.data / "dict.en.txt").read_text().splitlines()]
        path = self.folder / "embeddings"
        rows = "".join(f"{word} {' '.join(['0.1'] * 16)}\n" for word in words)
        path.write_text(f"{len(words)} 16\n{rows}")
        return path


def _without(options: Iterable[str], left_out: Sequence[str]) -> List[str]:
    """Options without some of them and their values."""
    kept: List[str] = []
    skip = False
    for option in options:
        skip = option in left_out or (skip and not option.startswith("--"))
        if not skip:
            kept.append(option)
    return kept


def _command(case: Case, data: Data, arch: str) -> Tuple[List[str], str]:
    """The command line of a case with an architecture, and its input."""
    added = [data.values.get(option, option) for option in case.options]
    folder = data.folders["raw" if "raw" in added else case.data or case.family.data]
    start = [*case.command.split(), *([folder] if folder else [])]
    if case.command.startswith("fairseq"):
        start += ["--user-dir", USER_DIR]
    if case.command in ("fairseq-generate", "fairseq-interactive"):
        start += ["--path", str(data.model(arch)), "--cpu", "--num-workers", "0"]
        start += ["--beam", "1" if "--sampling" in added else "4"]
        start += ["--max-len-b", "8", *(["--gen-subset", "test"] if case.command == "fairseq-generate" else [])]
        return [*start, *added], "the cat\tKatze\nthe old dog\tHund\n"
    options = _without(case.family.options, (*case.without, *([] if arch == case.family.arch else [OURS])))
    adam = _without(ADAM, [x for x in ("--lr-scheduler", "--warmup-updates") if "--lr-scheduler" in added])
    saved = (
        ["--save-dir", str(data.folder / "saved")] if "--write-checkpoints-asynchronously" in added else ["--no-save"]
    )
    return [*start, "--arch", arch, *options, *adam, "--max-update", "2", *saved, *added], ""


def _tried(case: Case, data: Data, arch: str) -> Tuple[bool, str]:
    """Whether it worked, and the output."""
    command, stdin = _command(case, data, arch)
    environment = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "LUNA_TRACEBACK": "1"}
    done = subprocess.run(
        [str(commands() / command[0]), *command[1:]], input=stdin, capture_output=True, text=True, timeout=300,
        check=False, env={**os.environ, **environment}, cwd=data.folder,
    )  # fmt: skip
    output = done.stdout + done.stderr
    if case.command.endswith("train"):
        finished = "done training" in output and "num_updates 2" in output
    else:
        finished = "H-" in output or any(option in case.options for option in ("--quiet", "--results-path"))
    return done.returncode == 0 and finished, output


def works(case: Case, data: Data) -> bool:
    """Whether the command ends well and has done what it is for."""
    return _tried(case, data, case.family.arch)[0]


def outcome(case: Case, data: Data) -> str:
    """What the page says: ``works``, ``refused: WHY``, ``not in fairseq either: WHY``, or ``FAILS: WHY``."""
    worked, output = _tried(case, data, case.family.arch)
    if worked:
        return "works"
    why = _last_line(output)
    if _says_why(output):
        return f"refused: {why}"
    worked, output = _tried(case, data, case.family.other)
    return f"FAILS: {why}" if worked else f"not in fairseq either: {_last_line(output)}"


def _says_why(output: str) -> bool:
    """Whether the plugin has raised an error of its own, a sentence."""
    raised = re.findall(r'^  File "[^"]+luna_fairseq/[^"]+", line \d+, in .+\n    (.+)', output, re.M)
    return (
        bool(raised)
        and raised[-1].startswith("raise ")
        and output.rstrip().count("\n", output.rindex(raised[-1])) < 4
    )


def _last_line(output: str) -> str:
    line = [line.strip() for line in output.splitlines() if line.strip()][-1]
    return _HERE.sub("", _NAME_OF_ERROR.sub("", line) or line)[:200]


def row(case: Case, found: str) -> str:
    """A row of the page."""
    name, found = (text.replace("|", "\\|") for text in (case.name, found))
    return f"| `{name}` | {found} |"


def main() -> None:
    """Run all, and print the page's tables."""
    from support import fixtures

    class Folders:
        def mktemp(self, name: str) -> Path:
            return Path(tempfile.mkdtemp(prefix=name))

    made = [fixture.__wrapped__(Folders()) for fixture in (fixtures.corpus, fixtures.lm_corpus)]
    with tempfile.TemporaryDirectory() as folder:
        data, table = Data(Path(folder), *made), ""
        for case in all_cases():
            if sys.argv[1:] and not case.name.startswith(tuple(sys.argv[1:])):
                continue
            if case.table != table:
                table = case.table
                print(f"\n## {table[0].upper()}{table[1:]}\n\n| tried | outcome |\n|---|---|")
            print(row(case, outcome(case, data)), flush=True)


if __name__ == "__main__":
    main()
