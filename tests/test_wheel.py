"""The wheel and the sdist hold everything, and the wheel alone does what the documentation says."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Dict, List, NamedTuple, Set

import pytest

from luna_fairseq.data.demo.corpus import generate
from support.forks import REAL
from support.running import ROOT

FILES = (
    "pyproject.toml setup.py MANIFEST.in README.md LICENSE CHANGELOG.md CITATION.cff CONTRIBUTING.md Makefile".split()
)
FOLDERS = "luna_fairseq configs scripts tests docs".split()
COMMANDS = "fairseq-preprocess fairseq-train fairseq-hydra-train fairseq-generate sacrebleu".split()

pytestmark = pytest.mark.long


class Built(NamedTuple):
    """What was built."""

    sdist: Path
    wheel: Path


def _files(folder: str) -> Set[str]:
    """The files of a folder of the repository, from its root."""
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
    return {name for name in found if "__pycache__" not in name and not name.endswith(".pyc")}


def _run(*command: object, cwd: Path, **environment: str) -> str:
    """Run a command that knows nothing of the repository."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=600, check=False,
        env={**env, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist of a copy of the repository, and the wheel of the sdist, without a network."""
    folder = tmp_path_factory.mktemp("built")
    copy = folder / "copy"
    copy.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    program = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    _run(REAL / "python", "-c", program, folder, cwd=copy)
    (sdist,) = folder.glob("*.tar.gz")
    shutil.rmtree(copy)
    options = ["--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", folder]
    _run(REAL / "python", "-m", "pip", "wheel", *options, sdist, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return Built(sdist, wheel)


def test_the_sdist_holds_what_a_clone_has(built: Built) -> None:
    with tarfile.open(built.sdist) as tar:
        names = {"/".join(Path(entry.name).parts[1:]) for entry in tar if entry.isfile()}
    wanted = {*FILES, *(name for folder in FOLDERS for name in _files(folder))}
    made = {name for name in names if name in ("PKG-INFO", "setup.cfg") or name.startswith("luna_fairseq.egg-info/")}
    assert names - made == wanted


def test_the_wheel_holds_the_package_and_what_its_commands_need(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        metadata = archive.read(next(name for name in entries if name.endswith("/METADATA"))).decode()
    shared = {f"luna_fairseq/share/{name}" for name in (*_files("configs"), *_files("scripts"), "CHANGELOG.md")}
    information = {name for name in entries if ".dist-info/" in name}
    assert set(entries) - information == _files("luna_fairseq") | shared
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in information)
    for name in _files("scripts"):
        mode = entries[f"luna_fairseq/share/{name}"].external_attr >> 16
        assert mode & 0o111 == (ROOT / name).stat().st_mode & 0o111
    assert "Requires-Python: >=3.10\n" in metadata and "License-Expression: MIT\n" in metadata


@pytest.fixture(scope="module")
def commands(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment that has the wheel, beside what this one has."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = ["-m", "pip", "--python", python, "install", "--no-index", "--no-deps"]
    _run(REAL / "python", *install, built.wheel, cwd=folder)
    # A path file: those in the folders that it names, such as that of an editable install, count for nothing.
    (site,) = folder.glob("lib/python*/site-packages")
    beside = [path for path in sys.path if path.endswith("site-packages")]
    (site / "beside.pth").write_text("".join(f"{path}\n" for path in beside))
    for name in COMMANDS:
        (entry,) = importlib.metadata.entry_points(group="console_scripts", name=name)
        path = folder / "bin" / name
        program = f"import sys\nfrom {entry.module} import {entry.attr}\nsys.exit({entry.attr}())\n"
        path.write_text(f"#!{python}\n{program}")
        path.chmod(0o755)
    return folder / "bin"


def _tree(folder: Path) -> Dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_commands_work_from_an_empty_folder(commands: Path, tmp_path: Path) -> None:
    """Those of the documentation, smaller; all that they write is in the folder where they are called."""
    here = tmp_path / "here"
    (here / "text").mkdir(parents=True)
    pairs = generate(460, 1)
    for split, start, end in (("train", 0, 430), ("val", 430, 450), ("test_2016_flickr", 450, 460)):
        for language in ("en", "de"):
            text = "".join(f"{getattr(pair, language)}\n" for pair in pairs[start:end])
            (here / "text" / f"{split}.{language}").write_text(text, encoding="utf-8")
    (site,) = commands.parent.glob("lib/python*/site-packages")
    before = _tree(site)

    def shell(line: str) -> str:
        path = os.pathsep.join([str(commands), os.environ["PATH"]])
        return _run("bash", "-euc", line, cwd=here, PATH=path, SMOKE="1", THREADS="1")

    for name in ("configs", "scripts"):
        assert shell(f"luna-fairseq {name}") == f"{site}/luna_fairseq/share/{name}\n"
    script, name = 'bash "$(luna-fairseq scripts)/multi30k.sh"', "multi30k_luna_tied_16_adam"
    assert f"prepared: {here}/multi30k-out/smoke/data-bin" in shell(f"{script} prepare text")
    assert "valid on 'valid' subset" in shell(f"{script} train {name}")
    assert f"{name}: BLEU " in shell(f"{script} score {name}")
    row = next(line for line in shell(f"{script} table").splitlines() if line.startswith(f"| {name} |"))
    assert row.count(" SMOKE |") == 5
    # By links, commands are those of a clone.
    shell('ln -s "$(luna-fairseq scripts)" "$(luna-fairseq configs)" .')
    assert row in shell("scripts/multi30k.sh table")
    assert "usage: python -m scripts.bench" in shell(
        'PYTHONPATH="$(luna-fairseq scripts)/.." python -m scripts.bench --help'
    )
    hydra: List[str] = [
        'fairseq-hydra-train --config-dir "$(luna-fairseq configs)/translation" --config-name translation',
        'common.user_dir="$(luna-fairseq user-dir)" task.data=$PWD/multi30k-out/smoke/data-bin',
        "checkpoint.save_dir=$PWD/checkpoints common.cpu=true optimization.max_update=2 ++model.encoder_layers=1",
        "++model.decoder_layers=1 dataset.max_tokens=400 dataset.num_workers=0 dataset.data_buffer_size=0",
    ]
    assert "done training" in shell(" ".join(hydra))
    assert (here / "checkpoints" / "checkpoint_last.pt").exists()
    assert _tree(site) == before
