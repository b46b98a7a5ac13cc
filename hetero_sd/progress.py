"""Progress of long work on the terminal: one line a step with its time, a bar where the size is known."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from hetero_sd.runtime.internal_error import step

Advance = Callable[[str, int, int], None]


class Progress:
    """Prints to standard error; `quiet` prints nothing."""

    def __init__(self, quiet: bool = False):
        """Keep the console."""
        self._console = Console(stderr=True, quiet=quiet, highlight=False)

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[Advance]:
        """A step of the work; the value can be called with (detail, bytes done, bytes in all) to show a bar."""
        start = time.perf_counter()
        bars = Bars(
            *(TextColumn("  {task.description}"), BarColumn(), DownloadColumn()), console=self._console, transient=True
        )
        task: list[TaskID] = []

        def advance(detail: str, done: int, total: int) -> None:
            if not self._console.is_terminal:
                return
            if not task:
                task.append(bars.add_task(detail, total=total))
                bars.start()
            bars.update(task[0], completed=done)

        try:
            with self._console.status(f"  {what} ...") if self._console.is_terminal else contextlib.nullcontext():
                with step(what):
                    yield advance
        finally:
            if task:
                bars.stop()
        self._console.print(f"  {what}", f"{time.perf_counter() - start:6.1f} s")
