from __future__ import annotations

import json
from pathlib import Path

import pytest
from bundles import some_measured, some_model, some_plan
from sshd import HOST, Sshd

from costmodel.factors import Factors
from costmodel.fit import Point, predict_point
from costmodel.schema.measured import MeasuredPoint, MeasuredStep
from hetero_sd.cli import main
from hetero_sd.on_board.calibrate import SECONDS
from hetero_sd.predict.inputs import load_specs
from hetero_sd.runtime.manifest import write_manifest
from targets.boards import load_board

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "translation"
TRUE = Factors(bandwidth=0.8, bandwidth_one_thread=0.8, compute=1.6, serial=1.4, step_cycles=200_000.0)
LAUNCHER = f"""\
import os, shutil, sys
if sys.argv[1] != "--calibrate" or sys.argv[3] != "--threads" or sys.argv[5:] != ["--calibrate-seconds", "{SECONDS}"]:
    sys.exit("asked for something else: " + repr(sys.argv))
print("pass 1", file=sys.stderr)
if os.path.exists("busy"):
    sys.exit("run.py: error: the board is busy")
shutil.copy("measured-" + sys.argv[4], sys.argv[2])
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose run.py takes as long as an rpi5 of the cost model with known factors."""
    folder, board = tmp_path_factory.mktemp("calibrate") / "bundle", load_board("rpi5")
    folder.mkdir()
    (folder / "run.py").write_text(LAUNCHER)
    spec = load_specs(EXAMPLE / "draft/model.onnx", ["float32"], 2)[0]
    for threads in (1, 4):
        points = []
        for n, chunk in ((1, 0), (2, 0), (4, 0), (8, 0), (32, 32), (64, 32)):
            for past in (0, 16, 60):
                s = predict_point(board, TRUE, Point(spec, "a76", threads, n, past, 1.0, 6.0 * threads, chunk=chunk))
                step = MeasuredStep("target", "cpu", n, past, chunk)
                timing = {"seconds": s, "low": s, "high": s, "samples": 8, "stable": True}
                points.append(MeasuredPoint.of(step, bandwidth_gb_per_s=6.0 * threads, **timing))
        rates = {"bandwidth_gb_per_s": 6.0 * threads, "bandwidth_one_thread_gb_per_s": 6.0}
        found = some_measured(tuple(points), bandwidths=(), gpu=None, threads=threads, cpus=(0, 1, 2, 3), **rates)
        (folder / f"measured-{threads}").write_text(json.dumps(found.to_json()))
    for name in (models := {"target": some_model(context=64)})["target"].files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    write_manifest(folder, models, some_plan(threads=4, cluster="a76"), board=board.to_json())
    return folder


def test_a_board_is_measured_and_the_model_fitted(
    board: Sshd, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my.toml"
    given = ["calibrate", str(bundle), "--on", HOST, "--target", str(EXAMPLE / "draft/model.onnx"), "--out", str(out)]
    assert main(given) == 0
    shown = capfd.readouterr()
    assert "held out : " in shown.out
    assert "time steps there with 4 threads" in shown.err
    fitted = load_board(str(out))
    assert fitted.cluster("a76").bandwidth_one_thread_gb_per_s == 6.0
    assert load_board("rpi5").cluster("a76").bandwidth_one_thread_gb_per_s != 6.0  # the negative control
    assert fitted.factors["compute"] == pytest.approx(TRUE.compute, rel=0.1)

    (board.home / "hetero_sd/bundle/busy").touch()
    before = out.read_text()
    assert main(given) == 2
    err = capfd.readouterr().err.splitlines()
    assert err[-1] == "hetero-sd: error: board: run.py: error: the board is busy"
    assert sum("error" in line for line in err) == 1
    assert out.read_text() == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--on", "b", "--target", "x.onnx", "--out", "x.toml"], "--on needs one bundle: give its folder"),
        (["B", "--on", "b", "--target", "x.onnx"], "--on needs --target TARGET and --out BOARD.toml"),
        (
            ["B", "--on", "b", "--target", "x", "--draft", "x", "--out", "x.toml"],
            "give what it was compiled from with --target TARGET.onnx, without --draft",
        ),
        (["B", "--on", "b", "--target", "x", "--draft", "early-exit:1", "--out", "x.toml"], ", without --draft"),
        (["none", "--on", "b", "--target", "x.onnx", "--out", "x.toml"], "none/manifest.json"),
        (["F.json"], "--board NAME|PATH.toml is missing"),
    ],
)
def test_mistakes_end_in_one_line(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", *(str(bundle) if word == "B" else word for word in given)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
