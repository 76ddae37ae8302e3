"""What scripts/wmt14.sh has trained, next to the paper's figures."""

from pathlib import Path
from typing import Any, List, NamedTuple, Optional

from luna_fairseq.console import help_parser, run
from luna_fairseq.results.runs import NOT_RUN, existing, figure, header, is_smoke, read_json, row


class Published(NamedTuple):
    """A row of the paper.

    Attributes:
        name: of the model.
        bleu: tokenised.
        parameters: how many.
        config: ours, without "wmt14_"; None if we have no such model.
    """

    name: str
    bleu: str
    parameters: str
    config: Optional[str]


PAPER = (  # section 4.2
    Published("Transformer-base, Adam", "27.8", "64.9M", "transformer_adam"),
    Published("Transformer-base, Apollo", "28.3", "64.9M", "transformer_apollo"),
    Published("RFA, k = 256", "27.2", "66.2M", None),
    Published("Luna-16 tied, elu", "27.1", "69.6M", "luna_tied_16_elu"),
    Published("Luna-32 tied, elu", "27.3", "69.7M", "luna_tied_32_elu"),
    Published("Luna-16 tied, softplus", "27.3", "69.6M", "luna_tied_16_softplus"),
    Published("Luna-32 tied, softplus", "27.5", "69.7M", "luna_tied_32_softplus"),
    Published("Luna-16 untied, elu", "27.4", "77.5M", "luna_untied_16_elu"),
    Published("Luna-32 untied, elu", "27.6", "77.6M", "luna_untied_32_elu"),
    Published("Luna-16 untied, softplus", "27.6", "77.5M", "luna_untied_16_softplus"),
    Published("Luna-32 untied, softplus", "27.8", "77.6M", "luna_untied_32_softplus"),
)


def read_scores(run: Path) -> Optional[List[Any]]:
    """The scores of a run's average, as luna-fairseq score prints them; None if there are none of this average."""
    path = run / "score.json"
    average, scored = run / "average.id", run / "score.json.of"  # checksums, of scripts/wmt14.sh
    if not all(file.is_file() for file in (path, average, scored)) or average.read_bytes() != scored.read_bytes():
        return None
    return read_json(path)


def table(out: Path, kind: str) -> str:
    """A row for each of the paper's models, and the signatures of our scores.

    Args:
        out: the folder of the runs.
        kind: what their names end with.
    """
    names = ["newstest2014", "paper: tokenised BLEU, parameters", "ours: tokenised BLEU", "sacreBLEU"]
    lines, signatures = [header(names)], set()
    for name, bleu, parameters, config in PAPER:
        cells = [NOT_RUN, NOT_RUN] if config else ["", ""]
        folder = out / f"wmt14_{config}.{kind}"
        if config and (scores := read_scores(folder)):
            plain, tokenised = scores
            signatures.add(plain["signature"])
            cells = [figure(str(score["score"]), is_smoke(folder)) for score in (tokenised, plain)]
        lines.append(row([name, f"{bleu}, {parameters}", *cells]))
    return "\n".join([*lines, "".join(f"\n{signature}" for signature in sorted(signatures))])


def main(prog: str, arguments: List[str]) -> int:
    """Run the command; returns the exit code."""
    parser = help_parser(
        prog,
        "What scripts/wmt14.sh has trained, in Markdown, next to the paper's figures.\n\n"
        "    luna-fairseq table wmt14 wmt14-out",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder of the runs")
    parser.add_argument("--recipe", default="sentencepiece", help="by which their data was prepared")
    parser.add_argument("--tag", default="", help="only the runs of this TAG")
    args = parser.parse_args(arguments)
    kind = f"{args.recipe}-{args.tag}" if args.tag else args.recipe
    return run(prog, lambda: print(table(existing(args.out), kind)), ValueError)
