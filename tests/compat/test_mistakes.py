"""A mistake that was foreseen ends a command with one sentence, in every process; anything else with a traceback."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, List, Optional

import pytest
from fairseq import options
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE, SentencepieceConfig
from omegaconf import OmegaConf
from torch.multiprocessing import ProcessRaisedException

from luna_fairseq.checks import check_folder
from luna_fairseq.compat import mistakes
from luna_fairseq.errors import CheckpointError, DataError
from support.running import ADAM, TINY, TRAIN, USER_DIR, Corpus, run_command


def _error(work: Callable[[], Any]) -> BaseException:
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("it works")


def _of_fairseq(code: str, module: str = "fairseq.tasks.some") -> BaseException:
    return _error(lambda: exec(compile(code, "some.py", "exec"), {"__name__": module}))


def _of_ours(code: str) -> BaseException:
    return _error(lambda: exec(compile(code, str(Path(mistakes.__file__).parent / "some.py"), "exec"), {}))


_WRITTEN = """
-- Process 1 terminated with the following error:
Traceback (most recent call last):
  File "x.py", line 1, in <module>
    main(a: b)
%s
"""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (_error(lambda: check_folder("none")), "data folder none does not exist: name one that fairseq-preprocess"),
        (_of_ours("raise ValueError('--lr is 0:\\n  raise it')"), "--lr is 0: raise it"),
        (_of_ours("int('x')"), None),
        (_of_ours("raise KeyError('x')"), None),
        (_of_ours("assert 1 > 2, 'never'"), None),
        (DataError("x is damaged"), "x is damaged"),
        (_error(lambda: Path("none").read_text()), "none does not exist: name one that does"),
        (_error(lambda: Path("/").read_text()), "/ is a folder: name a file"),
        (OSError(28, "No space left on device"), None),
        (OSError(28, "make room", "x.pt"), "x.pt: make room"),
        (_of_fairseq("raise ValueError('unknown')"), "unknown (LUNA_TRACEBACK=1 shows where fairseq says so)"),
        (_of_fairseq("raise Exception('unknown')"), "unknown (LUNA_TRACEBACK=1 shows where fairseq says so)"),
        (_of_fairseq("raise ValueError"), None),
        (_of_fairseq("raise RuntimeError('unknown')"), None),
        (_of_fairseq("assert 1 > 2, 'a shape'"), None),
        (_of_fairseq("raise ValueError('unknown')", "another"), None),
        (_of_fairseq("[][0]"), None),
        (_of_fairseq("raise RuntimeError('--lr is needed')"), "--lr is needed (LUNA_"),
        (_of_fairseq("raise FileExistsError('bin/dict.txt')"), "bin/dict.txt is there already: name another folder"),
        (_of_fairseq("raise FileNotFoundError('/none')"), "/none does not exist: name one that does"),
        (_of_fairseq("raise OSError('Model file not found: x.pt')"), "Model file not found: x.pt: correct --path"),
        (
            _error(lambda: SentencepieceBPE(OmegaConf.structured(SentencepieceConfig))),
            "--sentencepiece-model is not",
        ),
        (ProcessRaisedException(_WRITTEN % "luna_fairseq.errors.DataError: x: y", 1, 2), "x: y"),
        (ProcessRaisedException(_WRITTEN % "ValueError: x", 1, 2), None),
        (CheckpointError(_WRITTEN % "luna_fairseq.errors.CheckpointError: x"), "x"),  # of a data worker
    ],
    ids=repr,
)
def test_what_is_foreseen(error: BaseException, said: Optional[str]) -> None:
    found = mistakes.sentence(error)
    assert found is not None and found.startswith(said) if said else found is None, found


def _last(output: str) -> str:
    return output.splitlines()[-1]


def test_the_sentence_alone_and_the_traceback_for_who_wants_it(corpus: Corpus, tmp_path: Path) -> None:
    """By Hydra; tests/commands/test_bad_input.py has the same of fairseq-train."""
    hydra = ["--config-dir", Path(USER_DIR).parent / "configs" / "translation", "--config-name", "translation"]
    hydra += [f"task.data={tmp_path}/none", f"common.user_dir={USER_DIR}", f"hydra.run.dir={tmp_path}"]
    hydra += [f"checkpoint.save_dir={tmp_path}", "common.cpu=true"]
    said = run_command("fairseq-hydra-train", *hydra, code=1)
    sentence = f"data folder {tmp_path}/none does not exist: name one that fairseq-preprocess has written"
    assert _last(said) == f"fairseq-hydra-train: {sentence}" and "Traceback" not in said
    options = ["--user-dir", USER_DIR, "--arch", "luna", *TINY, *TRAIN, *ADAM, "--save-dir", tmp_path]
    said = run_command("fairseq-train", tmp_path / "none", *options, code=1, LUNA_TRACEBACK="1")
    assert _last(said) == f"FileNotFoundError: {sentence}" and "Traceback" in said


@pytest.mark.long
def test_an_error_of_the_program_keeps_its_traceback(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text(
        "import luna_fairseq.models.luna\nfrom fairseq.models import register_model_architecture\n"
        '@register_model_architecture("luna", "luna_with_a_bug")\ndef sizes(cfg):\n    {}["bug"]\n'
    )
    options = ["--arch", "luna_with_a_bug", *TINY, *TRAIN, *ADAM, "--save-dir", tmp_path]
    said = run_command("fairseq-train", corpus.data, *options, "--user-dir", tmp_path, code=1)
    assert _last(said) == "KeyError: 'bug'" and "Traceback" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--arch", "luna_base_untid"], "'luna_base_untid': did you mean luna_base_untied, luna_base_tied"),
        (["--optimizer", "apolo"], "'apolo': did you mean apollo? (all: "),
        (
            ["--arch", "luna", "--projecton-length", "4", "-q"],
            "-q: did you mean --projection-length",
        ),
        (["--arch", "luna", "--xyzzy=4"], "--xyzzy=4: leave it out, or see those of "),
        ([], "error: the following arguments are required: --arch (all options: "),
        (["--ddp-backend", "none"], "'none': take one of c10d, "),
        (["--arch", "luna", "--encoder-layers", "two"], "invalid int value: 'two' (all options: "),
    ],
)
def test_what_was_meant(given: List[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = options.get_training_parser()
    with pytest.raises(SystemExit, match="2"):
        options.parse_args_and_arch(parser, ["data", *given])
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1


_OF_TWO_GPUS = """
import sys, torch
torch.cuda.device_count = lambda: 2
from fairseq_cli.train import cli_main
cli_main()
"""


@pytest.mark.long
def test_a_process_for_each_gpu_tells_the_one_that_started_it(tmp_path: Path) -> None:
    """What starts two believes that there are two GPUs; they themselves are told to take the CPU."""
    options = ["--user-dir", USER_DIR, "--arch", "luna", *TINY, *TRAIN, *ADAM, "--distributed-backend", "gloo"]
    command = [sys.executable, "-c", _OF_TWO_GPUS, str(tmp_path / "none"), *options, "--save-dir", str(tmp_path)]
    done = subprocess.run([*command, "--distributed-world-size", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert _last(done.stderr) == (
        f"fairseq-train: data folder {tmp_path}/none does not exist: name one that fairseq-preprocess has written"
    )


@pytest.mark.long
def test_torchrun_ends_with_the_sentence(tmp_path: Path) -> None:
    options = ["--user-dir", USER_DIR, "--arch", "luna", *TINY, *TRAIN, *ADAM, "--save-dir", tmp_path]
    said = run_command(
        *("torchrun", "--standalone", "--nproc_per_node", 2, "-m", "fairseq_cli.train", tmp_path / "none", *options),
        *("--distributed-world-size", 2, "--distributed-backend", "gloo"),
        code=1,
        real=True,
    )
    lines = said.splitlines()
    sentence = f"data folder {tmp_path}/none does not exist: name one that fairseq-preprocess has written"
    # Once processes are connected, torch puts "[rank0]: " before what they end with.
    assert sum(line.endswith(f"fairseq-train: {sentence}") for line in lines) in (1, 2)
    assert any("traceback : " in line and sentence in line for line in lines[-3:]), os.linesep.join(lines[-12:])
