"""Scripts write over and remove only what they made; a folder of somebody else's stays as it is."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

from support.running import ROOT
from support.shell import run_shell
from support.stub import stubs
from support.trees import snapshot

SIX = [f"{split}.{language}" for split in ("train", "val", "test_2016_flickr") for language in ("en", "de")]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Somebody's folder, with everything in it that a script might write over or remove."""
    files = (
        "bin/mytool text/train.txt pieces/train.en data-bin/train.bin spm.model settings lock failed raw/valid.en "
    )
    files += "corpus-text/train.txt corpus-text/valid.txt "
    files += "sub/empty logs/mine.log checkpoints/mine data/mine wikitext2_luna_tied_32/checkpoints/mine train.log"
    folder = tmp_path / "home"
    for name in [*files.split(), *(f"text/{name}" for name in SIX)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}\n")
    (folder / "elsewhere").symlink_to("text")
    return folder


def _commands(home: Path) -> Dict[str, List[str]]:
    """For each script one that writes."""
    return {
        "demo": [],
        "multi30k": ["prepare", str(home / "text")],
        "masked_lm": ["pretrain", "wikitext2_luna_tied_32", str(home / "data-bin")],
        "language_model": ["prepare", str(home / "corpus-text")],
        "lra": ["prepare", "listops"],
        "wmt14": ["download"],
        "distill": ["translate", "teacher"],
        "documents": ["prepare"],
        "denoising": ["prepare", str(home / "corpus-text")],
        "torchrun": [],
        "gpu_report": [],
    }


def _run(script: str, arguments: List[str], out: Any, cwd: Path, code: Optional[int] = 1, **more: str) -> str:
    environment = {
        **os.environ,
        "OUT": str(out),
        "PATH": f"{stubs(cwd.parent / 'stubs')}:{os.environ['PATH']}",
        **more,
    }
    done = subprocess.run(
        [str(ROOT / "scripts" / f"{script}.sh"), *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "out", ["{home}", ".", "{home}/", "../home", "../link", "../link/sub/..", "{home}/bin/mytool"]
)
@pytest.mark.parametrize(
    "script",
    "demo multi30k masked_lm language_model lra wmt14 distill documents denoising torchrun gpu_report".split(),
)
def test_a_folder_of_somebody_else_s_is_refused(script: str, out: str, home: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("home")
    before = snapshot(home)
    more = {"HOME": str(home), "WMT14_SOURCE": str(home / "raw"), "CPU": "1", "DATA": str(home / "data-bin")}
    said = _run(script, _commands(home)[script], out.format(home=home), home, **more)
    assert said.startswith(f"{script}.sh: ") and said.count("\n") == 1 and "set OUT to " in said, said
    assert snapshot(home) == before


def test_the_root_is_refused() -> None:
    """By the function alone: were it broken, a script would remove /bin."""
    said = run_shell('own / "$@"', code=1)
    assert (
        said.startswith("it: / holds ") and "which this script did not make: set OUT to a new or empty folder" in said
    )


def test_the_home_of_a_smoke_run(home: Path) -> None:
    """Inside of OUT, a folder smoke of somebody else's is refused as well."""
    (home / "smoke").mkdir()
    (home / "smoke" / "mine").write_text("mine")
    before = snapshot(home)
    said = _run("multi30k", _commands(home)["multi30k"], home, home, SMOKE="1")
    assert f"{home}/smoke holds mine, which this script did not make" in said
    assert snapshot(home) == before


@pytest.mark.parametrize(
    "script", "multi30k masked_lm language_model lra wmt14 distill documents denoising torchrun gpu_report".split()
)
def test_no_smoke_run_begins_in_a_folder_of_somebody_else_s(script: str, home: Path) -> None:
    """Nor in a file."""
    before = snapshot(home)
    more = {"HOME": str(home), "WMT14_SOURCE": str(home / "raw"), "CPU": "1", "DATA": str(home / "data-bin")}
    said = _run(script, _commands(home)[script], home, home, SMOKE="1", **more)
    assert said.startswith(f"{script}.sh: {home} holds ") and said.count("\n") == 1, said
    assert said.endswith(", which this script did not make: set OUT to a new or empty folder\n")
    said = _run(script, _commands(home)[script], home / "settings", home, SMOKE="1", **more)
    assert said == f"{script}.sh: {home}/settings is not a folder: set OUT to another one\n"
    assert snapshot(home) == before


def test_the_smoke_run_of_the_demo_begins_in_no_folder_of_somebody_else_s(home: Path, tmp_path: Path) -> None:
    """By default it is demo-out/smoke."""
    home.rename(tmp_path / "demo-out")
    before = snapshot(tmp_path)
    said = _run("demo", [], "", tmp_path, SMOKE="1")
    assert said.startswith(f"demo.sh: {tmp_path}/demo-out holds ") and said.count("\n") == 1
    assert {name: one for name, one in snapshot(tmp_path).items() if not name.startswith("stubs")} == before


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a smoke run", "a run", "a run of before"])
def test_a_smoke_run_begins_beside_a_run(there: str, tmp_path: Path) -> None:
    made = {"a smoke run": "smoke/kept", "a run": ".made-by-it", "a run of before": "data-bin/.done"}.get(there)
    out = tmp_path / "out"
    if there != "nothing":
        out.mkdir()
    if made is not None:
        (out / made).parent.mkdir(exist_ok=True)
        (out / made).touch()
    code = 1 if there == "a smoke run" else 0  # it has no mark
    run_shell('own "$OUT" data-bin/.done', OUT=str(out), SMOKE="1", code=code)
    assert (out / "smoke" / ".made-by-it").exists() == (code == 0)


def test_a_folder_that_cannot_be_made(home: Path) -> None:
    said = run_shell('own "$1"', home / "settings" / "out", code=1)
    assert said == f"it: {home}/settings/out cannot be made (Not a directory): set OUT to another folder\n"


def test_pairs_that_are_not_multi30k_s_are_told_of(home: Path) -> None:
    """In the first line; they are prepared all the same."""
    said = _run("multi30k", ["prepare", "text"], home / "text" / "out", home, code=0)
    assert said.startswith(f"notice: {home}/text/train.en has 1 lines and Multi30k's 29000: no figure of docs/")
    assert said.count("notice: ") == 1
    for split, lines in (("train", 29000), ("val", 1014), ("test_2016_flickr", 1000)):
        for language in ("en", "de"):
            (home / "text" / f"{split}.{language}").write_text("\n" * (lines - 1) + "the last one")
    assert "notice" not in _run("multi30k", ["prepare", "text"], home / "text" / "other", home, code=0)


def test_text_that_figures_are_not_for_is_told_of(home: Path) -> None:
    """By the scripts that take WikiText-2, as by that of Multi30k. (Stubs make nothing, at which both end.)"""
    (home / "data-bin" / ".done").touch()
    folder, known = home / "wiki", {"train.txt": 4358, "valid.txt": 3760}
    folder.mkdir()
    for name, page, files in (("language_model", "language-model", 2), ("denoising", "multi30k", 1)):
        for file, lines in known.items():
            (folder / file).write_text("a line\n" * lines)
        assert "notice" not in _run(name, ["prepare", "wiki"], home / f"{name}-out", home, FROM=str(home))
        for other in list(known)[:files]:
            (folder / other).write_text("mine\n")
        said = _run(name, ["prepare", "wiki"], home / f"{name}-other", home, FROM=str(home))
        assert said.startswith(f"notice: {folder}/train.txt has 1 lines and WikiText-2's test part 4358: no figure ")
        assert f" of docs/{page}.md holds for it\n" in said and said.count("notice: ") == 1


@pytest.mark.parametrize("source", ["text", "elsewhere", "text/../text", "sub/../elsewhere"])
def test_text_in_the_folder_to_write_to_is_never_the_source(source: str, home: Path) -> None:
    """Nor if the folder is the script's own."""
    before = snapshot(home)
    said = _run("multi30k", ["prepare", source], home, home)
    assert "lies in" in said and "set OUT to another folder" in said and said.count("\n") == 1
    assert snapshot(home) == before
    (home / ".made-by-multi30k.sh").touch()
    before = snapshot(home)
    assert "lies in" in _run("multi30k", ["prepare", source], home, home)
    assert snapshot(home) == before


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a link to an empty folder", "a smoke run"])
def test_a_folder_is_taken_and_made_anew(there: str, home: Path, tmp_path: Path) -> None:
    """Also one inside of the source; what an interrupted run left goes."""
    out = home / "text" / "out"
    if there == "a link to an empty folder":
        (tmp_path / "empty").mkdir()
        out.symlink_to(tmp_path / "empty")
    elif there != "nothing":
        out.mkdir()
    if there == "a smoke run":
        (out / "smoke").mkdir()
        (out / "smoke" / "kept").touch()
    source = {name: content for name, content in snapshot(home).items() if "/out" not in name}
    for said in ("prepared", "already prepared", "prepared"):
        assert f"{said}: {out}/data-bin" in _run("multi30k", ["prepare", "text"], "text/out", home, code=0)
        assert (out / "text" / "train.en").read_text() == "made\n"
        if said == "already prepared":
            (out / "data-bin" / ".done").unlink()
            (out / "text" / "left").touch()
    assert not (out / "text" / "left").exists()
    assert (out / "smoke" / "kept").exists() == (there == "a smoke run")
    left = {name: content for name, content in snapshot(home).items() if "/out" not in name}
    assert left == source
    # What one script made is not another one's.
    before = snapshot(home)
    assert "which this script did not make" in _run("demo", [], out, home)
    assert snapshot(home) == before


def test_a_run_of_another_script_is_no_proof(home: Path, tmp_path: Path) -> None:
    """Of torchrun.sh, say, which is given any folder."""
    (home / "run" / "hydra" / ".hydra").mkdir(parents=True)
    source = tmp_path / "source"
    source.mkdir()
    for split in ("train", "val", "test_2016_flickr"):
        for language in ("en", "de"):
            (source / f"{split}.{language}").touch()
    before = snapshot(home)
    assert "which this script did not make" in _run("multi30k", ["prepare", str(source)], home, home)
    assert snapshot(home) == before


def test_a_new_disk_is_empty(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    run_shell('own "$1"', tmp_path)
    assert (tmp_path / ".made-by-it").exists()


@pytest.mark.parametrize(
    ("script", "made", "content"),
    [
        ("multi30k", "data-bin/.done", ""),
        ("masked_lm", "wikitext2_roberta/hydra/.hydra/config.yaml", ""),
        ("lra", "listops.luna_16/hydra/.hydra/config.yaml", ""),
        ("lra", "data/listops/settings.json", "{}"),
        ("wmt14", "raw/europarl.en", ""),
        ("torchrun", "checkpoints/checkpoint_last.pt", ""),
        ("demo", "settings", "24000\n500\n2000\n--arch\nluna_base_untied\n"),
    ],
)
def test_what_earlier_versions_made_is_known(script: str, made: str, content: str, tmp_path: Path) -> None:
    """As far as it can be told from what else might lie there. A pattern in the folder's name is only a name."""
    out = tmp_path / "a[b]*"
    (out / made).parent.mkdir(parents=True)
    (out / made).write_text(content)
    source = (ROOT / "scripts" / f"{script}.sh").read_text()
    lines = [line.strip() for line in source.splitlines()]
    found = [line for line in lines if "MADE=(" in line][:1]
    call = next((line for line in lines if line.startswith('own "$OUT"')), 'own "$OUT" "${MADE[@]}"')
    run_shell("\n".join(["OUT=$1", "MADE=()", *found, call]), out)
    assert (out / ".made-by-it").exists()
    (out / made).parent.rename(out / "other") if "/" in made else (out / made).rename(out / "other")
    (out / ".made-by-it").unlink()
    assert "which this script did not make" in run_shell("\n".join(["OUT=$1", "MADE=()", *found, call]), out, code=1)


def test_a_run_s_folder_is_looked_at_too(home: Path) -> None:
    """In OUT, which is the script's own."""
    (home / ".made-by-masked_lm.sh").touch()
    before = snapshot(home)
    said = _run("masked_lm", _commands(home)["masked_lm"], home, home)
    assert f"{home}/wikitext2_luna_tied_32 holds checkpoints, which this script did not make" in said
    assert snapshot(home) == before


def test_the_demo_s_folder_is_relative_to_the_caller(tmp_path: Path) -> None:
    """As those of the other scripts, by the variable and by the argument."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    for out, arguments in (("mine", []), ("", ["mine"]), ("other", ["mine"])):
        said = _run("demo", arguments, out, tmp_path)
        assert said == f"demo.sh: {tmp_path}/mine holds file, which this script did not make: " \
            "set OUT to a new or empty folder\n"  # fmt: skip


@pytest.mark.parametrize("script", ["demo", "multi30k", "masked_lm", "lra", "wmt14", "torchrun", "slurm"])
def test_without_out_the_caller_s_folder_is_written_to(script: str, home: Path, tmp_path: Path) -> None:
    """Never the one with the scripts, which may be that of the installed package."""
    caller = tmp_path / "caller"
    shutil.copytree(home / "text", caller / "text")
    (caller / "data").mkdir()
    installed = tmp_path / "share"
    for name in ("scripts", "configs"):
        shutil.copytree(ROOT / name, installed / name, ignore=shutil.ignore_patterns("__pycache__", "bench"))
    programs = stubs(tmp_path / "stubs")
    (programs / "sbatch").write_text('#!/bin/sh\necho "OUT=$OUT"\n')
    (programs / "sbatch").chmod(0o755)
    arguments = {"multi30k": ["prepare", "text"], "masked_lm": ["pretrain", "wikitext2_roberta", "data"]}
    arguments |= {"lra": ["prepare", "listops"], "wmt14": ["download"]}
    before = snapshot(installed)
    environment = {**os.environ, "OUT": "", "PATH": f"{programs}:{os.environ['PATH']}", "DATA": "data", "CPU": "1"}
    done = subprocess.run(
        ["bash", str(installed / "scripts" / f"{script}.sh"), *arguments.get(script, [])],
        cwd=caller, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert snapshot(installed) == before
    folder = "outputs/translation" if script in ("torchrun", "slurm") else f"{script.replace('_', '-')}-out"
    if script == "slurm":
        assert f"OUT={caller}/{folder}\n" in done.stdout
    else:
        assert (caller / folder / f".made-by-{script}.sh").exists(), done.stdout + done.stderr


def test_clean_removes_what_make_made(home: Path) -> None:
    """Run on a copy of the Makefile alone."""
    (home / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in (".venv", "demo-out"):
        (home / name).mkdir()
        (home / name / "mine").touch()
    before = snapshot(home)
    run = ["make", "-C", str(home), "clean"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert snapshot(home) == before and done.stdout.count("it stays") == 2
    (home / ".venv" / "pyvenv.cfg").touch()
    (home / "demo-out" / "settings").touch()
    subprocess.run(run, capture_output=True, text=True, check=True)
    assert not (home / ".venv").exists() and not (home / "demo-out").exists()
