"""Parallel text from public archives: downloaded, checked, and taken out. The same for every corpus.

OUT/raw gets the text, a file a language; OUT/archives keeps what was downloaded. A download that was interrupted goes
on where it stopped; an archive counts only when its checksum is right. Only the named files are read from an archive,
and no path in it is written to.
"""

import gzip
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from luna_fairseq.console import help_parser, one_line, run
from luna_fairseq.data.download import download, verify
from luna_fairseq.data.files import BLOCK_BYTES, alone_in, count_lines
from luna_fairseq.errors import PreparationError
from luna_fairseq.outputs import whole_file


@dataclass(frozen=True)
class Archive:
    """One archive and what to take from it.

    Args:
        url: its public address.
        digest: its checksum, ``sha256:HEX`` or ``md5:HEX``.
        members: file of OUT/raw -> the name in the archive; a .sgm becomes lines of text. A .gz that is no .tgz holds
            one file, whose name does not matter.
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


@dataclass(frozen=True)
class Corpus:
    """Archives of parallel text.

    Args:
        languages: of the source and of the target, as the files in ``members`` end.
        archives: all of them.
    """

    languages: tuple[str, str]
    archives: tuple[Archive, ...]


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
        if not archive.name.endswith((".tgz", ".tar.gz")):
            (name,) = wanted.values()
            with gzip.open(archive) as text, whole_file(raw / name) as temporary, open(temporary, "wb") as target:
                shutil.copyfileobj(text, target, BLOCK_BYTES)
            return
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
            f"{archive} is damaged or no archive ({one_line(error)}): remove it and run the same command again"
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


def fetch(corpus: Corpus, out: Path, source: str | None, checksums: Path | None) -> None:
    """Make OUT/raw.

    Args:
        corpus: what to fetch.
        out: OUT.
        source: a folder, or an address; None for the public ones.
        checksums: a file of sha256sum that replaces the known checksums.
    """
    archives: Sequence[Archive] = corpus.archives
    if checksums:
        given = read_checksums(checksums)
        if missing := [archive.name for archive in archives if archive.name not in given]:
            raise PreparationError(f"{checksums} has no line for {missing[0]}: add it")
        archives = [replace(archive, digest=given[archive.name]) for archive in archives]
    remote = source is None or re.match(r"https?://", source)
    if not remote and not Path(str(source)).is_dir():
        raise PreparationError(f"--source {source} is neither a folder nor an address: correct it")
    with alone_in(out):
        _get(corpus, archives, out, source if remote else None, None if remote else Path(str(source)))


def _get(corpus: Corpus, archives: Sequence[Archive], out: Path, mirror: str | None, folder: Path | None) -> None:
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
        source, target = (raw / f"{name}.{language}" for language in corpus.languages)
        counts = [count_lines(source), count_lines(target)]
        if counts[0] != counts[1]:
            raise PreparationError(
                f"{source} has {counts[0]:,} lines, {target.suffix} has {counts[1]:,}: remove both and run this again"
            )
        print(f"{name}: {counts[0]:,} sentence pairs")


def fetch_command(prog: str, arguments: list[str], description: str | None, corpus: Corpus) -> int:
    """The command of a corpus; returns the exit code.

    Args:
        prog: what was typed so far.
        arguments: the rest of the command line.
        description: for the help.
        corpus: what to fetch.
    """
    parser = help_parser(prog, description or "")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--source", metavar="FOLDER_OR_URL", help="where the archives are, by their names")
    parser.add_argument("--checksums", type=Path, metavar="FILE", help="of sha256sum, for other archives")
    args = parser.parse_args(arguments)
    return run(prog, lambda: fetch(corpus, args.out.resolve(), args.source, args.checksums))
