"""How a repair takes the place of a part of fairseq, and the one list of all repairs.

A repair is a function with one of these decorators above it:

* :func:`replaces` for a function, method, static method or property: the repair is called instead, with the original
  as its first argument.
* :func:`replaces_value` for anything else (a class, a module, an entry of a dictionary): the repair is called once
  with the original and returns what stands in its place.
* :func:`acts` for what replaces nothing, such as a filter of warnings.

Several repairs may replace the same thing. They lie around each other in the order of :data:`REPAIRS`: the first one
gets fairseq's own function as its original, the second one gets the first, and so on. A caller meets the last one.
"""

import contextlib
import dataclasses
import functools
import importlib.abc
import importlib.util
import inspect
import os
import pkgutil
import sys
import types
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, TypeVar, Union

Undo = Callable[[], None]
Function = TypeVar("Function", bound=Callable[..., Any])
# The dotted name of a module, class or dictionary; or a function that returns several of them.
Owner = Union[str, Callable[[], Sequence[Any]]]

_ABSENT = object()


@dataclasses.dataclass(eq=False)
class Repair:
    """One thing that fairseq does, and what happens here instead.

    Attributes:
        name: of the function or class that repairs it; no two have the same one.
        area: the file of ``luna_fairseq/compat`` that has it, or ``tasks``.
        target: what is replaced, without ``fairseq.`` before it; empty if nothing is.
        fairseq: what fairseq 0.12.3 does.
        here: what happens here.
        since: the version that made the repair necessary.
        act: switches it on, and returns what switches it off again.
    """

    name: str
    area: str
    target: str
    fairseq: str
    here: str
    since: str
    act: Callable[["Repair"], Undo]
    _undo: Optional[Undo] = None

    @property
    def on(self) -> bool:
        """Whether fairseq behaves as ``here`` says."""
        return self._undo is not None

    def switch_on(self) -> None:
        """Repair fairseq, unless this is done."""
        if self._undo is None:
            self._undo = self.act(self)

    def switch_off(self) -> None:
        """Let fairseq behave as it does by itself; other repairs of the same function stay."""
        if self._undo is not None:
            self._undo()
            self._undo = None


REPAIRS: List[Repair] = []


def add(repair: Repair) -> Repair:
    """Append a repair to the list.

    Raises:
        ValueError: if the list has one of that name.
    """
    if any(other.name == repair.name for other in REPAIRS):
        raise ValueError(f"there are two repairs named {repair.name}: rename one of them")
    REPAIRS.append(repair)
    return repair


@contextlib.contextmanager
def switched_off(name: str) -> Iterator[None]:
    """Switch one repair off for a while, to see that it is needed.

    Raises:
        KeyError: if no repair has that name.
    """
    repair = {repair.name: repair for repair in REPAIRS}[name]
    repair.switch_off()
    try:
        yield
    finally:
        repair.switch_on()


class _Place:
    """An attribute of a module or a class, or an entry of a dictionary, and the repairs around what was there."""

    def __init__(self, owner: Any, name: str) -> None:
        entries = owner if isinstance(owner, dict) else vars(owner)
        self.owner, self.name = owner, name
        self.before = entries.get(name, _ABSENT)
        # A class may inherit what it does not have itself.
        self.original = getattr(owner, name, None) if self.before is _ABSENT else self.before
        self.layers: Dict[int, Callable[[Any], Any]] = {}  # by place in the list of repairs

    def build(self) -> None:
        """Put the layers around the original, in their order, and all of it in its place."""
        value = self.original if self.layers else self.before
        for _, layer in sorted(self.layers.items()):
            value = layer(value)
        if isinstance(self.owner, dict):
            self.owner[self.name] = value
        elif value is _ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, value)


_PLACES: Dict[Tuple[int, str], _Place] = {}


class _WhenImported(importlib.abc.MetaPathFinder):
    """Calls a function once somebody has imported a module."""

    def __init__(self, module: str, then: Undo) -> None:
        self.module, self.then = module, then
        sys.meta_path.insert(0, self)

    def stop(self) -> None:
        """Do not wait any more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """What the others find, which calls the function when it has been executed."""
        if fullname != self.module:
            return None
        self.stop()
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_then(module: Any) -> None:
                execute(module)
                self.then()

            spec.loader.exec_module = execute_then  # type: ignore[method-assign]
        return spec


def imported_modules() -> List[Any]:
    """All modules of fairseq's that have been imported: with its models, tasks and criteria."""
    import fairseq.criterions
    import fairseq.models
    import fairseq.tasks  # noqa: F401  (each loads all of its kind)

    return [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "fairseq"]


def _modules_of_a_command(name: str) -> List[Any]:
    """The module of a command of fairseq's in this process, by both of its names; it may be none."""
    file = os.path.join(*name.split(".")) + ".py"
    main = sys.modules.get("__main__")
    found = [sys.modules.get(name), main if (getattr(main, "__file__", None) or "").endswith(file) else None]
    return [module for module in found if module is not None]


def replace(owner: Owner, name: str, layer: Callable[[Any], Any]) -> Callable[[Repair], Undo]:
    """The ``act`` of a repair that puts a layer around something of fairseq's.

    Args:
        owner: what has it; looked up, and imported, when the repair is switched on. But the commands in
            ``fairseq_cli`` set up the logging when they are imported, and are waited for.
        name: the name of the attribute, or the key of the entry.
        layer: what was there -> what is there now.
    """

    def act(repair: Repair) -> Undo:
        places: Dict[int, _Place] = {}
        waiting: List[_WhenImported] = []
        key = REPAIRS.index(repair)

        def put(owners: Sequence[Any]) -> None:
            for one in owners:  # a module may be known by two names
                place = places[id(one)] = _PLACES.setdefault((id(one), name), _Place(one, name))
                place.layers[key] = layer
                place.build()

        def undo() -> None:
            for waits in waiting:
                waits.stop()
            for place in places.values():
                del place.layers[key]
                place.build()

        if not isinstance(owner, str):
            put(owner())
        elif owner.startswith("fairseq_cli."):
            put(_modules_of_a_command(owner))
            if owner not in sys.modules:
                waiting.append(_WhenImported(owner, lambda: put([sys.modules[owner]])))
        else:
            put([pkgutil.resolve_name(owner)])
        return undo

    return act


def variant(module: types.ModuleType, **changes: Any) -> types.ModuleType:
    """A module that has everything of another one, but for what is changed."""
    changed = types.ModuleType(module.__name__)
    changed.__dict__.update({**vars(module), **changes})
    return changed


def _around(function: Callable[..., Any], original: Any) -> Any:
    """A callable that gives ``function`` the original and the arguments, of the same kind as the original."""
    if isinstance(original, staticmethod):
        return staticmethod(_around(function, original.__func__))
    if isinstance(original, property):
        return property(_around(function, original.fget))

    @functools.wraps(original)
    def repaired(*args: Any, **kwargs: Any) -> Any:
        return function(original, *args, **kwargs)

    return repaired


def named(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Dict[str, Any]:
    """The arguments of a call by their names, without those that it leaves to their defaults."""
    return inspect.signature(function).bind(*args, **kwargs).arguments


def _area(function: Callable[..., Any]) -> str:
    return function.__module__.rpartition(".")[2]


def _target(owner: Owner, name: str) -> str:
    return f"{owner.removeprefix('fairseq.')}.{name}" if isinstance(owner, str) else name


def after_import(module: str, act: Callable[[Repair], Undo]) -> Callable[[Repair], Undo]:
    """Let an ``act`` wait until somebody else imports a module, where that has not happened yet.

    A module of fairseq cannot be imported before fairseq, whose own import may need the repair.

    Args:
        module: what is repaired.
        act: imports it.
    """

    def wait(repair: Repair) -> Undo:
        if module in sys.modules:
            return act(repair)
        undo: List[Undo] = []

        def work() -> None:
            # The module is there, but not yet an attribute of the package it is in, by which it would be found.
            package, _, name = module.rpartition(".")
            setattr(sys.modules[package], name, sys.modules[module])
            undo.append(act(repair))

        waiting = _WhenImported(module, work)

        def stop() -> None:
            waiting.stop()
            for undo_one in undo:
                undo_one()

        return stop

    return wait


def replaces(
    owner: Owner, name: str, *, fairseq: str, here: str, since: str, at_import: str = ""
) -> Callable[[Function], Function]:
    """Declare that a function replaces a callable or a property; it gets the original as its first argument.

    Args:
        owner: the dotted name of the module or class that has it.
        name: of the function, method or property.
        fairseq: what fairseq 0.12.3 does, in one line.
        here: what happens here, in one line.
        since: the version that made the repair necessary.
        at_import: the module of it, if the rest of fairseq cannot be imported without the repair.
    """

    def declare(function: Function) -> Function:
        act = replace(owner, name, functools.partial(_around, function))
        if at_import:
            act = after_import(at_import, act)
        add(Repair(function.__name__, _area(function), _target(owner, name), fairseq, here, since, act))
        return function

    return declare


def replaces_value(owner: Owner, name: str, *, fairseq: str, here: str, since: str) -> Callable[[Function], Function]:
    """Declare that a function makes, of the original, what stands in its place.

    The arguments are those of :func:`replaces`.
    """

    def declare(function: Function) -> Function:
        act = replace(owner, name, function)
        add(Repair(function.__name__, _area(function), _target(owner, name), fairseq, here, since, act))
        return function

    return declare


def acts(*, fairseq: str, here: str, since: str) -> Callable[[Function], Function]:
    """Declare that a function repairs something without replacing anything; it returns what takes that back."""

    def declare(function: Function) -> Function:
        add(Repair(function.__name__, _area(function), "", fairseq, here, since, lambda _: function()))
        return function

    return declare
