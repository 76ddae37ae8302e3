"""Every command once in a new interpreter, and that a fork of one (support/forks.py) does the same."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, List

import pytest
import torch

from support.forks import NAMES, REAL, commands
from support.running import ADAM, ROOT, TINY, TRAIN, USER_DIR, Corpus, generate, logged, run_command, train


@pytest.mark.long
def test_a_training_and_a_translation_are_those_of_a_fork(corpus: Corpus, tmp_path: Path) -> None:
    """The same losses, weights and hypotheses; no warning is seen in a new interpreter either."""
    outputs = {}
    for name, real in (("real", True), ("fork", False)):
        save = tmp_path / name
        said = train(corpus, save, "--max-update", 3, "--dropout", 0.1, real=real)
        assert not re.search("(User|Future|Deprecation)Warning", said)
        found = generate(corpus, save / "checkpoint_last.pt", real=real)
        hypotheses = [line for line in found.splitlines() if line.startswith("H-")]
        outputs[name] = logged(said, "loss"), hypotheses, torch.load(save / "checkpoint_last.pt")["model"]
    (losses, hypotheses, weights), (losses_, hypotheses_, weights_) = outputs["real"], outputs["fork"]
    assert len(losses) == 3 and losses == losses_ and len(hypotheses) == 11 and hypotheses == hypotheses_
    assert all(torch.equal(weight, weights_[name]) for name, weight in weights.items())


def test_the_plugin_s_own_command(tmp_path: Path) -> None:
    for real in (True, False):
        assert run_command("luna-fairseq", "user-dir", real=real) == f"{USER_DIR}\n"
        said = run_command(
            "luna-fairseq", "average", "--inputs", tmp_path / "no.pt", "--output", "x", code=1, real=real
        )
        assert said.splitlines()[-1].startswith("luna-fairseq average: ") and "Traceback" not in said


@pytest.mark.long
def test_every_command_starts(corpus: Corpus, tmp_path: Path) -> None:
    """fairseq's commands, sacrebleu and torchrun, one after the other, each with what the one before has made."""
    seen: List[str] = []

    def run(command: str, *args: Any, **options: Any) -> str:
        seen.append(command)
        return run_command(command, *args, real=True, **options)

    prefixes = [f"--{split}pref={corpus.text}/{split}.spm" for split in ("train", "valid", "test")]
    data = tmp_path / "data"
    run("fairseq-preprocess", "-s", "en", "-t", "de", "--joined-dictionary", f"--destdir={data}", *prefixes)
    assert (data / "train.en-de.en.bin").read_bytes() == (corpus.data / "train.en-de.en.bin").read_bytes()
    usual = ["--user-dir", USER_DIR, "--cpu"]
    save = ["--save-dir", tmp_path, "--max-update", 1]
    run("fairseq-train", data, *usual, "--arch", "luna", *TINY, *TRAIN, *ADAM, *save)
    run(
        *("fairseq-hydra-train", "--config-dir", ROOT / "configs" / "translation", "--config-name", "translation"),
        *(f"common.user_dir={USER_DIR}", f"task.data={data}", f"checkpoint.save_dir={tmp_path}/hydra"),
        *(
            f"hydra.run.dir={tmp_path}/hydra",
            "common.cpu=true",
            "optimization.max_update=1",
            "dataset.max_tokens=200",
        ),
        *("dataset.num_workers=0", "++model.encoder_layers=1", "++model.decoder_layers=1"),
    )
    assert (tmp_path / "hydra" / "checkpoint_last.pt").exists()
    model = [*usual, "--path", tmp_path / "checkpoint_last.pt"]
    translated = run("fairseq-generate", data, *model)
    assert "H-10" in run("fairseq-interactive", data, *model, stdin="the cat\n" * 11)
    assert "loss" in run("fairseq-validate", data, *model, "--task", "translation", "--max-tokens", 500)
    (tmp_path / "generated").write_text(translated)
    for kind in "TH":
        column = 1 if kind == "T" else 2
        lines = [line.split("\t")[column] for line in translated.splitlines() if line.startswith(f"{kind}-")]
        (tmp_path / kind).write_text("".join(f"{line}\n" for line in lines))
    assert "BLEU4 = " in run("fairseq-score", "--sys", tmp_path / "H", "--ref", tmp_path / "T")
    assert '"name": "BLEU"' in run("sacrebleu", tmp_path / "T", "-i", tmp_path / "H")
    assert "--nproc" in run("torchrun", "--help")
    run("luna-fairseq", "card", tmp_path / "checkpoint_last.pt")
    # Not of a model of ours.
    assert "--path" in run("fairseq-eval-lm", "--help")
    assert sorted(seen) == sorted(NAMES)


def test_a_fork_is_a_process_like_another(tmp_path: Path) -> None:
    """Its folder, environment, input, outputs, exit code, exit functions and signals."""
    python = commands() / "python"
    program = (
        "import atexit, os, sys\n"
        "atexit.register(print, 'at the end')\n"
        "print(os.getcwd(), os.environ['ONE'], 'PYTEST_CURRENT_TEST' in os.environ, sys.argv, sys.stdin.read())\n"
        "print('wrong', file=sys.stderr)\n"
        "sys.exit(7)\n"
    )
    for path in (python, REAL / "python"):
        done = subprocess.run(
            [path, "-c", program, "a", "b c"], input="text", capture_output=True, text=True, check=False,
            cwd=tmp_path, env={"ONE": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        )  # fmt: skip
        assert done.stdout == f"{tmp_path} 1 False ['-c', 'a', 'b c'] text\nat the end\n"
        assert (done.stderr, done.returncode) == ("wrong\n", 7)
        failed = subprocess.run([path, "-c", "1 / 0"], capture_output=True, text=True, check=False)
        assert failed.returncode == 1 and failed.stderr.endswith("ZeroDivisionError: division by zero\n")
        for number, code in ((signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)):
            sleeping = subprocess.Popen(
                [path, "-c", "import time; print('here', flush=True); time.sleep(60)"],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            assert sleeping.stdout is not None and sleeping.stdout.readline() == "here\n"
            sleeping.send_signal(number)
            assert sleeping.wait(timeout=30) == code
            sleeping.stdout.close()
        dead = subprocess.run([path, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"], check=False)
        assert dead.returncode == -signal.SIGKILL


def test_a_fork_ends_with_whoever_asked_for_it(tmp_path: Path) -> None:
    program = f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    asking = subprocess.Popen([commands() / "python", "-c", program])
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process = int((tmp_path / "pid").read_text())
    assert process != asking.pid
    asking.kill()
    asking.wait()
    while Path(f"/proc/{process}").exists():
        assert time.monotonic() < deadline, "the fork outlived it"
        time.sleep(0.01)


def test_whoever_asks_may_be_killed_at_any_moment() -> None:
    """Before a word, in the middle of a request, and behind it: the server serves on."""
    address = str(commands() / "socket")
    environment = dict(os.environ)
    request = {
        **{"command": "python", "path": "python", "arguments": ["-c", "import time; time.sleep(60)"], "ignored": []},
        **{"environment": environment, "folder": "/", "umask": 0o22},
    }
    content = json.dumps(request).encode()
    for sent in (None, b"", content[:10], content):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address)
            if sent is not None:
                socket.send_fds(client, [len(content).to_bytes(8, "little")], [0, 1, 2])
                client.sendall(sent)
    assert run_command("luna-fairseq", "user-dir") == f"{USER_DIR}\n"
