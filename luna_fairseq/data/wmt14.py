"""WMT'14 English-German: download the archives, check them, and take the text out.

    luna-fairseq fetch wmt14 --out wmt14                  from the public addresses (1.7 GB)
    luna-fairseq fetch wmt14 --out wmt14 --source FOLDER  from a folder, or the address of a mirror, with the archives

OUT/raw gets the parallel text: europarl, commoncrawl and newscommentary to train on, valid (newstest2013) and test
(newstest2014, all 3,003 sentences), each .en and .de. OUT/archives keeps what was downloaded. A download that was
interrupted goes on where it stopped; an archive counts only when its checksum is right. Only the named files are read
from an archive, and no path in it is written to.
"""

from sacrebleu.dataset import DATASETS

from luna_fairseq.data.archives import Archive, Corpus, fetch_command

LANGUAGES = ("en", "de")


def _parallel(url: str, digest: str, name: str, prefix: str) -> Archive:
    return Archive(url, f"sha256:{digest}", {f"{name}.{lang}": f"{prefix}.{lang}" for lang in LANGUAGES})


def _test_set(split: str, key: str) -> Archive:
    """What sacreBLEU knows of a test set: its address, its checksum, its files."""
    known = DATASETS[key]
    assert known.data and known.md5 and known.langpairs
    files = dict(zip(LANGUAGES, known.langpairs["en-de"], strict=False))
    members = {f"{split}.{lang}": files[lang] for lang in LANGUAGES}
    return Archive(known.data[0], f"md5:{known.md5[0]}", members, most=256 << 20)


CORPUS = Corpus(
    LANGUAGES,
    (
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
    ),
)


def main(prog: str, arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    return fetch_command(prog, arguments, __doc__, CORPUS)
