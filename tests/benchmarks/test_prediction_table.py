"""What benchmarks/prediction.py does with files that an older version measured."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from costmodel.factors import Factors
from costmodel.processor import CpuSlice
from costmodel.roofline import Roofline
from costmodel.schema.measured import MeasuredStep
from costmodel.standard_decoder import Blocks, standard_decoder
from targets.boards import load_board

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


def write(folder: Path, points: list[dict[str, Any]], finished: bool = True) -> Path:
    path = folder / "steps-1-0.json"
    samples = [[1e-3, 9.0, 9.0]] * 12
    points = [{**point, "samples": samples} for point in points]
    path.write_text(json.dumps({"processor": "1", "passes": 12, "points": points, "finished": finished}))
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
    assert not prediction.complete(write(tmp_path, [NOW], finished=False), 12)  # it is gone on with
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


SIZES = {"e1": 1, "e6": 8}  # layers


def pair_file(folder: Path, mode: str, round_s: dict[int, float]) -> Path:
    """Twelve turns of twelve rounds: every second one drafts where drafts are n-grams; half of the drafts hold."""
    runs = []
    for gamma, seconds in round_s.items():
        drafted = [gamma * (mode != "n-gram" or i % 2) for i in range(12)]
        accepted = [d * (i % 4 == 1) for i, d in enumerate(drafted)]
        one = {"drafted": drafted, "accepted": accepted, "total_s": [seconds] * 12}
        one |= {"draft_s": [0.0] * 12, "verify_s": [0.9 * seconds] * 12}
        runs += [{"gamma": gamma, "turn": i, **one} for i in range(12)]
    path = folder / "rounds.json"
    path.write_text(json.dumps({"passes": 12, "bandwidth_gb_per_s": [10.0], "runs": runs}))
    return path


@pytest.mark.parametrize("mode", ["sequential", "overlapped", "n-gram"])
def test_rounds_of_each_mode_are_priced_by_its_formula(benchmark: Any, tmp_path: Path, mode: str) -> None:
    """Beside the formula by hand; the choice is right where it is measured best, a tie where it is predicted near."""
    import prediction_rounds as rounds
    from prediction_cases import Pair

    shapes = {name: standard_decoder(name, Blocks(256, 4, 2, 64, 704, 2000), [0] * n, tied=True)
              for name, n in SIZES.items()}  # fmt: skip
    pair = Pair("n-grams" if mode == "n-gram" else "e1", "e6", "cpu1", "cpu0", mode=mode)
    measured = rounds.MeasuredPair(pair, [pair_file(tmp_path, mode, {0: 1e-3, 3: 1.5e-3})])
    assert measured.match == (0.5 if mode == "n-gram" else 1.0)
    board = load_board("host", measure=False, calibrated=False)
    priced = rounds.PricedPair(measured, board, Factors(), shapes)
    plain, drafts = priced.round(0), priced.round(3)
    target = Roofline(board, Factors()).step(shapes["e6"], CpuSlice(((board.clusters[0], 1),)), 1, 64)
    assert plain.time_s == pytest.approx(target.total_s + Roofline(board, Factors()).round_overhead_s(), rel=0.5)
    if mode == "n-gram":
        loop_s = priced._roofline.round_overhead_s()
        costs = rounds.RoundCosts(0.0, 0.0, lambda n: priced._load("target", n, False).total_s, loop_s)
        whole = rounds.sequential_round(measured.alpha, 3, costs)
        assert drafts.time_s == pytest.approx((whole.time_s + plain.time_s) / 2)
    elif mode == "overlapped":
        alone = rounds.PricedPair(
            rounds.MeasuredPair(replace(pair, mode="sequential"), [tmp_path / "rounds.json"]), board, Factors(), shapes
        )
        assert drafts.tokens == alone.round(3).tokens
        assert drafts.time_s != alone.round(3).time_s  # the negative control: another formula
    rows = rounds.pair_rows(measured, board, Factors(), shapes)
    assert [row["gamma"] for row in rows] == [0, 3]
    assert {row["mode"] for row in rows} == {mode}
    assert all(row["stable"] for row in rows)
    assert not measured.stable(3, 13)


def test_a_stopped_process_goes_on_where_its_file_ends(benchmark: Any, tmp_path: Path) -> None:
    import prediction_worker

    path = write(tmp_path, [NOW], finished=False)
    assert prediction_worker._before(path)["passes"] == 12
    assert prediction_worker._before(write(tmp_path, [OLD["flat"]])) == {}  # measured again
    assert prediction_worker._before(tmp_path / "steps-2-0.json") == {}


def test_rounds_of_calibration_say_what_caches_keep(benchmark: Any) -> None:
    """The larger target loses 100 us more than the smaller one, whose loss is of the turns alone."""
    from prediction_cases import Pair

    from costmodel.fit import Point
    from costmodel.processor import cache_bytes
    from costmodel.roofline import dram_bytes
    from costmodel.work import step_units

    _, table = benchmark
    board = load_board("host", measure=False, calibrated=False)
    caches = cache_bytes(CpuSlice(((board.clusters[0], 1),)))
    layers = 2 + int(caches / 2e6)  # of 3.4 MB each: more than the caches hold
    shapes = {name: standard_decoder(name, Blocks(256, 4, 2, 64, 768, 2000), [0] * n, tied=True)
              for name, n in (("c1", 1), ("c3", 1), ("c20d", 1), ("c20", layers))}  # fmt: skip
    size = dram_bytes(step_units(shapes["c1"], 2, 16))
    points = [Point(shapes["c1"], "cpu", 1, 2, 16, size / 80e9, 40.0)]

    def pair(draft: str, target: str, verify_s: float) -> Any:
        found = table.MeasuredPair.__new__(table.MeasuredPair)
        found.pair, found.turns_s = Pair(draft, target, "1", "1", fitted=True), {"verify_s": verify_s}
        return found

    both = [pair("c1", "c3", 10e-6), pair("c20d", "c20", 110e-6)]
    assert table.kept_share(board, points, both, shapes) == pytest.approx(100e-6 * 80e9 / caches, rel=0.01)
    assert table.kept_share(board, points, both[:1], shapes) == Factors().cache_kept  # it fits the caches
