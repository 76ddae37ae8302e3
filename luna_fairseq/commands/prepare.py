"""``luna-fairseq prepare KIND``: text, images or a generator to data that fairseq trains on."""

from typing import Dict, List

from luna_fairseq.cli import Command, dispatch

KINDS: Dict[str, Command] = {
    "translation": Command(
        "luna_fairseq.data.translation", "parallel text, cleaned, in pieces, for --task translation"
    ),
    "corpus": Command(
        "luna_fairseq.data.corpus", "documents in pieces and shards, for --task masked_lm or language_modeling"
    ),
    "pieces": Command(
        "luna_fairseq.data.joint_pieces", "parallel text as it is, in pieces of a joint SentencePiece model"
    ),
    "documents": Command("luna_fairseq.data.joined", "parallel sentences in pieces, joined into long documents"),
    "distilled": Command("luna_fairseq.data.distilled", "a model's translations of its training text, to learn from"),
    "glue": Command("luna_fairseq.data.finetuning.glue", "a task of GLUE, for --task sentence_prediction"),
    "race": Command("luna_fairseq.data.finetuning.race", "RACE, for --task sentence_ranking"),
    "csqa": Command("luna_fairseq.data.finetuning.csqa", "CommonsenseQA, for --task sentence_ranking"),
    "listops": Command("luna_fairseq.data.lra.listops", "Long Range Arena: ListOps, generated or as published"),
    "text": Command("luna_fairseq.data.lra.text", "Long Range Arena: the IMDb reviews, byte by byte"),
    "retrieval": Command("luna_fairseq.data.lra.retrieval", "Long Range Arena: pairs of articles of the AAN"),
    "image": Command("luna_fairseq.data.lra.image", "Long Range Arena: CIFAR-10, pixel by pixel"),
    "digits": Command("luna_fairseq.data.lra.digits", "scikit-learn's digits, small real images without a download"),
    "pathfinder": Command("luna_fairseq.data.lra.pathfinder", "Long Range Arena: Pathfinder, drawn or as published"),
    "demo": Command("luna_fairseq.data.demo.command", "a synthetic English-German corpus"),
}


DESCRIPTION = """Text, images or a generator to data that fairseq trains on.

    luna-fairseq prepare translation --train text/train --valid text/valid --test text/test --out data
    luna-fairseq prepare corpus --train train.txt --valid valid.txt --vocab-size 8000 --out corpus
    luna-fairseq prepare KIND --help                                what each kind reads, and its defaults

Every kind writes a folder of its own, or refuses: nothing else is written over. The same command goes on where it was
interrupted.
"""


def main(prog: str, arguments: List[str]) -> int:
    """Run the command of a kind; returns the exit code."""
    return dispatch(prog, DESCRIPTION, KINDS, arguments)
