"""Small archives with the names and the layout of those of WMT'14."""

import hashlib
import io
import random
import tarfile
from pathlib import Path
from typing import Dict, List, Tuple

from support.running import WORDS_DE, WORDS_EN

NAMES = {
    "europarl": "training-parallel-europarl-v7.tgz",
    "commoncrawl": "training-parallel-commoncrawl.tgz",
    "newscommentary": "training-parallel-nc-v9.tgz",
    "valid": "test.tgz",
    "test": "test-full.tgz",
}
PREFIXES = {
    "europarl": "training/europarl-v7.de-en",
    "commoncrawl": "commoncrawl.de-en",
    "newscommentary": "training/news-commentary-v9.de-en",
}
SGM = '<srcset setid="newstest" srclang="any">\n<doc docid="a" origlang="en">\n<p>\n{}</p>\n</doc>\n</srcset>\n'


def sentence_pairs(count: int, seed: int) -> List[Tuple[str, str]]:
    """Sentences of a few words, and their words in German."""
    generator = random.Random(seed)
    picks = [[generator.randrange(len(WORDS_EN)) for _ in range(generator.randint(3, 9))] for _ in range(count)]
    return [
        (" ".join(WORDS_EN[i] for i in pick) + " .", " ".join(WORDS_DE[i] for i in pick) + " .") for pick in picks
    ]


def write_archive(path: Path, members: Dict[str, bytes]) -> None:
    """A .tgz of these files."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def make_archives(folder: Path) -> None:
    """The five archives, with files beside the wanted ones in them, and SHA256SUMS."""
    for seed, (name, prefix) in enumerate(PREFIXES.items()):
        pairs = sentence_pairs(120, seed)
        if name == "commoncrawl":  # what has to be cleaned away
            pairs += [
                pairs[0],
                ("", "die Katze"),
                sentence_pairs(7, 20)[0],
                ("the", "die " * 40),
                ("cat\u200b \x07dog", "Katze Hund"),
            ]
        members = {f"{prefix.replace('de-en', 'cs-en')}.cs": b"other\n"}
        members.update(
            (f"{prefix}.{lang}", "".join(f"{p[i]}\n" for p in pairs).encode()) for i, lang in enumerate(("en", "de"))
        )
        write_archive(folder / NAMES[name], members)
    for seed, (name, wanted, size) in enumerate(
        (
            ("valid", ("test/newstest2013-src.en.sgm", "test/newstest2013-src.de.sgm"), 13),
            ("test", ("test-full/newstest2014-deen-src.en.sgm", "test-full/newstest2014-deen-ref.de.sgm"), 11),
        ),
        start=20,
    ):
        pairs = sentence_pairs(size, seed)
        if name == "test":
            pairs[0] = ("the  &quot;cat&quot; <b>", "die „Katze“ &amp; der Hund")
        sides = ["".join(f'<seg id="{n}">{p[i]}</seg>\n' for n, p in enumerate(pairs, 1)) for i in range(2)]
        write_archive(
            folder / NAMES[name],
            {member: SGM.format(side).encode() for member, side in zip(wanted, sides, strict=True)},
        )
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.glob("*.tgz"))
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))
