"""make setup says in one sentence what stands in its way, and what it does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Tuple

import pytest

from support.running import ROOT


def _make(folder: Path, *arguments: str, code: int = 2, **environment: str) -> str:
    """Run on a copy of the Makefile alone."""
    for name in ("Makefile", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, folder / name)
    done = subprocess.run(
        ["make", "setup", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == code and not (folder / ".venv").exists(), done.stdout + done.stderr
    return done.stdout + done.stderr


def _python(folder: Path, version: Tuple[int, int, int]) -> str:
    """This Python, with another version."""
    said = ".".join(map(str, version))
    path = folder / f"python{said}"
    path.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"sys.version_info, sys.version = {version}, '{said} (main)'\nexec(sys.argv[2])\n"
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 14, 0)])
def test_a_python_with_which_it_does_not_work(version: Tuple[int, int, int], tmp_path: Path) -> None:
    said = _make(tmp_path, f"PYTHON={_python(tmp_path, version)}")
    assert f"Python is {'.'.join(map(str, version))}: set PYTHON to a 3.10, 3.11, 3.12 or 3.13\n" in said


def test_no_python_and_no_compiler(tmp_path: Path) -> None:
    assert "There is no python9: set PYTHON to a 3.10" in _make(tmp_path, "PYTHON=python9")
    python = f"PYTHON={_python(tmp_path, (3, 13, 1))}"
    assert "There is no C++ compiler, which fairseq needs on this Python: " in _make(tmp_path, python, CXX="nothing")


def test_it_shows_what_it_does_and_leaves_cuda_home_out(tmp_path: Path) -> None:
    """On Python 3.12 without a compiler."""
    python = _python(tmp_path, (3, 12, 1))
    said = _make(tmp_path, "-n", f"PYTHON={python}", code=0, CXX="nothing", CUDA_HOME="/cuda")
    assert "--quiet" not in said and "1/3 torch" in said and "3/3 fairseq" in said
    assert "env -u CUDA_HOME" in said and "--no-build-isolation" in said
