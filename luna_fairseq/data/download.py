"""One file from the web: gone on with after an interruption, and taken only with the right checksum."""

import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from luna_fairseq.console import one_line, progress
from luna_fairseq.data.files import BLOCK_BYTES
from luna_fairseq.errors import PreparationError

PAUSES = (2, 5, 15, 60)  # seconds between tries
TIMEOUT = 60


def checksum(path: Path, algorithm: str) -> str:
    """The checksum of a file, with a progress display."""
    found = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as source, progress(path.stat().st_size, f"checking {path.name}", "B") as bar:
        while block := source.read(BLOCK_BYTES):
            found.update(block)
            bar.update(len(block))
    return found.hexdigest()


def verify(path: Path, digest: str, advice: str) -> None:
    """Refuse a file whose checksum is another one; ``advice`` says what to do."""
    algorithm, _, wanted = digest.partition(":")
    if (found := checksum(path, algorithm)) != wanted:
        raise PreparationError(f"{path} has the {algorithm} {found}, not {wanted}: {advice}")


def append(url: str, part: Path) -> None:
    """Get what is missing of a file.

    Raises:
        OSError: if the connection fails or ends early.
        PreparationError: if the address does not have the file.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing
            return
        if error.code >= 500:
            raise ConnectionError(f"{error.code} {error.reason}") from error
        raise PreparationError(
            f"{url} is answered with {error.code} {error.reason}: name a mirror or a folder by --source"
        ) from error
    with response:
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        start = have if goes_on else 0  # a server may send everything again
        expected = response.headers.get("Content-Length")
        with (
            open(part, "ab" if goes_on else "wb") as target,
            progress(start + int(expected or 0), f"downloading {part.stem}", "B") as bar,
        ):
            bar.update(start)
            while block := response.read(BLOCK_BYTES):
                target.write(block)
                bar.update(len(block))
    if expected is not None and part.stat().st_size < start + int(expected):
        raise ConnectionError("the connection ended early")


def download(url: str, target: Path, digest: str) -> None:
    """Get a file, going on with what is there of it; it has its name only when its checksum is right."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    for pause in (*PAUSES, None):
        try:
            append(url, part)
            break
        except (OSError, http.client.HTTPException) as error:
            reason = one_line(getattr(error, "reason", None) or error)
            if pause is None:
                raise PreparationError(
                    f"{url} cannot be downloaded ({reason}): run the same command again to go on, "
                    "or name a mirror or a folder by --source"
                ) from error
            print(f"{url}: {reason}; trying again", file=sys.stderr)
            time.sleep(pause)
    try:
        verify(part, digest, "it is removed, run the same command again, or name another --source")
    except PreparationError:
        part.unlink()
        raise
    os.replace(part, target)
