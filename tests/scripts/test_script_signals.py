"""Signals to a script: what it has started hears of them once, and is awaited; a second script is kept out."""

import hashlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import List, Tuple

import pytest

from support.running import ROOT
from support.stub import stubs

LANGUAGE_MODEL = "wikitext2_luna_untied_32"
ENDING = "the same command goes on from where it stopped\n"
MULTI30K, MASKED_LM, WMT14 = "multi30k_transformer_adam", "wikitext2_luna_tied_32", "wmt14_transformer_adam"
# The script with its arguments, and the command in it that takes long.
LONG = [
    ("multi30k prepare {text}", "luna-fairseq prepare pieces"),
    ("multi30k prepare {text}", "fairseq-preprocess"),
    (f"multi30k train {MULTI30K}", "luna-fairseq run fairseq-hydra-train"),
    (f"multi30k score {MULTI30K}", "luna-fairseq average"),
    (f"multi30k score {MULTI30K}", "fairseq-generate"),
    (f"multi30k score {MULTI30K}", "sacrebleu"),
    (f"masked_lm pretrain {MASKED_LM} {{text}}", "luna-fairseq run fairseq-hydra-train"),
    ("masked_lm finetune finetune_sst2 {text} scratch", "luna-fairseq run fairseq-hydra-train"),
    ("masked_lm finetune finetune_sst2 {text} scratch", "fairseq-validate"),
    ("language_model prepare {text}", "luna-fairseq prepare corpus"),
    (f"language_model train {LANGUAGE_MODEL}", "luna-fairseq run fairseq-hydra-train"),
    (f"language_model score {LANGUAGE_MODEL}", "fairseq-eval-lm"),
    ("lra prepare listops", "luna-fairseq prepare listops"),
    ("lra train text luna_16", "luna-fairseq run fairseq-hydra-train"),
    ("lra test text luna_16", "fairseq-validate"),
    ("wmt14 download", "luna-fairseq fetch"),
    ("wmt14 prepare", "luna-fairseq prepare translation"),
    (f"wmt14 train {WMT14}", "luna-fairseq run fairseq-hydra-train"),
    (f"wmt14 average {WMT14}", "luna-fairseq average"),
    (f"wmt14 tune {WMT14}", "fairseq-generate"),
    (f"wmt14 tune {WMT14}", "luna-fairseq score"),
    (f"wmt14 generate {WMT14}", "fairseq-generate"),
    (f"wmt14 score {WMT14}", "luna-fairseq score"),
    ("distill translate teacher", "fairseq-generate"),
    ("distill filter", "luna-fairseq prepare distilled"),
    ("distill filter", "fairseq-preprocess"),
    ("documents prepare", "luna-fairseq prepare documents"),
    ("documents prepare", "fairseq-preprocess"),
    ("documents score documents_transformer", "fairseq-generate"),
    ("denoising prepare {text}", "luna-fairseq prepare corpus"),
    ("denoising prepare {text}", "fairseq-preprocess"),
    ("denoising pretrain transformer", "luna-fairseq run fairseq-hydra-train"),
    ("denoising scratch transformer", "luna-fairseq run fairseq-hydra-train"),
    ("demo", "luna-fairseq prepare demo"),
    ("demo", "luna-fairseq prepare pieces"),
    ("demo", "fairseq-preprocess"),
    ("demo", "fairseq-train"),
    ("demo", "luna-fairseq average"),
    ("demo", "fairseq-generate"),
    ("gpu_report", "python -m scripts.gpu_report run"),
    ("gpu_report table", "python -m scripts.gpu_report tables"),
]
TRAIN = (f"multi30k train {MULTI30K}", "luna-fairseq run fairseq-hydra-train")


class Started:
    """A script at work, in a session of its own.

    Args:
        folder: where it writes, to ``out``, and where the stub leaves its notes.
        words: the script and its arguments.
        block: the command that waits.
        environment: variables to add.
    """

    def __init__(self, folder: Path, words: List[str], block: str, **environment: str) -> None:
        self.folder = folder
        path = f"{stubs(folder / 'stubs')}:{os.environ['PATH']}"
        self.process = subprocess.Popen(
            [str(ROOT / "scripts" / f"{words[0]}.sh"), *words[1:]],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, cwd=folder,
            env={**os.environ, "PATH": path, "OUT": str(folder / "out"), "FROM": str(folder / "multi30k-out"),
                 "BLOCK": block, "RECORD": str(folder), "GPU": "1" if words[0] == "gpu_report" else "",
                 **environment},
        )  # fmt: skip

    def wait_for_work(self) -> int:
        """The number of the stub's process, when it works."""
        deadline = time.monotonic() + 30
        while not (self.folder / "pid").exists():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return int((self.folder / "pid").read_text())

    def end(self) -> Tuple[int, str]:
        """The exit code, and all that was printed."""
        said = self.process.communicate(timeout=30)[0]
        return self.process.returncode, said

    def signals(self) -> List[str]:
        """What the stub has heard."""
        return (self.folder / "signals").read_text().split()


def _prepared(folder: Path) -> Path:
    """An out of which every command can begin."""
    out = folder / "out"
    files = ["data-bin/.done", "text/test.raw.de", "raw/test.de", "raw/valid.de", "sentencepiece/data-bin/x",
             "data/text/x", "corpus/.done"]  # fmt: skip
    for run in (MULTI30K, LANGUAGE_MODEL, "documents_transformer", "text.luna_16", f"{WMT14}.sentencepiece"):
        files += [f"{run}/{name}" for name in ("options", ".trained", "average.pt", "test.0.6.de")]
    for name in files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("eins\n")
    translated = out / f"{WMT14}.sentencepiece" / "test.0.6.de.of"
    digest = hashlib.sha256(b"eins\n").hexdigest()  # of the average that is there
    translated.write_text(f"{digest}  -\n")
    for script in "multi30k masked_lm language_model lra wmt14 distill documents denoising demo gpu_report".split():
        (out / f".made-by-{script}.sh").touch()
    for name in (
        "data-bin/.done",
        "data-bin/dict.en.txt",
        "teacher/average.pt",
        "text/test.raw.de",
        "text/spm.model",
        "text/valid.de",
    ):
        (folder / "multi30k-out" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "multi30k-out" / name).write_text("eins\n")
    for name in ("test.de", "test.en", "valid.en", "train.de", "train.en"):
        (folder / "multi30k-out" / "text" / name).touch()
    (folder / "text").mkdir()
    for split in ("train", "val", "test_2016_flickr"):
        for language in ("en", "de"):
            (folder / "text" / f"{split}.{language}").write_text("eins\n")
    resolved = out / LANGUAGE_MODEL / "hydra" / ".hydra" / "config.yaml"
    resolved.parent.mkdir(parents=True)
    resolved.write_text("task:\n  tokens_per_sample: 16\n")
    for split in ("train", "valid"):
        (folder / "text" / f"{split}.txt").write_text("eins\n")
    return out


def _begin(folder: Path, words: str, block: str, **environment: str) -> Started:
    out = _prepared(folder)
    if "filter" in words:
        (out / "translations").mkdir()
        (out / "translations" / ".done").touch()
    if "prepare" in words or "filter" in words:
        (out / "data-bin" / ".done").unlink()
        (out / "corpus" / ".done").unlink()
    if " generate " in words:
        (out / f"{WMT14}.sentencepiece" / "test.0.6.de").unlink()
    if " train " in words:
        for name in (MULTI30K, LANGUAGE_MODEL, "text.luna_16", f"{WMT14}.sentencepiece"):
            shutil.rmtree(out / name)
    return Started(folder, words.format(text=folder / "text").split(), block, **environment)


def _gone(process: int) -> bool:
    return not Path(f"/proc/{process}").exists()


@pytest.mark.parametrize(("words", "block"), LONG)
def test_every_long_command_hears_of_a_signal(words: str, block: str, tmp_path: Path) -> None:
    started = _begin(tmp_path, words, block)
    process = started.wait_for_work()
    started.process.terminate()
    code, said = started.end()
    assert code == 128 + signal.SIGTERM, said
    assert said.endswith(f".sh: interrupted by SIGTERM: {ENDING}"), said
    assert started.signals() == ["SIGTERM"] and (tmp_path / "saved").exists() and _gone(process)
    assert "Terminated" not in said


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1"])
def test_each_signal(name: str, tmp_path: Path) -> None:
    """To the script alone; all that the training prints until its end is in the log."""
    started = _begin(tmp_path, *TRAIN)
    process = started.wait_for_work()
    started.process.send_signal(getattr(signal, name))
    code, said = started.end()
    assert code == 128 + getattr(signal, name)
    assert said.splitlines()[-2:] == [
        "| train_inner | saved",
        f"multi30k.sh: interrupted by {name}: {ENDING.strip()}",
    ]
    assert started.signals() == [name] and _gone(process)
    assert (tmp_path / "out" / MULTI30K / "train.log").read_text().endswith("| train_inner | saved\n")
    assert not (tmp_path / "out" / MULTI30K / ".trained").exists()


def test_ctrl_c_is_one_signal(tmp_path: Path) -> None:
    """A terminal sends it to the script, and to all that is in its process group."""
    started = _begin(tmp_path, *TRAIN)
    process = started.wait_for_work()
    assert os.getpgid(process) == process != started.process.pid
    os.killpg(started.process.pid, signal.SIGINT)
    code, said = started.end()
    assert code == 128 + signal.SIGINT and "| train_inner | saved\n" in said
    assert started.signals() == ["SIGINT"] and _gone(process)


def test_a_second_signal_is_sent_on_too(tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    started = _begin(tmp_path, *TRAIN)
    process = started.wait_for_work()
    for count in (1, 2):
        os.killpg(started.process.pid, signal.SIGINT)
        deadline = time.monotonic() + 10
        while not (tmp_path / "signals").exists() or len(started.signals()) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    code, _ = started.end()
    assert code == 128 + signal.SIGINT and not (tmp_path / "saved").exists() and _gone(process)


def test_a_terminal_that_is_gone(tmp_path: Path) -> None:
    """The training can print what it likes, and saves."""
    started = _begin(tmp_path, *TRAIN)
    process = started.wait_for_work()
    assert started.process.stdout is not None
    started.process.stdout.close()
    time.sleep(0.2)
    os.killpg(started.process.pid, signal.SIGHUP)
    assert started.process.wait(timeout=30) == 128 + signal.SIGHUP
    assert started.signals() == ["SIGHUP"] and (tmp_path / "saved").exists() and _gone(process)
    assert (tmp_path / "out" / MULTI30K / "train.log").read_text().endswith("| train_inner | saved\n")


@pytest.mark.parametrize(("words", "block"), [TRAIN, ("demo", "fairseq-train"), ("demo", "fairseq-preprocess"),
                                              ("lra test text luna_16", "fairseq-validate")])  # fmt: skip
def test_the_exit_code_is_kept(words: str, block: str, tmp_path: Path) -> None:
    """Behind what shows the log, too; a training that was killed has not been interrupted by us."""
    code, said = _begin(tmp_path, words, block, CODE="7").end()
    assert code == 7 and " failed" in said and ENDING not in said


def test_a_training_that_is_killed(tmp_path: Path) -> None:
    started = _begin(tmp_path, *TRAIN)
    os.kill(started.wait_for_work(), signal.SIGKILL)
    code, said = started.end()
    assert code == 128 + signal.SIGKILL and "multi30k.sh: training failed: | train_inner | working (log: " in said


KEPT_OUT = [TRAIN, ("multi30k prepare {text}", "fairseq-preprocess"), ("demo", "fairseq-train"),
            (f"wmt14 generate {WMT14}", "fairseq-generate"),
            ("lra test text luna_16", "fairseq-validate")]  # fmt: skip


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize(
    ("words", "block"),
    [case if case in KEPT_OUT[:2] else pytest.param(*case, marks=pytest.mark.long) for case in KEPT_OUT],
)
def test_a_second_script_is_kept_out(words: str, block: str, killed: bool, tmp_path: Path) -> None:
    """As long as the command works, also if the first script was killed and cannot pass anything on."""
    first = _begin(tmp_path, words, block)
    process = first.wait_for_work()
    if killed:
        first.process.kill()
        first.process.wait()
    arguments = words.format(text=tmp_path / "text").split()
    code, said = Started(tmp_path, arguments, block).end()
    assert code == 1 and f"process {process} is at work in {tmp_path}/out" in said.splitlines()[-1]
    assert not _gone(process)
    os.kill(process, signal.SIGTERM)
    first.end()
    while not _gone(process):
        time.sleep(0.01)
    (tmp_path / "pid").unlink()
    again = Started(tmp_path, arguments, block)
    os.kill(again.wait_for_work(), signal.SIGTERM)
    assert again.end()[0] == 128 + signal.SIGTERM


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    """Each has a lock of its own."""
    first = _begin(tmp_path, *TRAIN)
    process = first.wait_for_work()
    (tmp_path / "pid").unlink()
    second = Started(tmp_path, ["multi30k", "train", "multi30k_luna_tied_16_adam"], TRAIN[1])
    assert second.wait_for_work() != process
    for started in (first, second):
        started.process.terminate()
        assert started.end()[0] == 128 + signal.SIGTERM
