"""The pages of the documentation: their sections, commands and links, and how a test runs their commands."""

import os
import re
import subprocess
import textwrap
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Tuple

from support.forks import path_variable
from support.running import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "luna_fairseq" / "ops" / "README.md"])
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)


class Heading(NamedTuple):
    """A heading, and what stands below it up to the next one of its level or above."""

    level: int
    title: str
    text: str


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return _FENCE.sub("", text)


def headings(page: str) -> List[Heading]:
    """The headings of a page, named from the root of the repository."""
    text = (ROOT / page).read_text()
    hidden = _FENCE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)  # a comment in a block is no heading
    places = [(len(found[1]), found[2], found.start()) for found in re.finditer(r"^(#+) (.+)$", hidden, re.M)]
    return [
        Heading(level, title, text[start : next((s for n, _, s in places if s > start and n <= level), len(text))])
        for level, title, start in places
    ]


def anchor(title: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def blocks(text: str, language: str) -> List[str]:
    """The blocks of code in a text, in one language."""
    return [textwrap.dedent(found[3]) for found in _FENCE.finditer(text) if found[2] == language]


def split_commands(block: str) -> List[str]:
    """The commands of a block, one string each; a loop is one, and comments are none."""
    lines = [line for line in block.strip().split("\n") if not line.startswith("#")]
    found = re.split(r"\n(?! |done\b)", "\n".join(lines))
    return [re.sub(r"\s*\\\n\s*", " ", command).strip() for command in found if command.strip()]


def section(page: str, title: str) -> str:
    """The text of a section."""
    (found,) = [heading.text for heading in headings(page) if heading.title == title]
    return found


def section_commands(page: str, title: str) -> List[str]:
    """The shell commands of a section that need no machine of their own."""
    return [
        command
        for block in blocks(section(page, title), "bash")
        if not hardware(block)
        for command in split_commands(block)
    ]


def hardware(block: str) -> str:
    """What a block says that it needs, in a comment on its first line; nothing if it says nothing."""
    found = re.match(r"# (.*(?:GPU|hour|network|idle).*)\n", block)
    return found[1] if found else ""


def links(page: Path) -> Iterator[Tuple[Path, str]]:
    """The files that a page links to, with the anchor in them; addresses elsewhere are left out."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if not re.match(r"https?://|mailto:", target):
            name, _, place = target.partition("#")
            yield (page.parent / name if name else page), place


def run(command: str, folder: Path, **environment: str) -> str:
    """Run a command of a page in a folder; returns its output.

    Args:
        command: as it stands there, or made smaller.
        folder: where.
        environment: variables to add.
    """
    variables: Dict[str, str] = {**os.environ, "PATH": path_variable(), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder, capture_output=True, text=True, timeout=600, check=False, env=variables,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{(done.stdout + done.stderr)[-4000:]}"
    return done.stdout


def run_python(block: str, folder: Path) -> str:
    """Run a block of Python in a folder; returns its output."""
    (folder / "example.py").write_text(block)
    return run("python example.py", folder)
