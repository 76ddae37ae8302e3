"""A file from the web goes on where it stopped, and is taken only whole."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, List

import pytest

from luna_fairseq.data.download import download
from luna_fairseq.errors import PreparationError
from support.web_server import serve
from support.wmt14_archives import NAMES


@pytest.fixture
def server(wmt14_archives: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr("luna_fairseq.data.download.PAUSES", (0, 0))
    with serve(wmt14_archives) as found:
        yield found


MOST = 1 << 20


def _digest(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("trouble", "asked"),
    [
        ([], [0]),
        (["cut"], [0, 2]),
        (["busy", "cut", ""], [0, 0, 2]),
        (["cut", "no ranges"], [0, 2]),
        # What was there is not lost by an answer that has less.
        (["cut", "no ranges, cut early"], [0, 2, 2]),
        (["cut early", "no ranges, cut"], [0, 4, 2]),
    ],
)
def test_a_download_goes_on_where_it_stopped(
    trouble: List[str], asked: List[int], server: Any, wmt14_archives: Path, tmp_path: Path
) -> None:
    """``asked`` has which part of the file was there: none, a half, a quarter."""
    name = NAMES["europarl"]
    server.trouble.extend(trouble)
    download(f"{server.address}/{name}", tmp_path / name, _digest(wmt14_archives / name), MOST)
    assert (tmp_path / name).read_bytes() == (wmt14_archives / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    size = (wmt14_archives / name).stat().st_size
    assert server.asked == [f"bytes={size // part}-" if part else None for part in asked]


def test_a_download_is_never_taken_for_whole(server: Any, wmt14_archives: Path, tmp_path: Path) -> None:
    name = NAMES["europarl"]
    url, target = f"{server.address}/{name}", tmp_path / name
    server.trouble.extend(["cut", "busy", "busy"])
    with pytest.raises(PreparationError, match=r"cannot be downloaded \(503 .*run the same command again"):
        download(url, target, _digest(wmt14_archives / name), MOST)
    assert not target.exists() and (tmp_path / f"{name}.part").exists()
    # Everything was there, but for the check.
    (tmp_path / f"{name}.part").write_bytes((wmt14_archives / name).read_bytes())
    download(url, target, _digest(wmt14_archives / name), MOST)
    target.unlink()
    with pytest.raises(PreparationError, match=r"has the sha256 .*, not 00: it is removed"):
        download(url, target, "sha256:00", MOST)
    assert not list(tmp_path.iterdir())
    with pytest.raises(PreparationError, match=r"nothing.tgz is answered with 404 .*: name a mirror"):
        download(f"{server.address}/nothing.tgz", target, "sha256:00", MOST)


@pytest.mark.parametrize("have", [0, 100])
@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("no length", "is answered with the length 'abc': name a mirror"),
        ("no length, no ranges", "is answered with the length 'abc': name a mirror"),
        ("long", "sends more than the 1,048,576 bytes that the file may have"),
        ("flood", "sends more than the 1,048,576 bytes that the file may have"),
        ("flood, no ranges", "sends more than the 1,048,576 bytes that the file may have"),
    ],
)
def test_an_answer_has_a_bound(
    trouble: str, message: str, have: int, server: Any, wmt14_archives: Path, tmp_path: Path
) -> None:
    """And takes nothing of what is there."""
    name = NAMES["europarl"]
    before = (wmt14_archives / name).read_bytes()[:have]
    part = tmp_path / f"{name}.part"
    if have:
        part.write_bytes(before)
    server.trouble.append(trouble)
    with pytest.raises(PreparationError, match=rf"^{server.address}/{name} {message}"):
        download(f"{server.address}/{name}", tmp_path / name, "sha256:00", MOST)
    assert len(server.flooded) < 128  # of 256
    assert not have or part.read_bytes() == before
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == have


def test_more_than_a_file_may_have_is_no_beginning(server: Any, wmt14_archives: Path, tmp_path: Path) -> None:
    name = NAMES["europarl"]
    (tmp_path / f"{name}.part").write_bytes(bytes(MOST + 1))
    download(f"{server.address}/{name}", tmp_path / name, _digest(wmt14_archives / name), MOST)
    assert server.asked == [None]
