"""WMT'14 English-German: download the archives, check them, and take the text out.

    luna-fairseq fetch wmt14 --out wmt14                  from the public addresses (1.7 GB)
    luna-fairseq fetch wmt14 --out wmt14 --source FOLDER  from a folder, or the address of a mirror, with the archives

OUT/raw gets the parallel text: europarl, commoncrawl and newscommentary to train on, valid (newstest2013) and test
(newstest2014, all 3,003 sentences), each .en and .de. OUT/archives keeps what was downloaded. A download that was
interrupted goes on where it stopped; an archive counts only when its checksum is right. Only the named files are read
from an archive, and no path in it is written to.
"""

import argparse
import gzip
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from sacrebleu.dataset import DATASETS

from luna_fairseq.console import one_line, run
from luna_fairseq.data.download import download, verify
from luna_fairseq.data.files import BLOCK_BYTES, alone_in, count_lines, whole_file
from luna_fairseq.errors import PreparationError

LANGUAGES = ("en", "de")


@dataclass(frozen=True)
class Archive:
    """One archive and what to take from it.

    Args:
        url: its public address.
        digest: its checksum, ``sha256:HEX`` or ``md5:HEX``.
        members: file of OUT/raw -> the name in the archive; a .sgm becomes lines of text.
        most: more bytes than the public one has, so that no answer fills the disk.
    """

    url: str
    digest: str
    members: dict[str, str]
    most: int = 2 << 30

    @property
    def name(self) -> str:
        """Its file name, by which a mirror has it."""
        return self.url.rsplit("/", 1)[1]


def _parallel(url: str, digest: str, name: str, prefix: str) -> Archive:
    return Archive(url, f"sha256:{digest}", {f"{name}.{lang}": f"{prefix}.{lang}" for lang in LANGUAGES})


def _test_set(split: str, key: str) -> Archive:
    """What sacreBLEU knows of a test set: its address, its checksum, its files."""
    known = DATASETS[key]
    assert known.data and known.md5 and known.langpairs
    files = dict(zip(LANGUAGES, known.langpairs["en-de"], strict=False))
    members = {f"{split}.{lang}": files[lang] for lang in LANGUAGES}
    return Archive(known.data[0], f"md5:{known.md5[0]}", members, most=256 << 20)


ARCHIVES = (
    _parallel(
        "https://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz",
        "0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e31836103d27d96e7",
        "europarl",
        "training/europarl-v7.de-en",
    ),
    _parallel(
        "https://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz",
        "c7a74e2ea01ac6c920123108627e35278d4ccb5701e15428ffa34de86fa3a9e5",
        "commoncrawl",
        "commoncrawl.de-en",
    ),
    _parallel(
        "https://www.statmt.org/wmt14/training-parallel-nc-v9.tgz",
        "cb8953f292298e6877ae433c98912b927cb0766b303f4540512ddd286c748485",
        "newscommentary",
        "training/news-commentary-v9.de-en",
    ),
    _test_set("valid", "wmt13"),
    _test_set("test", "wmt14/full"),
)


def segments(sgm: IO[bytes]) -> Iterator[str]:
    """The sentences of an .sgm file as sacreBLEU takes them: no XML, entities stay as they are."""
    for line in sgm:
        text = line.decode("utf-8")
        if text.startswith("<seg "):
            yield " ".join(re.sub(r"<seg.*?>(.*)</seg>.*?", r"\1", text).split())


def take(archive: Path, members: dict[str, str], raw: Path) -> None:
    """Write the wanted files of an archive to ``raw``, each whole or not at all."""
    wanted = {member: name for name, member in members.items() if not (raw / name).exists()}
    print(f"reading {archive.name}")
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for entry in tar:
                member = entry.name.removeprefix("./")
                if member not in wanted:
                    continue
                source = tar.extractfile(entry) if entry.isreg() else None
                if source is None:
                    raise PreparationError(f"{member} in {archive} is not a plain file: get the archive again")
                with source, whole_file(raw / wanted.pop(member)) as temporary, open(temporary, "wb") as target:
                    if member.endswith(".sgm"):
                        target.writelines(f"{line}\n".encode() for line in segments(source))
                    else:
                        shutil.copyfileobj(source, target, BLOCK_BYTES)
                if not wanted:
                    return
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise PreparationError(
            f"{archive} is damaged or not a .tgz ({one_line(error)}): remove it and run the same command again"
        ) from error
    raise PreparationError(f"{archive} has no {' and no '.join(wanted)}: it is another archive, get the right one")


def read_checksums(path: Path) -> dict[str, str]:
    """File name -> ``sha256:HEX``, from a file that sha256sum wrote."""
    found = {}
    # What is not UTF-8 matches no line below, and is named.
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not (match := re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)):
            raise PreparationError(f"{path}, line {number}: {line[:40]!r} is not a line of sha256sum")
        found[match[2].rsplit("/", 1)[-1]] = f"sha256:{match[1]}"
    return found


def fetch(out: Path, source: str | None, checksums: Path | None) -> None:
    """Make OUT/raw.

    Args:
        out: OUT.
        source: a folder, or an address; None for the public ones.
        checksums: a file of sha256sum that replaces the known checksums.
    """
    archives: Sequence[Archive] = ARCHIVES
    if checksums:
        given = read_checksums(checksums)
        if missing := [archive.name for archive in archives if archive.name not in given]:
            raise PreparationError(f"{checksums} has no line for {missing[0]}: add it")
        archives = [replace(archive, digest=given[archive.name]) for archive in archives]
    remote = source is None or re.match(r"https?://", source)
    if not remote and not Path(str(source)).is_dir():
        raise PreparationError(f"--source {source} is neither a folder nor an address: correct it")
    with alone_in(out):
        _get(archives, out, source if remote else None, None if remote else Path(str(source)))


def _get(archives: Sequence[Archive], out: Path, mirror: str | None, folder: Path | None) -> None:
    """Get what is missing, from a folder or else a mirror or else the public addresses, and take it apart."""
    raw = out / "raw"
    for archive in archives:
        if all((raw / name).exists() for name in archive.members):
            continue
        if folder is None:
            path = out / "archives" / archive.name
            if not path.exists():
                url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
                download(url, path, archive.digest, archive.most)
        else:
            path = folder / archive.name
            if not path.is_file():
                raise PreparationError(f"{path} does not exist: put {archive.url} there, or leave out --source")
            verify(path, archive.digest, f"get {archive.url} again")
        take(path, archive.members, raw)
    for name in dict.fromkeys(file.rsplit(".", 1)[0] for archive in archives for file in archive.members):
        counts = [count_lines(raw / f"{name}.{lang}") for lang in LANGUAGES]
        if counts[0] != counts[1]:
            raise PreparationError(
                f"{raw / name}.en has {counts[0]:,} lines, .de has {counts[1]:,}: remove both and run this again"
            )
        print(f"{name}: {counts[0]:,} sentence pairs")


def main(prog: str, arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--source", metavar="FOLDER_OR_URL", help="where the archives are, by their names")
    parser.add_argument("--checksums", type=Path, metavar="FILE", help="of sha256sum, for other archives")
    args = parser.parse_args(arguments)
    return run(prog, lambda: fetch(args.out.resolve(), args.source, args.checksums))
