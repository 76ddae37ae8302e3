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


def _digest(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("trouble", [[], ["cut"], ["busy", "cut", ""], ["cut", "no ranges"]])
def test_a_download_goes_on_where_it_stopped(
    trouble: List[str], server: Any, wmt14_archives: Path, tmp_path: Path
) -> None:
    name = NAMES["europarl"]
    server.trouble.extend(trouble)
    download(f"{server.address}/{name}", tmp_path / name, _digest(wmt14_archives / name))
    assert (tmp_path / name).read_bytes() == (wmt14_archives / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if "cut" in trouble:
        assert server.asked[trouble.index("cut") + 1] == f"bytes={(wmt14_archives / name).stat().st_size // 2}-"


def test_a_download_is_never_taken_for_whole(server: Any, wmt14_archives: Path, tmp_path: Path) -> None:
    name = NAMES["europarl"]
    url, target = f"{server.address}/{name}", tmp_path / name
    server.trouble.extend(["cut", "busy", "busy"])
    with pytest.raises(PreparationError, match=r"cannot be downloaded \(503 .*run the same command again"):
        download(url, target, _digest(wmt14_archives / name))
    assert not target.exists() and (tmp_path / f"{name}.part").exists()
    # Everything was there, but for the check.
    (tmp_path / f"{name}.part").write_bytes((wmt14_archives / name).read_bytes())
    download(url, target, _digest(wmt14_archives / name))
    target.unlink()
    with pytest.raises(PreparationError, match=r"has the sha256 .*, not 00: it is removed"):
        download(url, target, "sha256:00")
    assert not list(tmp_path.iterdir())
    with pytest.raises(PreparationError, match=r"nothing.tgz is answered with 404 .*: name a mirror"):
        download(f"{server.address}/nothing.tgz", target, "sha256:00")
