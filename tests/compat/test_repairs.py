"""The list of repairs: each is needed, can be switched off alone, and stands in docs/fairseq.md."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from fairseq.optim import AMPOptimizer
from fairseq.trainer import Trainer

from luna_fairseq.compat import REPAIRS, Repair, switched_off
from luna_fairseq.compat.__main__ import table
from luna_fairseq.compat._replace import add, after_import, replace
from support import repair_checks
from support.running import ROOT


@pytest.mark.parametrize("repair", REPAIRS, ids=lambda repair: repair.name)
def test_every_repair_is_needed(repair: Repair, tmp_path: Path) -> None:
    """A repair has a check of its name in support/repair_checks.py, which fails where it is switched off."""
    check = getattr(repair_checks, repair.name, None)
    assert check is not None, f"write a {repair.name} in support/repair_checks.py that fails without the repair"
    for name in ("on", "off"):
        (tmp_path / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        check(tmp_path / "on", patch)
    with switched_off(repair.name), pytest.MonkeyPatch.context() as patch:
        assert not repair.on
        with pytest.raises((Exception, pytest.fail.Exception)) as seen:
            check(tmp_path / "off", patch)
    print(f"{repair.name} switched off: {seen.typename}: {str(seen.value)[:200]}")
    assert repair.on


def test_the_documentation_has_every_repair() -> None:
    page = (ROOT / "docs" / "fairseq.md").read_text().split("\n## All repairs\n")[1]
    rows = [line for line in page.splitlines() if line.startswith("|")]
    advice = 'put what "python -m luna_fairseq.compat" prints in the place of the table of docs/fairseq.md'
    for row, wanted in zip(rows, table(), strict=False):
        assert row == wanted, advice
    assert len(rows) == len(table()), advice


def test_every_repair_says_what_it_does_in_one_line() -> None:
    for repair in REPAIRS:
        for text in (repair.fairseq, repair.here, repair.since):
            assert text and "\n" not in text and "|" not in text, repair.name
            assert text == text.strip() and not text.endswith("."), repair.name


def test_the_list_costs_nothing_before_it_is_needed() -> None:
    code = (
        "import sys, luna_fairseq.compat as compat\n"
        "assert len(compat.REPAIRS) > 30 and not any(repair.on for repair in compat.REPAIRS)\n"
        "print(sorted({'torch', 'fairseq', 'numpy', 'omegaconf'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_repaired_looks_as_before() -> None:
    """fairseq and the repairs themselves ask for signatures; a kind of attribute stays what it was."""
    assert list(inspect.signature(Trainer.load_checkpoint).parameters)[1:3] == ["filename", "reset_optimizer"]
    assert Trainer.load_checkpoint.__name__ == "load_checkpoint"
    assert "arg_overrides" in inspect.signature(checkpoint_utils.load_checkpoint_to_cpu).parameters
    assert isinstance(vars(PathManager)["copy"], staticmethod)
    assert isinstance(vars(AMPOptimizer)["next_loss_scale"], property)


def _layers(function: Any) -> int:
    return 1 + _layers(function.__wrapped__) if hasattr(function, "__wrapped__") else 0


def test_one_of_several_repairs_of_a_method_is_switched_off_alone() -> None:
    whole = _layers(Trainer.load_checkpoint)
    names = [repair.name for repair in REPAIRS if repair.target == "trainer.Trainer.load_checkpoint"]
    assert whole == len(names) == 8
    for name in names:
        with switched_off(name):
            assert _layers(Trainer.load_checkpoint) == whole - 1
    assert _layers(Trainer.load_checkpoint) == whole
    with pytest.raises(KeyError), switched_off("nothing of that name"):
        pass


class _Base:
    def greet(self, name: str) -> str:
        return f"hello {name}"


class _Derived(_Base):
    pass


def test_repairs_lie_around_each_other_in_the_order_of_the_list() -> None:
    """Around a method that the class inherits, too, and in whatever order they are switched on and off."""
    before = len(REPAIRS)

    def declare(name: str) -> Repair:
        def layer(original: Any) -> Any:
            return lambda self, who: f"{name}({original(self, who)})"

        act = replace(lambda: [_Derived], "greet", layer)
        return add(Repair(name, "tests", "greet", "says hello", "says more", "today", act))

    try:
        first, second = declare("first"), declare("second")
        with pytest.raises(ValueError, match="there are two repairs named first"):
            declare("first")
        second.switch_on()
        assert _Derived().greet("you") == "second(hello you)" and _Base().greet("you") == "hello you"
        first.switch_on()
        first.switch_on()
        assert _Derived().greet("you") == "second(first(hello you))"
        second.switch_off()
        assert _Derived().greet("you") == "first(hello you)"
        first.switch_off()
        assert "greet" not in vars(_Derived)
    finally:
        del REPAIRS[before:]


@pytest.mark.parametrize("imported", ["never", "before", "while the repair waits"])
def test_a_repair_may_wait_for_an_import(imported: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package needs it while it is imported itself; nothing is left of it when it is switched off."""
    package = tmp_path / "waited_for"
    package.mkdir()
    (package / "__init__.py").write_text("from waited_for import inner\nseen = inner.greet()\n")
    (package / "inner.py").write_text("def greet():\n    return 'hello'\n")
    monkeypatch.syspath_prepend(tmp_path)
    finders = sys.meta_path[:]
    act = after_import("waited_for.inner", replace("waited_for.inner", "greet", lambda original: lambda: "repaired"))
    repair = Repair("waits", "tests", "inner.greet", "says hello", "says more", "today", act)
    REPAIRS.append(repair)
    try:
        if imported == "before":
            assert importlib.import_module("waited_for").seen == "hello"
        repair.switch_on()
        assert repair.on
        if imported != "never":
            module = importlib.import_module("waited_for")
            assert module.seen == ("hello" if imported == "before" else "repaired")
            assert module.inner.greet() == "repaired"
        repair.switch_off()
        assert sys.meta_path == finders
        assert imported == "never" or module.inner.greet() == "hello"
    finally:
        REPAIRS.remove(repair)
        for name in ("waited_for", "waited_for.inner"):
            sys.modules.pop(name, None)
