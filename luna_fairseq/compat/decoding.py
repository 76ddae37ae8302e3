"""Decoding: ``--replace-unk`` reads the alignments that ``--print-alignment`` makes."""

from typing import Any

from luna_fairseq.compat._replace import replaces


@replaces(
    "fairseq.utils",
    "replace_unk",
    fairseq="looks a target position up in a list of (source, target) pairs, and ends with a TypeError or IndexError",
    here="--replace-unk takes the aligned word, and says what to add if there is no alignment",
    since="fairseq 0.12.3",
)
def replace_aligned_words(
    original: Any, hypo_str: str, src_str: str, alignment: Any, align_dict: Any, unk: str
) -> str:
    hypo_tokens = hypo_str.split()
    if unk not in hypo_tokens:
        return hypo_str
    end = len(src_str.split())  # stands for "no word", as in fairseq
    if end == 0:
        return str(original(hypo_str, src_str, [end] * len(hypo_tokens), align_dict, unk))
    if len(alignment) == 0:
        raise ValueError("--replace-unk needs to know which source word to take: add --print-alignment")
    if len(alignment) > len(hypo_tokens) + 1:
        raise ValueError("--replace-unk works on pieces, and these were joined to words: leave out --post-process")
    if isinstance(alignment[0], tuple):
        source_of = {target: source for source, target in alignment}
    else:  # --print-alignment soft: a row of weights a target word, the last one for the end symbol
        rows = [[float(weight) for weight in row] for row in alignment]
        source_of = {i: max(range(len(row) - 1), key=row.__getitem__) for i, row in enumerate(rows)}
    sources = [source_of.get(i, end) for i in range(len(hypo_tokens))]
    return str(original(hypo_str, src_str, sources, align_dict, unk))
