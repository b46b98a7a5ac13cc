"""Ten thousand damaged exports: each ends in one line or answers as onnxruntime does, in bounded time and memory."""

from __future__ import annotations

import pytest

from tests.passes.onnx.fuzz_campaign import campaign, report, share

FILES, FEW = 10_000, 40


@pytest.mark.deep
def test_damaged_files_end_in_one_line_or_in_the_right_answers() -> None:
    total, failures = campaign(0, FILES, jobs=2)
    assert not failures, report(failures)
    assert total["imported"] + total["refused"] == FILES
    assert min(total["imported"], total["refused"]) > FILES / 10, total  # damage that shows, and damage that does not
    assert total["equal"] >= 2000, total
    print(total)


@pytest.mark.slow
def test_a_few_damaged_files() -> None:
    counts, failures = share(0, FEW)
    assert not failures, report(failures)
    assert counts["imported"] + counts["refused"] == FEW


@pytest.mark.parametrize(
    ("defect", "shown", "count"),
    [
        ("KeyError", "KeyError", 20),
        ("memory", "MiB for a file", 10),
        ("exit", "ended with", 5),  # each exit: a start
        ("answer", "another answer", 20),
    ],
)
@pytest.mark.slow
def test_a_planted_defect_is_found(defect: str, shown: str, count: int) -> None:
    _, failures = share(0, count, "--plant", defect)
    assert failures
    assert all(line.startswith("seed ") for line in failures)
    assert any(shown in line for line in failures), failures[0]
