"""Small files like those of GPT-2's byte pairs."""

import json
from pathlib import Path
from typing import Any, List

from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode


def tiny_gpt2(folder: Path) -> List[Any]:
    """Files like GPT-2's: all bytes and a few merges; returns the options that name them."""
    symbols = list(bytes_to_unicode().values())
    merges = ["t h", "th e", "Ġ the", "Ġ c", "a t", "Ġc at"]
    symbols += [merge.replace(" ", "") for merge in merges]
    folder.mkdir(exist_ok=True)
    (folder / "encoder.json").write_text(json.dumps({symbol: 2 * n for n, symbol in enumerate(symbols)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    numbers = [2 * n for n in reversed(range(len(symbols)))]
    (folder / "dict.txt").write_text("".join(f"{number} {1000 - n}\n" for n, number in enumerate(numbers)))
    names = {"encoder-json": "encoder.json", "vocab-bpe": "vocab.bpe", "dict": "dict.txt"}
    return [word for option, name in names.items() for word in (f"--gpt2-{option}", folder / name)]
