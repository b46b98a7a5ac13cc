"""What benchmarks/prediction.py does with files that an older version measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from costmodel.schema.measured import MeasuredStep
from costmodel.standard_decoder import Blocks, standard_decoder

ROOT = Path(__file__).resolve().parents[2]
NOW = {"step": MeasuredStep("c1", "cpu", 2, 16, 0).to_json()}
OLD = {
    "flat": {"model": "c1", "n": 2, "past": 16, "kind": "step"},
    "without processor": {"step": {"model": "c1", "n": 2, "past": 16, "chunk": 0}},
    "of an unknown processor": {"step": {**NOW["step"], "processor": "npu"}},
    "of a model that is gone": {"step": {**NOW["step"], "model": "c2"}},
    "of another shape": {"step": 3},
}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the benchmark, which lie in no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import prediction
    import prediction_table

    yield prediction, prediction_table
    for name in [name for name in sys.modules if name.startswith("prediction")]:
        del sys.modules[name]


def write(folder: Path, points: list[dict[str, Any]]) -> Path:
    path = folder / "steps-1-0.json"
    samples = [[1e-3, 9.0, 9.0]] * 12
    points = [{**point, "samples": samples} for point in points]
    path.write_text(json.dumps({"processor": "1", "passes": 12, "points": points}))
    return path


@pytest.mark.parametrize("old", OLD)
def test_points_of_an_older_version_are_refused_in_one_line(benchmark: Any, tmp_path: Path, old: str) -> None:
    prediction, table = benchmark
    path = write(tmp_path, [NOW, OLD[old]])
    with pytest.raises(
        table.OldFileError, match=r"steps-1-0\.json: another version wrote it .*: measure again"
    ) as caught:
        table.read_points(tmp_path, {})
    assert "\n" not in str(caught.value)
    assert not prediction.complete(path, 12)  # so that measuring replaces it


def test_points_of_this_version_are_read(benchmark: Any, tmp_path: Path) -> None:
    prediction, table = benchmark
    path = write(tmp_path, [NOW])
    spec = standard_decoder("c1", Blocks(128, 2, 2, 64, 384, 1500), [0, 0], tied=True)
    (point,) = table.read_points(tmp_path, {"c1": spec})
    assert (point.spec, point.cluster, point.threads, point.n, point.past) == (spec, "cpu", 1, 2, 16)
    assert (point.seconds, point.bandwidth_gb_per_s) == (1e-3, 9.0)
    assert prediction.complete(path, 12)
    assert not prediction.complete(path, 13)
    assert not prediction.complete(tmp_path / "steps-2-0.json", 1)


def test_a_report_of_old_points_ends_in_one_line(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prediction, _ = benchmark
    (tmp_path / "measured").mkdir()
    write(tmp_path / "measured", [OLD["flat"]])
    monkeypatch.setattr(prediction, "shapes_of", lambda folder: {})
    monkeypatch.setattr(sys, "argv", ["prediction.py", "--only", "report", "--folder", str(tmp_path)])
    assert prediction.main() == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("prediction.py: error: ")
    assert (shown.err.count("\n"), shown.out) == (1, "")
