"""Archives of WMT'14 are checked and taken apart: small ones with the layout of the real ones."""

import hashlib
import os
import tarfile
from pathlib import Path

import pytest

from luna_fairseq.data import wmt14
from luna_fairseq.errors import PreparationError
from support.web_server import serve
from support.wmt14_archives import NAMES, write_archive


def test_a_mirror(wmt14_archives: Path, tmp_path: Path) -> None:
    with serve(wmt14_archives) as server:
        wmt14.fetch(tmp_path, server.address, wmt14_archives / "SHA256SUMS")
        assert (tmp_path / "raw" / "europarl.en").read_text().count("\n") == 120
        assert len(server.asked) == 5
        (tmp_path / "raw" / "valid.de").unlink()
        wmt14.fetch(tmp_path, server.address, wmt14_archives / "SHA256SUMS")
        assert len(server.asked) == 5 and (tmp_path / "raw" / "valid.de").exists()


def test_the_known_archives_have_checksums() -> None:
    for archive in wmt14.ARCHIVES:
        algorithm, _, value = archive.digest.partition(":")
        assert len(value) == hashlib.new(algorithm).digest_size * 2 and archive.url.startswith("https://")
    assert [archive.name for archive in wmt14.ARCHIVES] == list(NAMES.values())


# ------------------------------------------------------------------------------------------ bad archives
def test_an_archive_writes_nothing_but_what_was_asked_for(tmp_path: Path) -> None:
    evil = {"../evil": b"x", str(tmp_path / "evil"): b"x", "a/../../evil": b"x", "wanted": b"text\n"}
    write_archive(tmp_path / "a.tgz", evil)
    wmt14.take(tmp_path / "a.tgz", {"name": "wanted"}, tmp_path / "out" / "raw")
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["a.tgz", "out/raw/name"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_what_is_no_plain_file_is_refused(kind: bytes, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    entry = tarfile.TarInfo("wanted")
    entry.type, entry.linkname = kind, str(tmp_path / "secret")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        tar.addfile(entry)
    with pytest.raises(PreparationError, match=r"wanted in .* is not a plain file"):
        wmt14.take(tmp_path / "a.tgz", {"name": "wanted"}, tmp_path / "raw")
    assert not (tmp_path / "raw" / "name").exists()


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_archive_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tgz"
    write_archive(path, {"other": os.urandom(5000), "wanted": os.urandom(5000)})
    content = path.read_bytes()
    path.write_bytes({"cut": content[:6000], "text": b"no archive" * 99, "empty": b""}[damage])
    with pytest.raises(PreparationError, match=r"a\.tgz"):
        wmt14.take(path, {"name": "wanted"}, tmp_path / "raw")
    assert not list((tmp_path / "raw").glob("*")) if (tmp_path / "raw").exists() else True


def test_another_archive_is_named(wmt14_archives: Path, tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match="has no x: it is another archive"):
        wmt14.take(wmt14_archives / NAMES["test"], {"name": "x"}, tmp_path)
    (tmp_path / NAMES["europarl"]).write_bytes(b"other")
    with pytest.raises(PreparationError, match=r"has the sha256 .*, not 0224c7c7.*: get https://"):
        wmt14.fetch(tmp_path / "out", str(tmp_path), None)
