r"""Training speed of several configs side by side, on the same batches, in one process.

Every round trains each config on the same few batches, one config after the other, so that whatever else the
machine does meets all of them; the medians over the rounds are printed, and the ratio to the first config.

    python -m scripts.bench.training_speed configs/translation/multi30k_{transformer,luna_tied_16}_adam.yaml \
        --data data-bin
"""

import argparse
import logging
import statistics
from functools import partial
from pathlib import Path

import torch

from luna_fairseq.errors import DataError
from luna_fairseq.measuring import interleaved
from scripts.bench.configs import Run
from scripts.bench.measuring import keep_memory, machine


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.training_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "configs", nargs="+", type=Path, help="YAML files; the first is what the others are compared with"
    )
    parser.add_argument("--data", required=True, help="the data folder, or folders joined by ':'")
    parser.add_argument("--batches", type=int, default=6, help="updates of each config in a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count; one more warms up")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args()

    logging.disable(logging.INFO)
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = ":".join(str(Path(part).resolve()) for part in args.data.split(":"))
    runs = [Run(path, data, device) for path in args.configs]
    try:
        batches = runs[0].batches(args.batches, device)
    except DataError as error:
        parser.error(str(error))
    words = sum(int(batch["ntokens"]) for batch in batches)
    seconds = interleaved({run.name: partial(run.train, batches) for run in runs}, args.rounds, device)

    print(f"\nmedian of {args.rounds} rounds of {len(batches)} updates, {machine(device)}\n")
    print("| config | words/s | ratio |\n|---|---|---|")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"| {name} | {words / median:,.0f} | {medians[runs[0].name] / median:.3f} |")


if __name__ == "__main__":
    keep_memory()
    main()
