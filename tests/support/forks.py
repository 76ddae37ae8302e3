"""Commands without the seconds in which Python imports torch and fairseq.

:func:`commands` is a folder with a small file for each command of this Python's environment, ``python`` itself
included. It asks a server, a process that has imported torch and fairseq, to fork; the fork does the work with the
environment, folder, input, outputs and signals of whoever started it, and ends with the same exit code. The folder
comes first in the PATH of the scripts that tests run.

A test that is about starting, killing or several processes takes :data:`REAL`, the environment's own commands.
"""

import atexit
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

REAL = Path(sys.executable).parent
HERE = Path(__file__).resolve().parent
NAMES = (
    "fairseq-preprocess fairseq-train fairseq-hydra-train fairseq-generate fairseq-interactive fairseq-validate "
    "fairseq-eval-lm fairseq-score luna-fairseq sacrebleu torchrun"
).split()


_SHARED = "LUNA_TEST_COMMANDS"  # where the workers of pytest-xdist find the folder that start() has made


def start() -> Path:
    """Start the server, and make the folder of commands; both end with this process.

    It takes the server seconds to be ready, which :func:`commands` waits for.
    """
    folder = Path(tempfile.mkdtemp(prefix="luna-commands-"))
    owner = os.getpid()
    address, python_path = folder / "socket", os.environ.get("PYTHONPATH", "")
    for name in [*NAMES, "python", "python3"]:
        if not (REAL / name).exists():
            continue
        call = f"main({str(address)!r}, {str(REAL / name)!r}, {python_path!r})"
        path = folder / name
        path.write_text(
            f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {str(HERE)!r})\n"
            f"from fork_client import main\n{call}\n"
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, str(HERE / "fork_server.py"), str(address), str(folder / "python")],
        stdin=subprocess.PIPE, env=environment, start_new_session=True,
    )  # fmt: skip
    assert server.stdin is not None

    def end() -> None:
        if os.getpid() == owner:  # and not a process that a test has forked
            server.stdin.close()  # type: ignore[union-attr]
            server.wait(timeout=60)
            shutil.rmtree(folder)

    atexit.register(end)
    os.environ[_SHARED] = str(folder)
    return folder


@cache
def commands() -> Path:
    """The folder of commands, when the server is ready; it is started here, unless the tests have one already."""
    folder = Path(os.environ[_SHARED]) if _SHARED in os.environ else start()
    deadline = time.monotonic() + 120
    while not (folder / "ready").exists():
        assert time.monotonic() < deadline, "the fork server did not start"
        time.sleep(0.05)
    return folder


def path_variable() -> str:
    """PATH with :func:`commands` first, and this Python's environment after it."""
    return os.pathsep.join([str(commands()), str(REAL), os.environ["PATH"]])
