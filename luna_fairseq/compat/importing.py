"""What keeps fairseq from being imported, or its commands from starting, on a Python newer than it."""

import argparse
import types
import typing
from typing import Any

from luna_fairseq.compat._replace import replaces, replaces_value, variant


@replaces(
    "fairseq.dataclass.utils",
    "interpret_dc_type",
    at_import="fairseq.dataclass.utils",
    fairseq='knows an optional option by the text "typing.Optional" in the name of its type',
    here="by what the type is, however it is written",
    since="Python 3.14 (where fairseq cannot be imported)",
)
def see_what_is_optional(original: Any, field_type: Any) -> Any:
    members = typing.get_args(field_type)
    if typing.get_origin(field_type) in (typing.Union, types.UnionType) and type(None) in members:
        return next(member for member in members if member is not type(None))
    return original(field_type)


class _Help(str):
    """A help text for argparse, which looks for "%" in it; who prints it sees the whole."""

    whole: Any

    def __str__(self) -> str:
        return repr(self.whole)

    def __format__(self, _: str) -> str:
        return str(self)


class _Parser(argparse.ArgumentParser):
    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        if "help" in kwargs and not isinstance(kwargs["help"], str):
            text = _Help("Install or Uninstall shell completion")
            text.whole = kwargs["help"]
            kwargs["help"] = text
        return super().add_argument(*args, **kwargs)


@replaces_value(
    "hydra._internal.utils",
    "argparse",
    fairseq="has a hydra that gives argparse an object as a help text, which argparse refuses: nothing starts",
    here="the module sees an argparse that makes a text of it",
    since="Python 3.14 (with hydra-core 1.3)",
)
def give_argparse_text(original: Any) -> Any:
    return variant(original, ArgumentParser=_Parser)
