"""What stands for a command in tests of the scripts: it makes the files that they look for, or waits for a signal.

A file that :func:`stubs` makes does the work of :func:`main`, without torch, in milliseconds. The command whose words
begin with the variable BLOCK prints, notes its number in the file ``pid`` of the folder RECORD, and goes on until it
gets a signal; it notes that, too, "saves", and ends with 128 and the number of the signal. A second signal ends it at
once. With the variable CODE it ends with that by itself. GPU is what the question for GPUs is answered with, 0 if it
is not set; "killed": it is not answered.
"""

import itertools
import os
import signal
import sys
import time
from pathlib import Path

NAMES = (
    "luna-fairseq fairseq-preprocess fairseq-train fairseq-hydra-train fairseq-generate fairseq-validate "
    "fairseq-eval-lm sacrebleu torchrun python"
).split()


def stubs(folder: Path) -> Path:
    """Make the folder of commands."""
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        path = folder / name
        path.write_text(
            f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from stub import main\nmain()\n"
        )
        path.chmod(0o755)
    return folder


def main() -> None:
    """Be the command by whose name this was started."""
    name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
    words = " ".join([name, *arguments])
    block = os.environ.get("BLOCK")
    if block and words.startswith(block):
        _work(Path(os.environ["RECORD"]))
    options = dict(itertools.pairwise(arguments))
    if words == "luna-fairseq user-dir":
        print(Path(__file__).resolve().parents[2] / "luna_fairseq")
    elif words.startswith("luna-fairseq prepare demo"):
        _make(Path(arguments[2], "test.en"), "one\n")
        _make(Path(arguments[2], "test.de"), "eins\n")
    elif words.startswith("luna-fairseq prepare pieces"):
        _make(Path(options["--out"], "train.en"), "made\n")
        _make(Path(options["--out"], "test.raw.de"), "eins\n")
    elif words.startswith(("luna-fairseq prepare distilled", "luna-fairseq prepare documents")):
        _make(Path(options["--out"], "train.en"), "made\n")
    elif words.startswith("luna-fairseq average"):
        _make(Path(options["--output"]), "made\n")
    elif words.startswith("luna-fairseq score"):
        print('[{"name": "BLEU", "score": 1.0}]')
    elif name == "fairseq-preprocess":
        _make(Path(options["--destdir"], "dict.en.txt"), "made\n")
    elif name == "fairseq-train":
        _make(Path(options["--save-dir"], "checkpoint_1_33.pt"), "made\n")
    elif words.startswith("luna-fairseq run fairseq-hydra-train"):
        _hydra(arguments)
    elif name == "fairseq-generate":
        print("D-0\t-1\teins")
    elif words.startswith("python -c"):  # is there a GPU?
        if os.environ.get("GPU") == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        print(os.environ.get("GPU") or 0)
    elif name == "python":
        sys.exit(0 if os.environ.get("GPU") else 1)
    elif not words.startswith("luna-fairseq"):
        sys.exit(f"nobody asked for {words}")


def _hydra(arguments: "list[str]") -> None:
    for option in arguments:
        if option.startswith("checkpoint.save_dir='"):
            _make(Path(option.split("'")[1], "checkpoint_last.pt"), "made\n")


def _make(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def _work(record: Path) -> None:
    if "CODE" in os.environ:
        print("it went wrong")
        sys.exit(int(os.environ["CODE"]))
    got = []

    def note(number: int, frame: object) -> None:
        got.append(number)
        with open(record / "signals", "a") as file:
            file.write(f"{signal.Signals(number).name}\n")
        if len(got) > 1:
            os._exit(128 + number)

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, note)
    (record / "pid.tmp").write_text(str(os.getpid()))
    (record / "pid.tmp").rename(record / "pid")
    while not got:
        print("| train_inner | working", flush=True)
        time.sleep(0.02)
    while (record / "slow").exists():
        time.sleep(0.02)
    time.sleep(0.1)
    print("| train_inner | saved", flush=True)
    (record / "saved").touch()
    sys.exit(128 + got[0])
