"""Denied memory is noticed by whoever called, and only that."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from targets.kernels.denied_memory import no_memory_denied


def allocate(size: int) -> bool:
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    memory = library.malloc(ctypes.c_size_t(size))
    library.free(ctypes.c_void_p(memory))
    return memory is not None


def test_a_library_that_makes_do_without_memory_is_noticed() -> None:
    with pytest.raises(MemoryError), no_memory_denied():
        assert not allocate(1 << 62)


def test_memory_that_was_given_and_what_was_denied_before_are_not() -> None:
    assert not allocate(1 << 62)
    with no_memory_denied():
        assert allocate(1 << 20)


def test_the_error_of_the_block_is_the_one_that_counts() -> None:
    with pytest.raises(FileNotFoundError) as caught, no_memory_denied():
        os.stat("/nowhere")
    assert caught.value.errno == errno.ENOENT
