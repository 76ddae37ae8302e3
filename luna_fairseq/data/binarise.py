"""fairseq's binary files, by its own code."""

import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from luna_fairseq.data.pieces import quiet_import
from luna_fairseq.errors import PreparationError

# fairseq-preprocess, for which files of the folder where it works are no modules. (-P does that from Python 3.11 on.)
_PREPROCESS = """import sys
sys.path = [folder for folder in sys.path if folder]
from fairseq_cli.preprocess import cli_main
cli_main()
"""


def split_builder(stack: ExitStack, path: Path, dictionary: Any) -> Any:
    """A builder of ``path``.bin and .idx, as fairseq-preprocess writes them; both are finished with the stack."""
    with quiet_import():
        from fairseq.data import indexed_dataset

    builder = indexed_dataset.make_builder(f"{path}.bin", "mmap", vocab_size=len(dictionary))
    stack.callback(builder.finalize, f"{path}.idx")
    return builder


def binarise(options: Sequence[str], folder: Path, lines: dict[str, int], log: Path) -> None:
    """Run fairseq-preprocess, see that it took every line, and print what it counted.

    Args:
        options: ``--destdir`` and the others; the text by names relative to ``folder``, since a comma in a name
            begins another one.
        folder: where the text is.
        lines: how many each of its files has.
        log: gets all that fairseq-preprocess prints, if something is wrong.
    """
    command = [sys.executable, "-c", _PREPROCESS, *options]
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    counts = re.findall(r"\] (\S+): (\d+) sents, (\d+) tokens", done.stdout)
    if done.returncode or {name: int(sentences) for name, sentences, _ in counts} != lines:
        log.write_text(done.stdout, encoding="utf-8")
        raise PreparationError(f"fairseq-preprocess failed or lost lines: all that it printed is in {log}")
    (Path(options[options.index("--destdir") + 1]) / "preprocess.log").unlink()
    for name, sentences, tokens in counts:
        print(f"  {name}: {int(sentences):,} lines, {int(tokens):,} tokens")
