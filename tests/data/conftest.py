"""The data tools start fairseq-preprocess by the Python that runs them: here a fork of one."""

import sys

import pytest

from support.forks import commands


@pytest.fixture(autouse=True)
def _forked_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(commands() / "python"))
