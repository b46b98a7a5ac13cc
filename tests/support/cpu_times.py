"""`pytest --cpu-times FILE`: CPU seconds of each test with its children; a busy machine hardly changes them.

A line of FILE is the seconds, a tab, the test. A fixture counts for the first test that uses it.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest


def cpu_s() -> float:
    """CPU seconds that this process and its ended children have used."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


class CpuTimes:
    """The plugin that writes the file; with `-n` every worker appends to it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Around a test with its fixtures."""
        before = cpu_s()
        result = yield
        with self.file.open("a") as out:
            out.write(f"{cpu_s() - before:.2f}\t{item.nodeid}\n")
        return result  # type: ignore[return-value]  # of the hooks within
