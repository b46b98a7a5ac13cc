"""What every test gets: an environment of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Take back what a test sets: run.py sets TVM's variables, and a later test's child process would see them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
