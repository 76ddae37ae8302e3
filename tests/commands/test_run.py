"""``luna-fairseq run``: fairseq's commands do what they do with --user-dir, and the plugin is there before them."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, List

import pytest
import torch

from luna_fairseq import plugin_first
from luna_fairseq.commands import run
from support.forks import REAL
from support.running import ADAM, ROOT, TINY, TRAIN, USER_DIR, Corpus, run_command
from support.runs import assert_same


def _run(command: str, *args: Any, **options: Any) -> str:
    return run_command("luna-fairseq", "run", command, *args, **options)


def _results(output: str) -> List[str]:
    """What a generation has printed, but for its log, which a fork of a process with fairseq sends elsewhere."""
    lines = output.splitlines()
    return [
        re.sub(r"\([\d.]+ sentences/s.*", "", line) for line in lines if not re.match(r"\d{4}-\d\d-\d\d |INFO:", line)
    ]


def _train_options(corpus: Corpus) -> List[Any]:
    return [corpus.data, "--arch", "luna", *TINY, *TRAIN, *ADAM, "--max-update", 3, "--dropout", 0.1]


def test_a_training_and_its_translations_are_those_of_fairseq(corpus: Corpus, tmp_path: Path) -> None:
    usual, ours = tmp_path / "usual", tmp_path / "ours"
    options = _train_options(corpus)
    said = run_command("fairseq-train", *options, "--user-dir", USER_DIR, "--save-dir", usual)
    said_here = _run("fairseq-train", *options, "--save-dir", ours)
    assert len(said.splitlines()) == len(said_here.splitlines()) > 20
    states = [torch.load(folder / "checkpoint_last.pt") for folder in (ours, usual)]
    assert_same(*(state["model"] for state in states), "weights")
    assert states[0]["cfg"]["common"]["user_dir"] == states[1]["cfg"]["common"]["user_dir"] == USER_DIR

    # The names without "fairseq-" mean the same; a --user-dir of one's own is not given twice.
    generation = [corpus.data, "--path", usual / "checkpoint_last.pt", "--cpu", "--gen-subset", "test"]
    generation += ["--num-workers", "0"]
    found = run_command("fairseq-generate", *generation, "--user-dir", USER_DIR)
    for arguments in ([], [f"--user-dir={USER_DIR}"]):
        here = _run("generate", *generation, *arguments)
        assert _results(here) == _results(found)
    assert len(re.findall("^H-", found, re.M)) == 11


def test_hydra_trains_the_same_and_warns_of_nothing(corpus: Corpus, tmp_path: Path) -> None:
    config = ["--config-dir", ROOT / "configs" / "translation", "--config-name", "translation"]
    config += [f"task.data={corpus.data}", "common.cpu=true", "optimization.max_update=2", "dataset.max_tokens=200"]
    config += ["dataset.num_workers=0", "dataset.data_buffer_size=0", "++model.encoder_layers=1"]
    config += ["++model.decoder_layers=1", "++model.encoder_embed_dim=16", "++model.decoder_embed_dim=16"]
    states = []
    for name, command in (("usual", ["fairseq-hydra-train"]), ("ours", ["luna-fairseq", "run", "hydra-train"])):
        places = [f"checkpoint.save_dir={tmp_path}/{name}", f"hydra.run.dir={tmp_path}/{name}"]
        given = [f"common.user_dir={USER_DIR}"] if name == "usual" else []
        said = run_command(*command, *config, *places, *given)
        states.append(torch.load(tmp_path / name / "checkpoint_last.pt"))
    assert "Warning" not in said
    assert_same(*(state["model"] for state in states), "weights")
    assert all(state["cfg"]["common"]["user_dir"] == USER_DIR for state in states)


def test_a_user_dir_of_one_s_own_is_taken_beside_the_plugin(corpus: Corpus, tmp_path: Path) -> None:
    own = tmp_path / "own_plugin"
    own.mkdir()
    (own / "__init__.py").write_text(
        "from fairseq.models import register_model_architecture\n"
        '@register_model_architecture("luna", "luna_of_mine")\n'
        "def sizes(cfg):\n    pass\n"
    )
    options = [option if option != "luna" else "luna_of_mine" for option in _train_options(corpus)]
    _run("fairseq-train", *options, "--user-dir", own, "--max-update", 1, "--save-dir", tmp_path)
    state = torch.load(tmp_path / "checkpoint_last.pt")
    assert state["cfg"]["common"]["user_dir"] == str(own) and state["cfg"]["model"]["_name"] == "luna_of_mine"
    # A YAML may say it, too.
    (tmp_path / "mine.yaml").write_text(
        f"common: {{user_dir: {own}, cpu: true}}\ntask: {{_name: translation, data: {corpus.data}}}\n"
        "criterion: {_name: cross_entropy}\noptimizer: {_name: nothing_of_that_name}\nmodel: {_name: luna}\n"
        "dataset: {max_tokens: 200}\n"
    )
    said = _run("hydra-train", "--config-dir", tmp_path, "--config-name", "mine", f"hydra.run.dir={tmp_path}", code=1)
    assert f"'user_dir': '{own}'" in said and "which nobody registered" in said


def test_the_other_commands(corpus: Corpus, tmp_path: Path) -> None:
    """The text of a sentence on the standard output of fairseq-interactive, and the log elsewhere."""
    prefixes = [f"--{split}pref={corpus.text}/{split}.spm" for split in ("train", "valid", "test")]
    _run("fairseq-preprocess", "-s", "en", "-t", "de", "--joined-dictionary", f"--destdir={tmp_path}/data", *prefixes)
    for name in ("train.en-de.en.bin", "dict.en.txt"):
        assert (tmp_path / "data" / name).read_bytes() == (corpus.data / name).read_bytes()
    (tmp_path / "text").write_text("a b c d e\n")
    assert "BLEU4 = 100.00" in _run("score", "--sys", tmp_path / "text", "--ref", tmp_path / "text")


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        (["train", "data", "--cpu"], ["fairseq-train", "--user-dir", USER_DIR, "data", "--cpu"]),
        (["fairseq-eval-lm", "--user-dir", "own"], ["fairseq-eval-lm", "--user-dir", "own"]),
        (["preprocess", "--user-dir=own"], ["fairseq-preprocess", "--user-dir=own"]),
        (["score", "--sys", "x"], ["fairseq-score", "--sys", "x"]),
    ],
)
def test_what_a_command_of_fairseq_is_given(
    typed: List[str], given: List[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: List[Any] = []
    monkeypatch.setattr(sys, "argv", ["luna-fairseq"])
    monkeypatch.setattr(plugin_first, "load", lambda: seen.append("the plugin"))
    name = f"fairseq_cli.{given[0].removeprefix('fairseq-').replace('-', '_')}"
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(cli_main=lambda: seen.append(sys.argv) or 7))
    assert run.main("luna-fairseq run", typed) == 7
    assert seen == ["the plugin", given]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["fairseq-frain"], 2, "there is no command fairseq-frain of fairseq: take one of fairseq-train, "),
        ([], 2, "the following arguments are required: COMMAND"),
        (["--help"], 0, "torchrun --nproc_per_node 2 -m luna_fairseq run fairseq-train"),
        (
            ["fairseq-train", "x", "--arch", "luno"],
            2,
            "fairseq-train: error: argument --arch/-a: invalid choice: 'luno'",
        ),
        (["train", "--help"], 0, "usage: fairseq-train"),
        (["train", "no-data", "--arch", "luna", "--max-tokens", "9", "--cpu"], 1, "no-data"),
        (["hydra-train", "common.nonsense=1"], 1, "nonsense"),
    ],
)
def test_errors_are_those_of_the_command(arguments: List[str], code: int, said: str) -> None:
    output = run_command("luna-fairseq", "run", *arguments, code=code)
    assert said in output
    if "fairseq-frain" in arguments:
        assert "Traceback" not in output and all(name in output for name in run.COMMANDS)


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300, check=False
    )


# What Python 3.14 does: the type of an optional option has another name, and cannot be called; argparse looks at each
# help text.
_AS_PYTHON_3_14 = """
import argparse, sys, typing

typing._UnionGenericAlias.__repr__ = lambda self: " | ".join(
    "None" if one is type(None) else one.__name__ if type(one) is type else str(one) for one in self.__args__
)
add = argparse._ActionsContainer.add_argument

def add_and_look(self, *args, **kwargs):
    if isinstance(kwargs.get("type"), typing._UnionGenericAlias):
        raise TypeError(f"{kwargs['type']!r} is not callable")
    action = add(self, *args, **kwargs)
    if action.help and hasattr(self, "_get_formatter"):
        try:
            self._get_formatter()._expand_help(action)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError("badly formed help string") from error
    return action

argparse._ActionsContainer.add_argument = add_and_look
"""


@pytest.mark.long
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="it is so there")
def test_it_starts_where_fairseq_cannot_be_imported(tmp_path: Path) -> None:
    """Python 3.14 itself is run by scripts/matrix.sh."""
    failed = _python(_AS_PYTHON_3_14 + "import fairseq")
    assert failed.returncode == 1 and "is not callable" in failed.stderr
    start = "from luna_fairseq.cli import main\nsys.exit(main(['run', *sys.argv[1:]]))"
    started = _python(_AS_PYTHON_3_14 + start, "hydra-train", "--hydra-help")
    assert started.returncode == 0 and "Bash - Install:" in started.stdout, started.stderr
    started = _python(_AS_PYTHON_3_14 + start, "train", "--help")
    assert started.returncode == 0 and "--user-dir" in started.stdout, started.stderr
    # The repair that is missed is the one of hydra; fairseq is imported by then.
    off = "from luna_fairseq import compat\ncompat.REPAIRS[1].act = lambda _: print\n"
    failed = _python(_AS_PYTHON_3_14 + off + start, "hydra-train", "--hydra-help")
    assert failed.returncode == 1 and "badly formed help string" in failed.stderr


@pytest.mark.long
def test_data_workers_are_forked_although_another_method_is_settled() -> None:
    """On Python 3.14, where an import of fairseq's asks for the method, which is another one there."""
    done = _python(
        "import multiprocessing, sys\nfrom types import SimpleNamespace\nfrom luna_fairseq import plugin_first\n"
        "multiprocessing.set_start_method('forkserver')\n"
        "plugin_first.sys = SimpleNamespace(version_info=(3, 14), platform='linux', modules=sys.modules)\n"
        "plugin_first.load()\nprint(multiprocessing.get_start_method())\n"
    )
    assert done.stdout == "fork\n", done.stderr


@pytest.mark.long
def test_a_spawned_process_loads_the_plugin_before_anything_else() -> None:
    """Data workers and the processes of several GPUs, which first of all read what they are sent."""
    code = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from luna_fairseq import plugin_first

if __name__ == "__main__":
    plugin_first.load()
    seen = "[__import__('sys').modules['luna_fairseq.plugin']._begun, 'apollo' in fairseq.optim.OPTIMIZER_REGISTRY]"
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        print(pool.submit(eval, seen.replace("fairseq.optim", "__import__('sys').modules['fairseq.optim']")).result())
"""
    done = _python(code)
    assert done.stdout == "[True, True]\n", done.stderr


@pytest.mark.long
@pytest.mark.parametrize("started", [["-m", "luna_fairseq"], [str(REAL / "luna-fairseq")]])
def test_torchrun_starts_it(started: List[str], corpus: Corpus, tmp_path: Path) -> None:
    options = [*_train_options(corpus), "--distributed-world-size", 2]
    said = run_command(
        *("torchrun", "--standalone", "--nproc_per_node", 2, *started, "run", "fairseq-train", *options),
        *("--save-dir", tmp_path, "--num-workers", 1, "--distributed-backend", "gloo"),
        real=True,
    )
    assert "distributed init (rank 1)" in said and "num_updates: 3" in said.replace("|", "")
    assert (tmp_path / "checkpoint_last.pt").exists()


@pytest.mark.long
def test_what_is_printed_where_is_that_of_the_command(corpus: Corpus, tmp_path: Path) -> None:
    """In processes of their own, where nobody has imported fairseq before; Hydra's warnings are gone."""
    generation = [corpus.data, "--path", tmp_path / "0" / "checkpoint_last.pt", "--cpu", "--num-workers", 0]
    evaluation = [*generation, "--task", "translation", "--max-tokens", 500]
    for command, arguments in (
        ("fairseq-train", _train_options(corpus)),
        ("fairseq-generate", generation),
        ("fairseq-interactive", generation),
        ("fairseq-validate", evaluation),
    ):
        printed = []
        starts = ([REAL / command, "--user-dir", USER_DIR], [REAL / "luna-fairseq", "run", command])
        for number, start in enumerate(starts):
            place = ["--save-dir", tmp_path / str(number)] if command == "fairseq-train" else []
            done = subprocess.run(
                [*map(str, [*start, *arguments, *place])],
                input="the cat\n" * 11,
                capture_output=True,
                text=True,
                check=True,
            )
            where = [re.findall(r"INFO[ |:]+[\w.]+[ |:]+[^|:{\d]+", text) for text in (done.stdout, done.stderr)]
            printed.append([*where, re.findall("^[HPDST]-.*", done.stdout, re.M), "Warning" in done.stderr])
        assert printed[0] == printed[1] and any(printed[0][:2]), command
    hydra = run_command("luna-fairseq", "run", "hydra-train", "--cfg", "job", real=True)
    assert "Warning" not in hydra and "common:" in hydra
