"""The help of every command: what it is for, an example that it understands, and its defaults."""

import contextlib
import io
import re
import shlex
from typing import Any, Dict, List, Tuple

import pytest

from luna_fairseq.cli import COMMANDS, main
from luna_fairseq.commands import fetch, prepare, table

GROUPS: Dict[str, Dict[str, Any]] = {"prepare": prepare.KINDS, "fetch": fetch.NAMES, "table": table.EXPERIMENTS}
FOLDERS = ("user-dir", "configs", "scripts")  # these print one, for other commands
EVERY = [
    (),
    *((name,) for name in COMMANDS if name not in FOLDERS),
    *((group, kind) for group, kinds in GROUPS.items() for kind in kinds),
]


def _help(command: Tuple[str, ...]) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    return output.getvalue()


def _examples(text: str) -> List[List[str]]:
    joined = re.sub(r" \\\n +", " ", text)
    return [shlex.split(line) for line in re.findall(r"^    (luna-fairseq .*)$", joined, re.M)]


@pytest.mark.parametrize("command", EVERY, ids=" ".join)
def test_help(command: Tuple[str, ...]) -> None:
    text = _help(command)
    usage, described, *_ = text.split("\n\n")
    assert usage.startswith(f"usage: {' '.join(('luna-fairseq', *command))} [")
    assert described[0].isupper() and described.rstrip()[-1] in ".:?"
    assert "`" not in text and "None)" not in text
    if command:
        shown = [example for example in _examples(text) if example[1 : 1 + len(command)] == list(command)]
        assert shown, f"no example of {' '.join(command)}"
        for example in shown:
            given = {word for word in example if re.fullmatch(r"--[a-z][\w-]*", word)}
            others = {"run": {"--arch", "--optimizer", "--max-tokens"}}.get(command[0], set())
            assert given - others <= set(re.findall(r"--[a-z][\w-]*", text)), example


@pytest.mark.parametrize("name", FOLDERS)
def test_help_of_a_folder_shows_where_it_goes(name: str) -> None:
    text = _help((name,))
    assert "\n\n    " in text and f"$(luna-fairseq {name})" in text


@pytest.mark.parametrize("command", EVERY, ids=" ".join)
def test_help_fits_a_screen(command: Tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # for what argparse wraps itself
    assert max(map(len, _help(command).splitlines())) <= 120


def test_defaults_are_told() -> None:
    text = " ".join(_help(("prepare", "translation")).split())
    for default in ("en", "de", "sentencepiece", "40,600", "2,000,000", "250", "1.5"):
        assert f"(default: {default})" in text
    assert "(default: en)" in " ".join(_help(("prepare", "pieces")).split())
    assert "(default: updates)" in " ".join(_help(("plot",)).split())
    assert "default: False" not in text and "default: None" not in text
