"""Functions of scripts/experiment.sh, called as the scripts call them."""

import os
import subprocess
from typing import Any

from support.forks import path_variable
from support.running import ROOT


def run_shell(commands: str, *arguments: Any, code: int = 0, **environment: str) -> str:
    """What commands print after experiment.sh has been read, stdout and stderr together.

    Args:
        commands: for bash.
        arguments: "$1" and so on.
        code: the exit code to expect.
        environment: variables to add.
    """
    script = f"set -euo pipefail\nCALLER=$PWD DEFAULT_OUT=out\n. scripts/experiment.sh\n{commands}"
    done = subprocess.run(
        ["bash", "-c", script, "it", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PATH": path_variable(), **environment},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr
