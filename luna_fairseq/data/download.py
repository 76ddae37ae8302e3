"""One file from the web: gone on with after an interruption, and taken only with the right checksum."""

import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

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


def append(url: str, part: Path, most: int) -> None:
    """Get what is missing of a file; what is there of it is not lost.

    Args:
        url: its address.
        part: what is there of it, if anything.
        most: more bytes than the file may have.

    Raises:
        OSError: if the connection fails or ends early.
        PreparationError: if the address does not have the file.
    """
    if part.exists() and part.stat().st_size > most:
        part.unlink()
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
        if goes_on or not have:
            _write(response, part, "ab", have, most)
            return
        # Everything is sent again: until it is more than what is there, that stays.
        again = part.with_name(f"{part.name}.again")
        try:
            _write(response, again, "wb", 0, most)
            os.replace(again, part)
        finally:
            if again.exists() and again.stat().st_size > have:
                os.replace(again, part)
            again.unlink(missing_ok=True)


def _write(response: Any, path: Path, mode: str, start: int, most: int) -> None:
    """Write an answer to a file that has ``start`` bytes."""
    announced = response.headers.get("Content-Length")
    if announced is not None and not re.fullmatch(r"[0-9]{1,18}", announced.strip()):
        raise PreparationError(
            f"{response.url} is answered with the length {announced[:40]!r}: name a mirror or a folder by --source"
        )
    expected = start + int(announced or 0)
    size = start
    with open(path, mode) as target, progress(expected, f"downloading {path.stem}", "B") as bar:
        bar.update(start)
        while expected <= most and (block := response.read(BLOCK_BYTES)):
            size += len(block)
            if size > most:
                break
            target.write(block)
            bar.update(len(block))
    if max(size, expected) > most:
        os.truncate(path, start)
        raise PreparationError(
            f"{response.url} sends more than the {most:,} bytes that the file may have, and was not taken: name a "
            "mirror or a folder by --source"
        )
    if announced is not None and size < expected:
        raise ConnectionError("the connection ended early")


def download(url: str, target: Path, digest: str, most: int) -> None:
    """Get a file, going on with what is there of it; it has its name only when its checksum is right.

    Args:
        url: its address.
        target: its place.
        digest: its checksum, ``sha256:HEX`` or ``md5:HEX``.
        most: more bytes than it may have.

    Raises:
        PreparationError: if it cannot be got, or is another file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    for pause in (*PAUSES, None):
        try:
            append(url, part, most)
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
