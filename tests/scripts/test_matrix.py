"""scripts/matrix.sh: every step in an environment of its own, once it has passed; the table says what happened."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.running import ROOT, run_script

# Stands for Python and for every command of an environment: it makes the files that the script looks for.
STAND_IN = r"""#!/usr/bin/env bash
set -euo pipefail
name=${0##*/}
echo "$name ${*:1:3}" | head -n 1 >> "$RECORD"
option() { while [ "$2" != "$1" ]; do set -- "$1" "${@:3}"; done; echo "$3"; }
[ "$name" != "${BREAK:-}" ] || exit 3
case "$name $*" in
  python*ensurepip*) echo 3.13.9 ;;
  python*fairseq-fixed*) echo "3.13.9 | 2.9.1+cpu | 2.4 | 1.3.2 | compiled" ;;
  python*'-m venv '*)
    mkdir -p "$3/bin"
    for command in python luna-fairseq fairseq-{train,hydra-train,generate} pytest; do cp "$0" "$3/bin/$command"; done
    ;;
  python*'pip wheel'*) touch "$(option --wheel-dir "$@")/luna_fairseq-1-py3-none-any.whl" ;;
  python*) ;;
  'luna-fairseq user-dir' | 'luna-fairseq configs') echo /somewhere ;;
  *hydra-train*)
    for word; do
      [[ $word != checkpoint.save_dir=* ]] || folder=$(eval echo "${word#*=}")
    done
    mkdir -p "$folder" && touch "$folder/checkpoint_last.pt"
    ;;
  *fairseq-train*) mkdir -p "$(option --save-dir "$@")" && touch "$(option --save-dir "$@")/checkpoint_last.pt" ;;
  *fairseq-generate*) for i in {1..20}; do printf 'D-%s\t-1\teins\n' "$i"; done ;;
  'luna-fairseq average'*) touch "$(option --output "$@")" ;;
  pytest*) echo "98 passed in 3.00s" ;;
esac
"""


def _run(out: Path, command: str, python: Path, code: int = 0, **more: Any) -> str:
    environment = {
        **os.environ,
        "OUT": str(out),
        "PYTHONS": str(python),
        "RECORD": str(out.parent / "record"),
        **more,
    }
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "matrix.sh"), command],
        cwd=out.parent, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_steps_that_passed_are_kept(tmp_path: Path) -> None:
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    cell = out / "3.13.9-torch-2.9.1"

    # Where fairseq-train does not start, the rest goes by "luna-fairseq run".
    said = _run(out, "run", python, code=1, BREAK="fairseq-train", TORCHES="2.9.1")
    assert f"fairseq-train failed: see {cell}/fairseq-train.log" in said
    row = "| 3.13.9 | 2.9.1+cpu | 2.4 | 1.3.2 | compiled | pass | {}" + " | pass" * 6 + " (98 passed) |"
    assert said.splitlines()[-1] == row.format("FAIL")
    record = (tmp_path / "record").read_text()
    assert "luna-fairseq run fairseq-generate" in record and not (cell / "env").exists()

    # Tried again, in an environment made again; nothing else is.
    (tmp_path / "record").unlink()
    assert _run(out, "run", python, TORCHES="2.9.1").splitlines()[-1] == row.format("pass")
    record = (tmp_path / "record").read_text()
    assert "python -m venv" in record and "fairseq-train" in record and "\npytest" not in record
    (tmp_path / "record").unlink()
    assert "already finished: " in _run(out, "run", python, TORCHES="2.9.1")
    assert "venv" not in (tmp_path / "record").read_text().replace("import sys, venv", "")

    # Nothing runs where nothing could be installed.
    said = _run(out, "run", python, code=1, BREAK="python", TORCHES="newest")
    assert "there is no Python" in said
    (out / "3.13.9-torch-newest").mkdir()
    assert _run(out, "table", python).splitlines()[-1] == "| 3.13.9 | newest | | | |" + " not run |" * 8


def test_a_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 3.9.18\n")
    python.chmod(0o755)
    said = _run(tmp_path / "out", "run", python, code=1)
    assert said == f"matrix.sh: {python} is Python 3.9.18: name 3.10 or later in PYTHONS\n"


@pytest.mark.long
def test_the_environment_at_hand(tmp_path: Path) -> None:
    row = run_script(tmp_path, "scripts/matrix.sh", "run").splitlines()[-1]
    assert row.count("| pass ") == 7 and "| not run | pass |" in row and "(6 passed)" in row
