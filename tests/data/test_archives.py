"""Archives of WMT'14 and of Multi30k are checked and taken apart: small ones with the layout of the real ones."""

import gzip
import hashlib
import os
import tarfile
from pathlib import Path

import pytest

from luna_fairseq.commands import fetch
from luna_fairseq.data import archives, multi30k, wmt14
from luna_fairseq.errors import PreparationError
from support.web_server import serve
from support.wmt14_archives import NAMES, sentence_pairs, write_archive


def test_a_mirror(wmt14_archives: Path, tmp_path: Path) -> None:
    with serve(wmt14_archives) as server:
        archives.fetch(wmt14.CORPUS, tmp_path, server.address, wmt14_archives / "SHA256SUMS")
        assert (tmp_path / "raw" / "europarl.en").read_text().count("\n") == 120
        assert len(server.asked) == 5
        (tmp_path / "raw" / "valid.de").unlink()
        archives.fetch(wmt14.CORPUS, tmp_path, server.address, wmt14_archives / "SHA256SUMS")
        assert len(server.asked) == 5 and (tmp_path / "raw" / "valid.de").exists()


def test_the_known_archives_have_checksums() -> None:
    for archive in (*wmt14.CORPUS.archives, *multi30k.CORPUS.archives):
        algorithm, _, value = archive.digest.partition(":")
        assert len(value) == hashlib.new(algorithm).digest_size * 2 and archive.url.startswith("https://")
    assert [archive.name for archive in wmt14.CORPUS.archives] == list(NAMES.values())


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """Files with the names of Multi30k's, and their checksums."""
    folder = tmp_path / "published"
    folder.mkdir()
    for archive in multi30k.CORPUS.archives:
        pairs = sentence_pairs(12 if archive.name.startswith("train") else 3, 1)
        side = ("en", "de").index(archive.name.split(".")[1])
        (folder / archive.name).write_bytes(gzip.compress("".join(f"{pair[side]}\n" for pair in pairs).encode()))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("".join(lines))
    return folder


def test_captions_from_a_mirror_and_from_a_folder(
    captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command; what is there is not got again."""
    with serve(captions) as server:
        for out, source in (("web", server.address), ("web", server.address), ("disk", str(captions))):
            words = ["multi30k", "--out", str(tmp_path / out), "--source", source]
            assert fetch.main("luna-fairseq fetch", [*words, "--checksums", str(captions / "SHA256SUMS")]) == 0
            assert "train: 12 sentence pairs\nval: 3 sentence pairs\ntest_2016_flickr: 3" in capsys.readouterr().out
        assert len(server.asked) == 8
    for out in ("web", "disk"):
        names = {path.name for path in (tmp_path / out / "raw").iterdir()}
        assert names == {archive.name.removesuffix(".gz") for archive in multi30k.CORPUS.archives}
        for i, language in enumerate(("en", "de")):
            text = "".join(f"{pair[i]}\n" for pair in sentence_pairs(12, 1))
            assert (tmp_path / out / "raw" / f"train.{language}").read_text() == text
    assert not (tmp_path / "disk" / "archives").exists()


def test_other_captions_are_refused(captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By their known checksums, or by what is in them; nothing is left."""
    words = ["multi30k", "--out", str(tmp_path / "out"), "--source", str(captions)]
    assert fetch.main("luna-fairseq fetch", words) == 1
    assert "train.en.gz has the sha256 " in (said := capsys.readouterr().err) and "get https://" in said
    damaged = gzip.compress(os.urandom(5000))[:3000]
    (captions / "train.en.gz").write_bytes(damaged)
    lines = (captions / "SHA256SUMS").read_text().splitlines()
    lines = [
        line if "train.en" not in line else f"{hashlib.sha256(damaged).hexdigest()}  train.en.gz" for line in lines
    ]
    (captions / "SHA256SUMS").write_text("\n".join(lines))
    assert fetch.main("luna-fairseq fetch", [*words, "--checksums", str(captions / "SHA256SUMS")]) == 1
    assert "train.en.gz is damaged or no archive (" in capsys.readouterr().err
    assert not list((tmp_path / "out" / "raw").iterdir())


# ------------------------------------------------------------------------------------------ bad archives
def test_an_archive_writes_nothing_but_what_was_asked_for(tmp_path: Path) -> None:
    evil = {"../evil": b"x", str(tmp_path / "evil"): b"x", "a/../../evil": b"x", "wanted": b"text\n"}
    write_archive(tmp_path / "a.tgz", evil)
    archives.take(tmp_path / "a.tgz", {"name": "wanted"}, tmp_path / "out" / "raw")
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
        archives.take(tmp_path / "a.tgz", {"name": "wanted"}, tmp_path / "raw")
    assert not (tmp_path / "raw" / "name").exists()


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_archive_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tgz"
    write_archive(path, {"other": os.urandom(5000), "wanted": os.urandom(5000)})
    content = path.read_bytes()
    path.write_bytes({"cut": content[:6000], "text": b"no archive" * 99, "empty": b""}[damage])
    with pytest.raises(PreparationError, match=r"a\.tgz"):
        archives.take(path, {"name": "wanted"}, tmp_path / "raw")
    assert not list((tmp_path / "raw").glob("*")) if (tmp_path / "raw").exists() else True


def test_another_archive_is_named(wmt14_archives: Path, tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match="has no x: it is another archive"):
        archives.take(wmt14_archives / NAMES["test"], {"name": "x"}, tmp_path)
    (tmp_path / NAMES["europarl"]).write_bytes(b"other")
    with pytest.raises(PreparationError, match=r"has the sha256 .*, not 0224c7c7.*: get https://"):
        archives.fetch(wmt14.CORPUS, tmp_path / "out", str(tmp_path), None)
