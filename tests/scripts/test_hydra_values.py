"""Values that scripts give to Hydra: what it makes of them is what was given."""

import itertools
import random
import string
from pathlib import Path
from typing import List

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from support.running import run_script
from support.shell import run_shell

PRINTABLE = [character for character in string.printable if character.isprintable()]
SPECIAL = "\\'\"$"
FOLDER = "/a b/c,d(e)[f]{g}=h#i~j!k'l\"m&n;o%p`q^r|s<t>u*v?w+x@y$z/jürgen/日本"
VALUES = [
    *PRINTABLE,
    *map("/folder{}".format, PRINTABLE),
    "".join(PRINTABLE),
    "".join(reversed(PRINTABLE)),
    FOLDER,
    f"{FOLDER}:{FOLDER}\\",
    "/two  blanks, and\ta tab\t",
    "/äöüß€é",
    "/" + "\\" * 5,
    "/$a/{b}",
    "null",
    "true",
    "1e3",
    " ",
    *map("".join, itertools.product(SPECIAL, repeat=3)),
    *("".join(random.Random(seed).choices(SPECIAL + "a/,", k=12)) for seed in range(20)),
]


def _quoted(values: List[str]) -> List[str]:
    said = run_shell('for value; do quoted "$value"; done', *values)
    return said.removesuffix("\n").split("\n")


def test_every_value_comes_back() -> None:
    parser = OverridesParser.create()
    for value, quoted in zip(VALUES, _quoted(VALUES), strict=True):
        given = parser.parse_override(f"task.data={quoted}")
        assert given.value() == value and not given.is_sweep_override(), quoted
        config = OmegaConf.create({"task": {"data": given.value()}})
        assert OmegaConf.to_container(config, resolve=True) == {"task": {"data": value}}


def test_options(tmp_path: Path) -> None:
    """The value is what is behind the first equals sign."""
    said = run_shell('hydra "$@"; printf "%s\\n" "${HYDRA[@]}"', "task.data=/a=b", "hydra.run.dir=/it's")
    assert said == "task.data='/a=b'\nhydra.run.dir='/it\\'s'\n"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("/a\nb", r"it: $'/a\nb' has a line break: rename the folder"),
        ("/a\n", r"it: $'/a\n' has a line break: rename the folder"),
        ("/${oc.env:HOME}", "it: /${oc.env:HOME} has a ${, behind which fairseq looks for the name of an option: "
         "rename the folder"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ['x=$(quoted "$1")', 'hydra "a=$1"', 'x=$(absolute "$1")'])
def test_what_cannot_be_quoted_is_refused(command: str, value: str, message: str) -> None:
    assert run_shell(f"{command}; echo went on", value, code=1) == f"{message}\n"


@pytest.mark.parametrize(
    ("out", "message"),
    [("a\nb", "has a line break"), ("a${b}", "has a ${"), ("a:b", "at a colon fairseq separates folders")],
)
@pytest.mark.parametrize(
    "script",
    "multi30k wmt14 lra masked_lm language_model distill documents denoising demo torchrun".split(),
)
def test_such_an_out_is_refused(script: str, out: str, message: str, tmp_path: Path) -> None:
    command = [] if script in ("demo", "torchrun") else ["table"]
    said = run_script(tmp_path / out, f"scripts/{script}.sh", *command, code=1)
    assert message in said and said.count(": rename the folder") == 1
    assert not list(tmp_path.iterdir())
