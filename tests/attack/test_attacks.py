"""The attacks of figures.py at lengths that `make deep` has time for; what each must find is planted once.

The fuzzer of the readers has its ten minutes; this file is begun first.
"""

from __future__ import annotations

from typing import Any

import pytest
from requirements import need

from tests.attack import bundles, faults, figures, first_runs, kills, onnx_files, readers, templates
from tests.attack.figure import Figures
from tests.attack.workers import ROOT

pytestmark = pytest.mark.deep


def held(found: Figures) -> None:
    print(found.text())
    assert found.failures == [], found.text()


def test_kills() -> None:
    found = kills.attack(4, 0, 1)
    held(found)
    assert found.counts["killed"] > 0


def test_kills_of_a_first_run(opencl: Any) -> None:
    found = first_runs.attack(8, 0, 1)
    held(found)
    assert found.counts["killed"] > 0


def test_faults() -> None:
    found = faults.attack(4, 1, 1)
    held(found)
    assert sum(found.counts.values()) == 8


def test_bundles() -> None:
    found = bundles.attack(40, 0, 1)
    held(found)
    assert found.counts["manifest ended 2"] > 0


def test_templates() -> None:
    found = templates.attack(100, 0, 1, seconds=0.1, most_bytes=1 << 20)
    held(found)
    assert found.counts["refused"] == len(templates.hostile()) == templates.FULL


def test_a_template_that_ends_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "hostile", lambda: ["{{ messages[0].content }}"])
    assert len(templates.attack(1, 0, 1).failures) == 1


def test_an_attack_of_nothing_is_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["figures.py", "templates", "--first", str(templates.FULL)])
    assert figures.main() == 1
    assert "nothing was attacked" in capsys.readouterr().out


def test_readers() -> None:
    need(readers.atheris_is_there(), readers.NO_ATHERIS)
    held(readers.attack(readers.FULL, 0, 1))


def test_a_planted_defect_of_a_reader_is_found() -> None:
    need(readers.atheris_is_there(), readers.NO_ATHERIS)
    assert len(readers.attack(0, 0, 1, plant=True).failures) == len(readers.PYTHON) + 1


def test_the_lengths_are_those_that_security_md_states() -> None:
    stated = " ".join((ROOT / "SECURITY.md").read_text("utf-8").split())
    assert f"{onnx_files.FULL:,} damaged ONNX files, {bundles.FULL:,} damaged bundles, " in stated
    assert f"{kills.FULL:,} `kill -9` of a compile and as many of a first run" in stated
    assert first_runs.FULL == kills.FULL
    assert f"{templates.FULL} hostile templates, every failing write" in stated
    assert (readers.FULL, "ten minutes of a coverage-guided fuzzer" in stated) == (600, True)
    assert set(figures.KINDS) == {"onnx", "bundles", "kills", "first-runs", "templates", "faults", "readers"}
    assert faults.FULL > 100_000  # more than a compile can be denied
