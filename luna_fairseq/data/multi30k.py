"""Multi30k English-German, captions of images: download the files, check them, and unpack them.

    luna-fairseq fetch multi30k --out multi30k                  from the public address (1.5 MB)
    luna-fairseq fetch multi30k --out multi30k --source FOLDER  from a folder, or the address of a mirror

The files are those of data/task1/raw in the repository multi30k/dataset on GitHub. OUT/raw gets the untokenised text:
train (29,000 sentence pairs), val (1,014), test_2016_flickr and test_2017_flickr (1,000 each), each .en and .de; it
is what "multi30k.sh prepare" takes. OUT/archives keeps what was downloaded. A download that was interrupted goes on
where it stopped; a file counts only when its checksum is right. The text is for research and education.
"""

from luna_fairseq.data.archives import Archive, Corpus, fetch_command

ADDRESS = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw"
# sha256 of the compressed files.
CHECKSUMS = {
    "train.en": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "train.de": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "val.en": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "val.de": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "test_2016_flickr.en": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
    "test_2016_flickr.de": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    "test_2017_flickr.en": "76a444ee25172e72695cddb13ae4a3bda59430617be88e0bb46b60504f054074",
    "test_2017_flickr.de": "a2c89666db00c495cd8513b9d708d5a3acc205d7de312ef2bf5fb7ebc1540aee",
}
CORPUS = Corpus(
    ("en", "de"),
    tuple(
        Archive(f"{ADDRESS}/{name}.gz", f"sha256:{digest}", {name: name}, most=16 << 20)
        for name, digest in CHECKSUMS.items()
    ),
)


def main(prog: str, arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    return fetch_command(prog, arguments, __doc__, CORPUS)
