"""docs/what-works.md says what comes out of each task, criterion and option."""

import re
from collections import defaultdict
from dataclasses import replace
from typing import Dict, Iterator, List, Tuple

import pytest
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import MODEL_REGISTRY
from fairseq.optim import OPTIMIZER_REGISTRY
from fairseq.optim.lr_scheduler import LR_SCHEDULER_REGISTRY
from fairseq.tasks import TASK_REGISTRY

from support.running import ROOT, Corpus, LMCorpus
from support.what_is_tried import Case, all_cases
from support.what_works import Data, outcome, row, works

CASES = all_cases()
TOGETHER = 6  # what works one by one is tried so many at a time


def _page() -> Dict[str, List[Tuple[str, str]]]:
    """heading -> rows (what is tried, outcome)."""
    found: Dict[str, List[Tuple[str, str]]] = defaultdict(list)
    heading = ""
    for line in (ROOT / "docs" / "what-works.md").read_text().splitlines():
        if line.startswith("## "):
            heading = line[3:].lower()
        elif match := re.fullmatch(r"\| `(.+)` \| (.+) \|", line):
            found[heading].append((match[1], match[2]))
    return found


PAGE = _page()
SAID = {(table, name): said for table, rows in PAGE.items() for name, said in rows}


def test_the_page_has_a_row_for_each_case() -> None:
    want: Dict[str, List[str]] = defaultdict(list)
    for case in CASES:
        want[case.table.lower()].append(row(case, "").split("`")[1])
    assert {table: [name for name, _ in rows] for table, rows in PAGE.items()} == want
    assert not [name for name, said in SAID.items() if not re.match("works$|refused: |not in fairseq either: ", said)]


def _tried(table: str) -> Iterator[str]:
    return (case.name.split()[0] for case in CASES if case.table == table)


# Of audio, or of models that fairseq names by themselves; and ours, which have pages of their own.
OTHERS = {
    "tasks": "audio_ hubert speech text_to_speech frm_ nlu_ long_range lra",
    "criterions": "fastspeech2 hubert speech tacotron2 wav2vec model lra_ legacy_",
    "optimizers": "composite",
    "schedules": "",
}


@pytest.mark.parametrize(
    ("table", "registry"),
    [
        ("tasks", TASK_REGISTRY),
        ("criterions", CRITERION_REGISTRY),
        ("optimizers", OPTIMIZER_REGISTRY),
        ("schedules", LR_SCHEDULER_REGISTRY),
    ],
    ids=["tasks", "criterions", "optimizers", "schedules"],
)
def test_everything_that_fairseq_registers_is_tried(table: str, registry: Dict[str, object]) -> None:
    others = tuple(OTHERS[table].split())
    left = {name for name in registry if not name.startswith(others) and "speech" not in name} - set(_tried(table))
    assert not {name for name in left if not name.startswith("test_")}, left


@pytest.mark.parametrize(
    ("arch", "table"),
    [
        ("transformer", "options of the translation model"),
        ("roberta", "options of the masked LM"),
        ("transformer_lm", "options of the language model"),
    ],
    ids=["translation", "masked LM", "language model"],
)
def test_every_option_of_fairseqs_models_is_tried(arch: str, table: str) -> None:
    from argparse import ArgumentParser

    parser = ArgumentParser(allow_abbrev=False)
    MODEL_REGISTRY[arch].add_args(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")}
    tried = " ".join(
        " ".join([case.name, *case.options, *case.family.options]) for case in CASES if case.table == table
    )
    # Sizes of what is refused.
    flags -= {"--help", "--base-sublayers", "--base-shuffle"}
    assert not {flag for flag in flags if flag not in tried.split()}


def _groups() -> Iterator[List[Case]]:
    """Cases that say the same of the same command; what works, with no option twice."""
    open_groups: Dict[Tuple[object, ...], List[Case]] = {}
    for case in CASES:
        said = SAID.get((case.table.lower(), row(case, "").split("`")[1]), "")
        kind = said.split(":")[0]
        flags = {option for option in case.options if option.startswith("--")}
        alone = case.table in ("tasks", "criterions") or kind != "works"
        key = (case.family, case.command, case.without, case.data, kind, case.table)
        group = open_groups.get(key, [])
        clash = flags & {option for other in group for option in other.options}
        if group and (len(group) == TOGETHER or (clash and not alone)):
            yield open_groups.pop(key)
            group = []
        open_groups[key] = [*group, case]
    yield from open_groups.values()


@pytest.fixture(scope="module")
def data(corpus: Corpus, lm_corpus: LMCorpus, tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data(tmp_path_factory.mktemp("data"), corpus, lm_corpus)


@pytest.mark.long
@pytest.mark.parametrize("group", list(_groups()), ids=lambda group: group[0].name[:50])
def test_what_comes_out(group: List[Case], data: Data) -> None:
    said = {case: SAID[case.table.lower(), row(case, "").split("`")[1]] for case in group}
    if len(group) > 1 and set(said.values()) == {"works"} and group[0].table not in ("tasks", "criterions"):
        options = tuple(option for case in group for option in case.options)
        if works(replace(group[0], options=options), data):
            return
    for case, want in said.items():  # also if they do not go together
        if want.startswith("not in fairseq"):  # fairseq's own was tried when the page was made
            assert not works(case, data), f"{case.name} works: write the page anew"
        else:
            assert outcome(case, data) == want, case.name
