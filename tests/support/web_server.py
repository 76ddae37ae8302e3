"""A web server on this machine, which can be told to fail."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, List, Optional


class Server(http.server.BaseHTTPRequestHandler):
    """Serves a folder with ranges; ``trouble`` lists what goes wrong with the next requests."""

    folder: Path
    trouble: List[str]
    asked: List[Optional[str]]
    flooded: List[int]

    def do_GET(self) -> None:
        path = self.folder / self.path.lstrip("/")
        asked = self.headers.get("Range")
        self.asked.append(asked)
        trouble = (self.trouble.pop(0) if self.trouble else "").split(", ")
        if "busy" in trouble or not path.exists():
            self.send_error(503 if "busy" in trouble else 404)
            return
        content = path.read_bytes()
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and "no ranges" not in trouble else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if "flood" in trouble:
            self.end_headers()
            with suppress(OSError):
                for number in range(256):
                    self.wfile.write(bytes(1 << 20))
                    self.flooded.append(number)
            return
        length = "abc" if "no length" in trouble else 1 << 40 if "long" in trouble else len(content) - start
        self.send_header("Content-Length", str(length))
        self.end_headers()
        end = len(content) // 2 if "cut" in trouble else len(content) // 4 if "cut early" in trouble else len(content)
        self.wfile.write(content[start:end])

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[Any]:
    """A server of a folder: its class, with ``address``, ``trouble`` and ``asked``."""
    handler = type("Handler", (Server,), {"folder": folder, "trouble": [], "asked": [], "flooded": []})
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    handler.address = f"http://127.0.0.1:{found.server_port}"  # type: ignore[attr-defined]
    try:
        yield handler
    finally:
        found.shutdown()
        found.server_close()
