"""The console command ``luna-fairseq``: the plugin's folder, averages, model cards, what a model looks at."""

import argparse
import re
import sys
from pathlib import Path
from typing import List, Optional


def user_dir() -> Path:
    """The folder to give to fairseq's ``--user-dir``."""
    return Path(__file__).resolve().parent


def _average(args: argparse.Namespace) -> None:
    import luna_fairseq  # noqa: F401  (today's torch loads no fairseq checkpoint without it)
    from luna_fairseq.average import average_checkpoints, last_checkpoints
    from luna_fairseq.checkpoint_files import save_atomically
    from luna_fairseq.model_card import card_path, read_scores, write_card

    paths = [Path(name) for name in args.inputs]
    by_update = args.num_update_checkpoints is not None
    count = args.num_update_checkpoints if by_update else args.num_epoch_checkpoints
    if count is not None:
        if len(paths) != 1 or not paths[0].is_dir():
            raise ValueError("with --num-epoch-checkpoints or --num-update-checkpoints, --inputs is one folder")
        paths = last_checkpoints(paths[0], count, by_update, args.checkpoint_upper_bound)
    output = Path(args.output)
    if output.exists() and (
        output.resolve() in [path.resolve() for path in paths]
        or re.fullmatch(r"checkpoint(\d+|_\d+_\d+|_last|_best\S*)\.pt", output.name)
    ):
        raise ValueError(f"{output} is a checkpoint of a run, with its optimizer: name another --output")
    card = card_path(output)
    read_scores(card)  # no other file is written over
    for path in paths:
        print(f"averaging {path}")
    averaged = average_checkpoints(paths)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_atomically(averaged, output)
    write_card(card, output.name, averaged, [])  # scores were those of other weights
    print(f"wrote {output} and {card}")


def _card(args: argparse.Namespace) -> None:
    from fairseq import checkpoint_utils

    import luna_fairseq  # noqa: F401  (as above)
    from luna_fairseq.model_card import card_path, parse_scores, read_scores, write_card

    path = Path(args.checkpoint)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}: name the file")
    card = card_path(path)
    scores = read_scores(card)
    for given in args.score:
        scores += parse_scores(given, args.test_set)
    write_card(card, path.name, checkpoint_utils.load_checkpoint_to_cpu(str(path)), scores)
    print(f"wrote {card}")


def _attention(args: argparse.Namespace) -> None:
    from luna_fairseq.attention_map import attention_map
    from luna_fairseq.models.luna import LunaModel

    path = Path(args.path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}: give the file to --path")
    pieces = args.sentencepiece_model
    options = {"bpe": "sentencepiece", "sentencepiece_model": pieces} if pieces else {}
    hub = LunaModel.from_pretrained(
        str(path.resolve().parent), path.name, data_name_or_path=str(Path(args.data).resolve()), **options
    )
    sentences = args.sentences or [line.strip() for line in sys.stdin if line.strip()]
    for number, sentence in enumerate(sentences):
        found = attention_map(hub, sentence, args.layer)
        print(f"{sentence}\n{found.translation}\n{found}\n")
        if args.output:
            output = Path(args.output)
            output = output if len(sentences) == 1 else output.with_stem(f"{output.stem}-{number}")
            found.draw(output)
            print(f"wrote {output}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="luna-fairseq", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("user-dir", help="print the folder to give to --user-dir")
    average = commands.add_parser(
        "average",
        help="average checkpoints (the options of fairseq's scripts/average_checkpoints.py), and write a model card",
    )
    average.add_argument("--inputs", nargs="+", required=True, help="checkpoint files, or one folder of a run")
    average.add_argument("--output", required=True, help="file to write")
    which = average.add_mutually_exclusive_group()
    which.add_argument("--num-epoch-checkpoints", type=int, metavar="N", help="the last N checkpointEPOCH.pt")
    which.add_argument(
        "--num-update-checkpoints", type=int, metavar="N", help="the last N checkpoint_EPOCH_UPDATE.pt"
    )
    average.add_argument(
        "--checkpoint-upper-bound", type=int, metavar="K", help="none later than epoch (or update) K"
    )
    card = commands.add_parser("card", help="write the model card of a checkpoint, or add scores to it")
    card.add_argument("checkpoint", help="a file; the card of X.pt is X.md beside it")
    card.add_argument(
        "--score", nargs="+", default=[], metavar="SCORE",
        help="files that sacrebleu has printed, or 'METRIC VALUE SIGNATURE'; one of the same test set, metric and "
        "signature takes the place of the earlier",
    )  # fmt: skip
    card.add_argument("--test-set", default="test", metavar="NAME", help="what they were measured on")
    show = commands.add_parser(
        "attention", help="translate, and show the source-target map and what each packed row collects"
    )
    show.add_argument("sentences", nargs="*", help="text; none: the lines of the standard input")
    show.add_argument("--path", required=True, help="a checkpoint of a translation model")
    show.add_argument("--data", required=True, help="the folder of its dictionaries")
    show.add_argument("--sentencepiece-model", help="whose pieces the text is cut into; none: it is cut already")
    show.add_argument("--layer", type=int, default=-1, help="of the decoder, from 0; -1 is the last")
    show.add_argument("--output", help="a picture, .png or .svg (needs matplotlib); numbered if there are more")
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; returns the exit code."""
    args = _parser().parse_args(argv)
    if args.command == "user-dir":
        print(user_dir())
        return 0
    try:
        {"average": _average, "card": _card, "attention": _attention}[args.command](args)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"luna-fairseq: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
