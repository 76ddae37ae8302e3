"""A process that has imported torch and fairseq, and forks for each command that it is asked for. See forks.py.

``python fork_server.py SOCKET``: it makes a file ``ready`` beside the socket, and ends with its standard input.
"""

import atexit
import contextlib
import gc
import importlib
import importlib.metadata
import inspect
import io
import json
import logging
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
import warnings
from typing import Any, Callable, Dict, List, NoReturn, Optional

# Not luna_fairseq, which a command loads for itself, nor fairseq's commands, which set up the logging.
PRELOADED = (
    "torch torch._dynamo torch.distributed.run torch.utils.data fairseq fairseq.tasks fairseq.models "
    "fairseq.criterions fairseq.optim fairseq.optim.lr_scheduler fairseq.sequence_generator fairseq.trainer "
    "fairseq.checkpoint_utils fairseq.benchmark fairseq.data.encoders fairseq.dataclass.initialize hydra "
    "hydra.core.global_hydra sacrebleu sentencepiece pytorch_optimizer tensorboardX"
).split()


def preload() -> None:
    """Import what takes long, and leave no trace of it in the logging."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in PRELOADED:
            with contextlib.suppress(ModuleNotFoundError):  # an extra
                importlib.import_module(name)
        _fill_caches()
    root.setLevel(level)
    root.handlers[:] = handlers


def _fill_caches() -> None:
    """Let Hydra meet what fairseq writes for it, and inspect see every module: both remember, and are slow at first.

    It changes nothing but the time.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    values = ["null", "1", "0.1", "1e-08", "True", "[0.1,1]", "'a/b-c_d'", "'(0.9, 0.999)'", "['a', 'b']", "{}", "''"]
    keys = ["a", "a.b_c", "a._name"]
    OverridesParser.create().parse_overrides([f"{key}={value}" for key in keys for value in values])
    inspect.stack()


class Server:
    """Forks for each request; tells its process number, and how it ended.

    Args:
        address: of the socket to listen at.
    """

    def __init__(self, address: str) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(address)
        self.listener.listen(64)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, "new")
        self.selector.register(0, selectors.EVENT_READ, "end")
        self.clients: Dict[socket.socket, int] = {}
        self.children: Dict[int, socket.socket] = {}  # by the descriptor of the process

    def serve(self) -> Optional[Dict[str, Any]]:
        """Returns None in the server, at its end; a request in the process that is to do it."""
        while True:
            for key, _ in self.selector.select():
                if key.data == "end":
                    for pid in self.clients.values():
                        os.kill(pid, signal.SIGKILL)
                    return None
                if key.data == "new":
                    request = self.accept()
                    if request is not None:
                        return request
                elif key.data == "client" and key.fileobj in self.clients:
                    # It sends nothing more: whoever asked was killed.
                    os.kill(self.clients[key.fileobj], signal.SIGKILL)  # type: ignore[index]
                    self.selector.unregister(key.fileobj)
                elif key.data == "child":
                    self.finish(key.fd)

    def accept(self) -> Optional[Dict[str, Any]]:
        """Fork for the next request; returns it in the child.

        Whoever asks may be killed at any moment: that must not end the server, which others need.
        """
        client, _ = self.listener.accept()
        client.settimeout(10)
        descriptors: List[int] = []
        content = b""
        try:
            size, descriptors, _, _ = socket.recv_fds(client, 8, 3)
            whole = len(size) == 8 and len(descriptors) == 3
            while whole and len(content) < int.from_bytes(size, "little"):
                block = client.recv(1 << 20)
                whole = bool(block)
                content += block
        except OSError:
            whole = False
        if not whole:
            for descriptor in descriptors:
                os.close(descriptor)
            client.close()
            return None
        pid = os.fork()
        if pid == 0:
            for target, descriptor in enumerate(descriptors):
                os.dup2(descriptor, target)
            for descriptor in descriptors:
                os.close(descriptor)
            for other in [client, self.listener, *self.clients]:
                other.close()
            for process in self.children:
                os.close(process)
            self.selector.close()
            return json.loads(content)
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(OSError):  # killed meanwhile: its end of the connection tells
            client.sendall(b"%d\n" % pid)
        process = os.pidfd_open(pid)
        self.clients[client], self.children[process] = pid, client
        self.selector.register(process, selectors.EVENT_READ, "child")
        self.selector.register(client, selectors.EVENT_READ, "client")
        return None

    def finish(self, process: int) -> None:
        """Tell how a child has ended."""
        client = self.children.pop(process)
        _, status = os.waitpid(self.clients.pop(client), 0)
        self.selector.unregister(process)
        if client.fileno() in self.selector.get_map():
            self.selector.unregister(client)
        with contextlib.suppress(OSError):  # nobody waits for it any more
            client.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
        client.close()
        os.close(process)


def become(request: Dict[str, Any], python: str) -> Any:
    """Make this process what a new one would be; returns the work to do."""
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else default)
    import numpy
    import torch

    # What the interpreter, numpy and torch make of the environment and of chance when they start.
    random.seed()
    numpy.random.seed()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    if os.environ.get("PYTHONFAULTHANDLER"):
        import faulthandler

        faulthandler.enable()
    if os.environ.get("PYTHONUNBUFFERED"):
        for stream in (sys.stdout, sys.stderr):
            assert isinstance(stream, io.TextIOWrapper)
            stream.reconfigure(write_through=True)
    if os.environ.get("PYTHONWARNINGS"):
        warnings._processoptions(os.environ["PYTHONWARNINGS"].split(","))  # type: ignore[attr-defined]
    sys.executable = python  # a command that starts Python comes here, too
    command, arguments = request["command"], request["arguments"]
    if not command.startswith("python"):
        sys.argv = [request["path"], *arguments]
        (entry,) = importlib.metadata.entry_points(group="console_scripts", name=command)
        return lambda: sys.exit(entry.load()())
    kind, rest = arguments[0], arguments[1:]
    if kind == "-m":
        sys.path[0] = ""
        sys.argv = [kind, *rest[1:]]
        return lambda: runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    if kind in ("-c", "-"):
        sys.path[0] = ""
        sys.argv = [kind, *(rest[1:] if kind == "-c" else rest)]
        code = compile(rest[0] if kind == "-c" else sys.stdin.read(), "<string>", "exec")
        return lambda: exec(code, {"__name__": "__main__", "__builtins__": __builtins__})
    sys.path[0] = os.path.dirname(os.path.abspath(kind))
    sys.argv = arguments
    return lambda: runpy.run_path(kind, run_name="__main__")


def end(work: Callable[[], Any]) -> NoReturn:
    """Do the work, and end as an interpreter does.

    With its exit code or signal, threads awaited, exit functions called: all but the freeing of what was imported,
    which takes two seconds.
    """
    code, interrupted = 0, False
    try:
        work()
    except SystemExit as error:
        if isinstance(error.code, int):
            code = error.code
        elif error.code is not None:
            print(error.code, file=sys.stderr)
            code = 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code, interrupted = 1, isinstance(error, KeyboardInterrupt)
    try:
        threading._shutdown()  # type: ignore[attr-defined]
    except Exception as error:  # an interpreter prints it, and ends with the code that it had
        sys.excepthook(type(error), error, error.__traceback__)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # whoever read it is gone
            code = code or 120
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    preload()
    # What a fork compiles the next one reads, in this run of the tests alone, wherever Python may leave bytecode.
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.path.join(os.path.dirname(sys.argv[1]), "bytecode")
    gc.freeze()  # the garbage collector of a fork would copy what it only looks through
    server = Server(sys.argv[1])
    open(os.path.join(os.path.dirname(sys.argv[1]), "ready"), "x").close()
    wanted = server.serve()
    if wanted is not None:
        end(become(wanted, sys.argv[2]))
