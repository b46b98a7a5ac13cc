"""Compare with a golden file; `pytest --update-golden` writes what was found instead, to be reviewed as a diff."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


class Golden:
    """Compares text with the files of tests/golden, or rewrites them."""

    def __init__(self, update: bool, folder: Path = GOLDEN) -> None:
        self.update, self.folder = update, folder

    def __call__(self, name: str, text: str) -> None:
        """Fail with a unified diff unless `text` is the content of the golden file `name`."""
        path = self.folder / name
        if self.update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            return
        if not path.exists():
            pytest.fail(f"there is no golden file {name}: run this test with --update-golden")
        expected = path.read_text("utf-8")
        if text == expected:
            return
        lines = (expected.splitlines(keepends=True), text.splitlines(keepends=True))
        diff = "".join(
            line if line.endswith("\n") else line + "\n\\ no newline at the end\n"
            for line in difflib.unified_diff(*lines, f"golden/{name}", "found")
        )
        pytest.fail(f"{diff}if this is what it should be: run this test with --update-golden, then look at git diff")
