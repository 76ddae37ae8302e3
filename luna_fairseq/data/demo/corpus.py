"""A parallel corpus of distinct sentences."""

import random
from collections.abc import Sequence

from luna_fairseq.data.demo.sentences import Sentences
from luna_fairseq.data.demo.words import Pair

MAX_WORDS = 14


def generate(count: int, seed: int) -> list[Pair]:
    """Pairs of which no two share a sentence in either language.

    Raises:
        RuntimeError: if one English sentence gets two translations (an error in the grammar), or the
            grammar runs out of sentences.
    """
    grammar = Sentences(random.Random(seed))
    translations: dict[str, str] = {}
    german_seen: set[str] = set()
    pairs: list[Pair] = []
    for _ in range(20 * count + 1000):
        if len(pairs) == count:
            return pairs
        pair = grammar.sentence()
        if max(len(pair.en.split()), len(pair.de.split())) > MAX_WORDS:
            continue
        known = translations.setdefault(pair.en, pair.de)
        if known != pair.de:
            raise RuntimeError(f"two translations of {pair.en!r}: {known!r} and {pair.de!r}")
        if pair.de not in german_seen:
            german_seen.add(pair.de)
            pairs.append(pair)
    raise RuntimeError(f"only {len(pairs)} distinct pairs found, not {count}: ask for fewer")


def words(sentences: Sequence[str]) -> set[str]:
    """The distinct words, in lower case and without punctuation."""
    return {word.strip(".,?").lower() for sentence in sentences for word in sentence.split()}
