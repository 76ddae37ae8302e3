"""What the documentation names is there: links, files, options, targets; and every command is run by a test."""

import argparse
import contextlib
import io
import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple

import pytest
import yaml
from fairseq import options
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.data.encoders import BPE_REGISTRY, TOKENIZER_REGISTRY
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import MODEL_REGISTRY
from fairseq.optim import OPTIMIZER_REGISTRY
from fairseq.optim.lr_scheduler import LR_SCHEDULER_REGISTRY
from fairseq.tasks import TASK_REGISTRY

from luna_fairseq._version import __version__
from luna_fairseq.cli import COMMANDS, main
from luna_fairseq.commands import fetch, prepare, table
from scripts.bench.report import report
from support.pages import PAGES, anchor, blocks, hardware, headings, links, prose, section_commands, split_commands
from support.running import ROOT

# Options of other programs.
ELSEWHERE = set(
    "--help --version --no-build-isolation --no-deps --editable --no-index --find-links --index-url "
    "--extra-index-url --nproc_per_node --method --num-experts --mean-pool-gating-network".split()
)

# The sections whose commands a test runs, and where the test is. A command that stands in none of them must say on
# the first line of its block what it needs (an idle machine, GPUs, hours, a network).
RUN = {
    ("docs/translation.md", "From raw text to a score"): "tests/docs/test_page_commands.py",
    ("docs/translation.md", "With Hydra, and without --user-dir"): "tests/docs/test_page_commands.py",
    ("docs/translation.md", "Your own text"): "tests/docs/test_page_commands.py",
    ("docs/masked-lm.md", "From raw text to a perplexity, and to a classifier"): "tests/docs/test_page_commands.py",
    ("docs/masked-lm.md", "By configs, and what was compared"): "tests/docs/test_page_commands.py",
    ("docs/masked-lm.md", "WikiText-2 and SST-2"): "tests/docs/test_page_commands.py",
    ("docs/language-model.md", "Train, score, sample"): "tests/docs/test_page_commands.py",
    ("docs/language-model.md", "WikiText-2"): "tests/docs/test_page_commands.py",
    ("docs/long-range-arena.md", "From long documents to an accuracy"): "tests/docs/test_page_commands.py",
    ("docs/long-range-arena.md", "The Long Range Arena"): "tests/docs/test_page_commands.py",
    ("docs/wmt14.md", "WMT'14 English-German"): "tests/docs/test_page_commands.py",
    ("docs/multi30k.md", "Multi30k"): "tests/docs/test_page_commands.py",
    ("docs/many-processes.md", "Many processes, many machines"): "tests/docs/test_page_commands.py",
    ("docs/export.md", "Weights, options and tokenizer files"): "tests/commands/test_export.py",
    ("docs/export.md", "ONNX and torch.export"): "tests/commands/test_export.py",
    ("docs/doctor.md", "`luna-fairseq doctor`"): "tests/commands/test_doctor.py",
    ("docs/doctor.md", "`luna-fairseq run`"): "tests/commands/test_run.py",
    ("docs/install.md", "Does it work?"): "tests/commands/test_doctor.py",
    ("docs/install.md", "What is installed"): "tests/test_wheel.py",
    ("docs/install.md", "Python 3.14"): "tests/commands/test_run.py",
}


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _each_page() -> List[Any]:
    return [pytest.param(page, id=_name(page)) for page in PAGES]


@pytest.mark.parametrize("page", _each_page())
def test_links_lead_somewhere(page: Path) -> None:
    for file, place in links(page):
        assert file.exists(), f"{_name(page)} links to {file}, which is not there"
        if place:
            anchors = [anchor(heading.title) for heading in headings(_name(file.resolve()))]
            assert place in anchors, f"{_name(page)} links to #{place}, which {file.name} does not have"


@pytest.mark.parametrize("page", _each_page())
def test_no_heading_stands_twice_on_a_page(page: Path) -> None:
    """A link to the second would lead to the first."""
    if page.name != "CHANGELOG.md":
        anchors = [anchor(heading.title) for heading in headings(_name(page))]
        assert len(anchors) == len(set(anchors))


@pytest.mark.parametrize("page", _each_page())
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r"\b((?:luna_fairseq|tests|scripts|configs|docs)/[\w./-]*\w)", prose(text))
    if page.name != "CHANGELOG.md":  # which tells what was
        for path in named:
            assert (ROOT / path).exists() or (page.parent / path).exists(), f"{_name(page)}: {path}"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z][\w-]*)`", text) + re.findall(r"^make ([\w-]+)", text, re.M):
        assert f"\n{target}:" in makefile, f"{_name(page)}: make {target}"
    kinds = "multi30k|wmt14|wikitext2|sst2_small|pretrain|finetune"
    for config in re.findall(rf"\b((?:{kinds})_\w+)(?![\w*{{.=])", text):
        assert list((ROOT / "configs").glob(f"*/{config}.yaml")), f"{_name(page)}: {config}"


def test_every_page_is_in_the_contents() -> None:
    here = {file.resolve() for file, _ in links(ROOT / "README.md")}
    missing = [_name(page) for page in PAGES if page.name not in ("README.md", "CHANGELOG.md") and page not in here]
    assert not missing, f"README.md does not link to {missing}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_the_readme_has_the_figures_of_its_pages() -> None:
    speed = report(json.loads((ROOT / "docs" / "benchmark.json").read_text()))
    readme = (ROOT / "README.md").read_text()
    multi30k = (ROOT / "docs" / "multi30k.md").read_text()

    def row(text: str, name: str, table: str) -> List[str]:
        (line,) = [x for x in text.split(table)[1].split("\n\n")[1].splitlines() if x.startswith(f"| {name} |")]
        return [cell.strip() for cell in line.split("|")[2:-1]]

    ours = dict(re.findall(r"^\| (one layer|one causal layer|training \S+) \|(.*)\|$", readme, re.M))
    found = {name: [cell.strip() for cell in cells.split("|")] for name, cells in ours.items()}
    for place, length in enumerate(("1,024", "4,096", "16,384")):
        cells = row(speed, length, "One attention layer, forward and backward")
        assert (found["one layer"][place], found["one causal layer"][place]) == (cells[1], cells[5])
        training = re.findall(rf"^\| luna_base_untied \| {length} \|.*\| (\S+, \S+) \|$", speed, re.M)
        assert found["training `luna_base_untied`"][place] == (training or ["not run"])[0]
    (scores,) = re.findall(r"^\| as published.*?\) \|(.*)\|$", readme, re.M)
    table = re.findall(
        r"^\| (fairseq's Transformer|Luna-16 untied|Luna-16 tied) \| [\d,]+ \| \S+ \| (\S+) \|", multi30k, re.M
    )
    assert [score.strip() for score in scores.split("|")] == [score for _, score in table]


@pytest.mark.parametrize("page", _each_page())
def test_every_command_is_run_by_a_test_or_says_what_it_needs(page: Path) -> None:
    run = {command for name, title in RUN if (ROOT / name).exists() for command in section_commands(name, title)}
    for block in blocks(page.read_text(), "bash"):
        for command in split_commands(block):
            known = (
                command in run
                or hardware(block)
                or command.startswith(("export PATH", "make ", "pip install", "uv pip"))
            )
            assert known, f"{_name(page)}: no test runs {command!r}, and it does not say what it needs"


def test_what_is_said_to_run_commands_does() -> None:
    for (page, title), test in RUN.items():
        text = (ROOT / test).read_text()
        started = {word for command in section_commands(page, title) for word in _words(command)[:2]}
        assert title in text or any(word in text for word in started), f"{test} does not run {title} of {page}"


@cache
def _help_of(*command: str) -> str:
    """What a command of ours prints when it is asked for help."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return output.getvalue()


@cache
def _options_of_fairseq() -> Set[str]:
    """Every option that a command of fairseq can have with the plugin, whatever is chosen."""
    parsers = [
        options.get_training_parser(), options.get_generation_parser(), options.get_interactive_generation_parser(),
        options.get_validation_parser(), options.get_preprocessing_parser(), options.get_eval_lm_parser(),
    ]  # fmt: skip
    found: Set[str] = {"--user-dir", "--arch", "--help"}
    for parser in parsers:
        found.update(option for action in parser._actions for option in action.option_strings)
    registries: List[Dict[str, Any]] = [
        MODEL_REGISTRY, TASK_REGISTRY, CRITERION_REGISTRY, OPTIMIZER_REGISTRY, LR_SCHEDULER_REGISTRY, BPE_REGISTRY,
        TOKENIZER_REGISTRY,
    ]  # fmt: skip
    for cls in (cls for registry in registries for cls in registry.values()):
        parser = argparse.ArgumentParser(conflict_handler="resolve", add_help=False)
        if hasattr(cls, "add_args"):
            cls.add_args(parser)
        elif (options_of := getattr(cls, "__dataclass", None)) is not None:
            gen_parser_from_dataclass(parser, options_of())
        found.update(option for action in parser._actions for option in action.option_strings)
    return found


def _words(command: str) -> List[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a here-document, or an apostrophe in a comment
        return command.split()


@cache
def _options_of_ours() -> Set[str]:
    groups = {"prepare": prepare.KINDS, "fetch": fetch.NAMES, "table": table.EXPERIMENTS}
    commands: List[Tuple[str, ...]] = [(name,) for name in COMMANDS if name != "run"]
    commands += [(group, kind) for group, kinds in groups.items() for kind in kinds]
    return {option for command in commands for option in re.findall(r"(--[a-z][\w-]*)", _help_of(*command))}


@cache
def _options_of_bench() -> Set[str]:
    """Those of the programs in scripts/bench, from their text."""
    texts = [path.read_text() for path in (ROOT / "scripts" / "bench").glob("*.py")]
    return {option for text in texts for option in re.findall(r'add_argument\(\s*"(--[a-z][\w-]*)"', text)}


@pytest.mark.parametrize("page", _each_page())
def test_options_exist(page: Path) -> None:
    """Those of a command in a block are of that command; those in the text are of some command."""
    if page.name == "CHANGELOG.md":
        return
    text = page.read_text()
    for block in blocks(text, "bash"):
        for command in split_commands(block):
            words = _words(command)
            given = {word.split("=")[0] for word in words if re.fullmatch(r"--[a-z][\w-]*(=.*)?", word)}
            if words[0] == "luna-fairseq" and words[1] not in ("run", "user-dir"):
                of = words[1:3] if words[1] in ("prepare", "fetch", "table") else words[1:2]
                assert given <= set(re.findall(r"--[a-z][\w-]*", _help_of(*of))), f"{_name(page)}: {command}"
            elif re.match(r"(luna-fairseq run )?fairseq-(train|generate|interactive|validate|preprocess)", command):
                assert given <= _options_of_fairseq(), f"{_name(page)}: {given - _options_of_fairseq()}"
    known = _options_of_fairseq() | _options_of_ours() | _options_of_bench() | ELSEWHERE
    named = {
        option
        for span in re.findall(r"`([^`\n]*)`", prose(text))
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*\w", span)
    }
    assert named <= known, f"{_name(page)} names options that no command has: {sorted(named - known)}"


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and cited["version"] == __version__ and cited["license"] == "MIT"
    paper = cited["preferred-citation"]
    bibtex = " ".join(blocks((ROOT / "README.md").read_text(), "bibtex"))
    assert paper["title"] in bibtex and all(author["family-names"] in bibtex for author in paper["authors"])
    assert paper["url"] in (ROOT / "README.md").read_text()


def test_a_report_begins_with_the_doctor() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 2
    for form in forms:
        content = yaml.safe_load(form.read_text())
        assert content["name"] and content["description"]
        first, *others = content["body"]
        assert "luna-fairseq doctor" in first["attributes"]["label"] and first["validations"]["required"]
        assert all(field["type"] == "textarea" and field["id"] and field["attributes"]["label"] for field in others)


def test_every_picture_is_shown() -> None:
    shown = {file.resolve() for page in PAGES for file, _ in links(page)}
    pictures = {path for ending in ("svg", "png") for path in (ROOT / "docs").glob(f"*.{ending}")}
    assert pictures <= shown, pictures - shown
