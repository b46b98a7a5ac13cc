"""Errors that come of a lack of memory are known as such, and others are not."""

from __future__ import annotations

import errno
import importlib.abc
import importlib.util
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

import pytest

from targets import memory
from targets.errors import UserError

NAME = "hsd_library_of_a_test"


class Denied(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds the library NAME, whose source cannot be compiled for an error."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name == NAME else None

    def get_source(self, fullname: str) -> str:
        return ""

    def get_code(self, fullname: str) -> CodeType | None:
        raise self.error


def error_of_import(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> BaseException:
    monkeypatch.setattr(sys, "meta_path", [Denied(error), *sys.meta_path])
    try:
        import hsd_library_of_a_test  # noqa: F401
    except BaseException as raised:
        return raised
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "limited", "lacks"),
    [
        (SystemError("error return without exception set"), True, True),
        (AttributeError("module 'a' has no attribute 'b'"), True, True),
        (SystemError("error return without exception set"), False, False),
        (ModuleNotFoundError("No module named 'a'"), True, False),
        (ImportError("a.so: failed to map segment from shared object"), False, True),
    ],
)
def test_what_an_import_ends_with(
    error: BaseException, limited: bool, lacks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "is_limited", lambda: limited)
    assert memory.lacks_memory(error_of_import(error, monkeypatch)) is lacks


def test_outside_an_import_the_error_alone_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "is_limited", lambda: True)
    for error, lacks in [
        (SystemError("error return without exception set"), False),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
    ]:
        with pytest.raises((SystemError, OSError)) as raised:
            raise error
        assert memory.lacks_memory(raised.value) is lacks
    with pytest.raises(KeyError) as caused:
        raise KeyError("a") from MemoryError()
    assert memory.lacks_memory(caused.value)


def test_a_limit_is_seen() -> None:
    script = "import resource; from targets import memory; resource.setrlimit(resource.RLIMIT_AS, ({0}, {0})); "
    script += "print(memory.is_limited(), memory.short_note(KeyError()) != '')"
    for most, said in [(1 << 45, "True False\n"), (memory.SHORT_BYTES, "True True\n")]:
        command = [sys.executable, "-c", script.format(most)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == said
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        assert not memory.is_short(1 << 20)
    assert memory.is_short(os.sysconf("SC_PAGE_SIZE") << 50)


def test_what_says_memory_already_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "is_short", lambda size: True)
    assert memory.short_note(UserError("a.onnx: tie_equal_head: out of memory")) == ""
    assert memory.short_note(UserError("a.onnx: the shape of val_2 is unknown")).startswith("out of memory?")
