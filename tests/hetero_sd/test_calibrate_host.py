from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import some_measured

from costmodel.factors import Factors
from costmodel.fit import Point, predict_point
from costmodel.schema.measured import MeasuredPoint, MeasuredStep
from hetero_sd import calibrate_host
from hetero_sd.calibrate_host import HostRequest
from hetero_sd.cli import main
from hetero_sd.compile.compile import compile_bundle
from hetero_sd.compile.request import CompileRequest
from hetero_sd.predict.inputs import load_specs
from hetero_sd.progress import Progress
from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.model.model import load_models
from targets.boards import load_board
from targets.host.calibrated import calibrated_path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "translation"
TRUE = Factors(bandwidth=0.8, bandwidth_one_thread=0.8, compute=1.6, serial=1.4, step_cycles=200_000.0)
LOOP_S = 12e-6


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's drafter alone, compiled for this machine before anything was measured."""
    out = tmp_path_factory.mktemp("host") / "bundle"
    request = CompileRequest(EXAMPLE / "draft/model.onnx", EXAMPLE, "host", out, context=128)
    compile_bundle(request, Progress(quiet=True))
    return out


def scripted(stable: bool = True) -> Callable[[Path, Path, int, int], None]:
    """A machine whose steps take what the cost model says with known factors."""
    board = load_board("host", measure=False, calibrated=False)

    def measure(bundle: Path, out: Path, threads: int, seconds: int) -> None:
        assert (bundle / "run.py").is_file()
        assert seconds * min(2, board.clusters[0].count) <= calibrate_host.SECONDS
        rate, points = 6.0 * threads, []
        for role in Bundle(bundle).models:
            own = bundle.parent / role / "model.onnx"
            spec = load_specs(own if own.is_file() else EXAMPLE / "draft/model.onnx", ["float32"], 2)[0]
            for n, chunk in ((1, 0), (2, 0), (4, 0), (8, 0), (32, 32), (64, 32)):
                for past in (0, 16, 60):
                    point = Point(spec, "cpu", threads, n, past, 1.0, rate, chunk=chunk)
                    s = predict_point(board, TRUE, point)
                    step = MeasuredStep(role, "cpu", n, past, chunk)
                    timing = {"seconds": s, "low": s, "high": s, "samples": 8, "stable": stable}
                    points.append(MeasuredPoint.of(step, bandwidth_gb_per_s=rate, **timing))
        rates = {"bandwidth_gb_per_s": rate, "bandwidth_one_thread_gb_per_s": 6.0}
        cpus = {"threads": threads, "cpus": tuple(board.clusters[0].cpu_ids), "loop_s": LOOP_S}
        found = some_measured(tuple(points), bandwidths=(), gpu=None, **rates, **cpus)
        out.write_text(json.dumps(found.to_json()))

    return measure


@pytest.mark.slow
def test_a_bundle_measures_this_machine_and_is_planned_again(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(calibrate_host, "_run", scripted())
    before = Bundle(bundle).plan
    assert before is not None
    given = ["calibrate", str(bundle), "--board", "host", "--target", str(EXAMPLE / "draft/model.onnx")]
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "held out : " in shown
    assert "busy" not in shown
    assert f"written: {calibrated_path()}, which --board host takes from now on" in shown
    board = load_board("host", measure=False)
    assert board.clusters[0].bandwidth_one_thread_gb_per_s == 6.0
    loop_cycles = LOOP_S * board.clusters[0].frequency_ghz * 1e9
    assert board.factors["round_cycles"] == pytest.approx(loop_cycles, rel=1e-4)

    after = Bundle(bundle).plan
    assert after is not None
    Bundle(bundle).verify_all()
    assert after.target_widths == before.target_widths  # nothing is compiled again
    spec = load_specs(EXAMPLE / "draft/model.onnx", ["float32"], 2)[0]
    whole = Point(spec, "cpu", after.threads, 4, after.prediction.context, 1.0, 6.0 * after.threads)
    true_s = predict_point(load_board("host", measure=False, calibrated=False), TRUE, whole)
    assert after.prediction.verify_step_s[4] == pytest.approx(true_s, rel=0.05)
    assert before.prediction.verify_step_s[4] != pytest.approx(true_s, rel=0.2)  # the negative control
    assert after.prediction.dispatch_s == pytest.approx(LOOP_S, rel=1e-3)


@pytest.mark.slow
def test_a_busy_machine_is_said_to_be_one(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(calibrate_host, "_run", scripted(stable=False))
    given = ["calibrate", str(bundle), "--board", "host", "--target", str(EXAMPLE / "draft/model.onnx")]
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "this machine is busy" in shown
    assert "held out : " in shown


@pytest.mark.slow
def test_a_small_pair_is_compiled_where_no_bundle_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its models run here; their times are scripted."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    seen: list[int] = []

    def measure(bundle: Path, out: Path, threads: int, seconds: int) -> None:
        models = load_models(Bundle(bundle), False)
        assert models.draft is not None
        seen.append(models.target.extend([1] * 40, 0) + models.draft.extend([1, 2], 0))
        scripted()(bundle, out, threads, seconds)

    done = calibrate_host.calibrate_host(HostRequest(), Progress(quiet=True), measure)
    assert seen
    assert done.calibrated.fit.error(True)[0] < 0.05
    assert done.plan is None
    assert load_board("host", measure=False).factors


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--board", "rpi5"],
            "to measure rpi5, give what run.py --calibrate wrote there, or --on USER@BOARD",
        ),
        (["--board", "host", "--target", "x.onnx"], "give one bundle with its --target and --draft"),
        (["F.json", "--board", "rpi5"], "files of run.py --calibrate need --target TARGET and --out BOARD.toml"),
        (["--board", "host", "--out", "x.txt"], "a board file's name ends in .toml"),
    ],
)
def test_mistakes_end_in_one_line(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", *given]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_measurement_that_fails_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    given = ["calibrate", str(tmp_path / "empty"), "--board", "host", "--out", str(tmp_path / "b.toml")]
    assert main(given) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "b.toml").exists()
