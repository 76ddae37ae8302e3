"""What stands in the place of a command: it lets the fork server run it, and ends as it ends.

It runs without site-packages, and so starts in milliseconds. See forks.py.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from typing import Any, List

# Sent on to the command; those that a shell has set to be ignored stay ignored.
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main(address: str, real: str, python_path: str) -> None:
    """Run the command ``real`` with this process's arguments, environment, folder, input and outputs.

    Args:
        address: of the server's socket.
        real: the command's own file, which is started instead where a fork would not be the same.
        python_path: the PYTHONPATH that the server was started with.
    """
    arguments = sys.argv[1:]
    # What a new interpreter reads when it starts, a running one has read long ago.
    own_start = os.environ.get("PYTHONPATH", "") != python_path or not _can_be_forked(real, arguments)
    if own_start:
        os.execv(real, [real, *arguments])
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    child: List[int] = []
    early: List[int] = []

    def forward(number: int, frame: Any) -> None:
        if child:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.kill(child[0], number)
        else:
            early.append(number)

    ignored = [number for number in FORWARDED if signal.getsignal(number) is signal.SIG_IGN]
    for number in FORWARDED:
        if number not in ignored:
            signal.signal(number, forward)
    request = json.dumps(
        {
            "command": os.path.basename(real),
            "path": sys.argv[0],
            "arguments": arguments,
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "ignored": ignored,
            "umask": _umask(),
        }
    ).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "little")], [0, 1, 2])
    server.sendall(request)
    answers = server.makefile("rb")
    child.append(int(answers.readline()))
    for number in early:
        forward(number, None)
    last = answers.readline()
    status = int(last) if last else 70  # the server is gone
    if status < 0:  # killed by a signal: end the same way
        number = -status
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(status)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _can_be_forked(real: str, arguments: List[str]) -> bool:
    """Python runs a module, a file or a text; the server knows none of its own options."""
    if not os.path.basename(real).startswith("python"):
        return True
    return bool(arguments) and (arguments[0] in ("-c", "-m", "-") or not arguments[0].startswith("-"))
