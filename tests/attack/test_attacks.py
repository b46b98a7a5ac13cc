"""The attacks of figures.py at lengths that `make deep` has time for; what each must find is planted once.

The fuzzer of the readers has its ten minutes; this file is begun first.
"""

from __future__ import annotations

from typing import Any

import pytest
from requirements import need

from tests.attack import bundles, faults, first_runs, kills, readers, templates
from tests.attack.figure import Figures

pytestmark = pytest.mark.deep


def held(figures: Figures) -> None:
    print(figures.text())
    assert figures.failures == [], figures.text()


def test_kills() -> None:
    figures = kills.attack(4, 0, 1)
    held(figures)
    assert figures.counts["killed"] > 0


def test_kills_of_a_first_run(opencl: Any) -> None:
    figures = first_runs.attack(8, 0, 1)
    held(figures)
    assert figures.counts["killed"] > 0


def test_faults() -> None:
    figures = faults.attack(4, 1, 1)
    held(figures)
    assert sum(figures.counts.values()) == 8


def test_bundles() -> None:
    figures = bundles.attack(40, 0, 1)
    held(figures)
    assert figures.counts["manifest ended 2"] > 0


def test_templates() -> None:
    figures = templates.attack(100, 0, 1, seconds=0.1, most_bytes=1 << 20)
    held(figures)
    assert figures.counts["refused"] == len(templates.hostile()) == templates.FULL


def test_a_template_that_ends_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "hostile", lambda: ["{{ messages[0].content }}"])
    assert len(templates.attack(1, 0, 1).failures) == 1


def test_readers() -> None:
    need(readers.atheris_is_there(), readers.NO_ATHERIS)
    held(readers.attack(readers.FULL, 0, 1))


def test_a_planted_defect_of_a_reader_is_found() -> None:
    need(readers.atheris_is_there(), readers.NO_ATHERIS)
    assert len(readers.attack(0, 0, 1, plant=True).failures) == len(readers.PYTHON) + 1
