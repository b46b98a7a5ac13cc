"""What a prediction says of the GPU's numbers agrees with where they come from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import some_measured

from costmodel.question import factors_of
from costmodel.schema.measured import MeasuredBandwidth
from costmodel.unmeasured_gpu import WHY
from hetero_sd.calibrated_board import with_gpu
from hetero_sd.predict.html import html_report
from hetero_sd.predict.predict import Prediction, answer
from hetero_sd.predict.request import PredictRequest
from hetero_sd.predict.text import POTENTIAL, predict_json, predict_text
from targets.boards import load_board
from targets.device import Board
from targets.read_board import board_from_json

CONFIG = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
    "num_key_value_heads": 8, "num_hidden_layers": 16, "vocab_size": 128256, "tie_word_embeddings": True,
}  # fmt: skip
UNMEASURED = "no GPU kernel was measured on this board"


def fast_gpu(**factors: dict[str, Any]) -> Board:
    """A board whose GPU is the fastest processor, with factors as a calibration writes them."""
    data = load_board("rk3588").to_json()
    data["dram"]["peak_bandwidth_gb_per_s"]["value"] = 1000.0
    data["gpu"]["bandwidth_gb_per_s"]["value"], data["gpu"]["fp32_gflops"]["value"] = 900.0, 50_000.0
    data["gpu"]["launch_overhead_s"]["value"] = 1e-9
    return board_from_json(data | {"factors": factors}, "test")


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))

    def on(board: Board, **given: float) -> Prediction:
        factors = replace(factors_of(board), **given)
        monkeypatch.setattr("hetero_sd.predict.predict.load_board", lambda name: board)
        monkeypatch.setattr("hetero_sd.predict.predict.read_factors", lambda path, board: factors)
        return answer(PredictRequest(tmp_path / "config.json", "a board"))

    return on


def fitted(value: float, kind: str = "measured") -> dict[str, Any]:
    return {"value": value, "kind": kind, "source": "fitted to 12 steps of run.py --calibrate"}


def said(p: Prediction, leads: bool = True) -> list[str]:
    """Text, JSON and page, each on one line."""
    assert ("on gpu" in " ".join(predict_text(p).splitlines()[:2])) == leads
    return [" ".join(made.split()).replace("&#39;", "'") for made in (predict_text(p), predict_json(p), html_report(p))]


@pytest.mark.slow
def test_an_unmeasured_gpu_is_potential(predicted: Any) -> None:
    """However fast it is predicted to be; the command asks for the cores, and the note says how to ask for the GPU."""
    for board in (fast_gpu(), fast_gpu(gpu_bandwidth=fitted(0.6, "assumed"))):
        p = predicted(board)
        assert p.potential[0].tokens_per_s > 10 * p.decision.best.tokens_per_s
        assert p.potential_intervals[0].low < p.potential[0].tokens_per_s < p.potential_intervals[0].high
        assert "--place" not in p.command  # compile decides by the same rule
        text, data, page = said(p, leads=False)
        for made in (text, data, page):
            assert WHY in made
        assert "(--place target=gpu)" in text
        assert text.index("T(n)") > text.index(POTENTIAL) > text.index("target-only")
        assert UNMEASURED in page


def test_after_a_calibration_its_kernels_were_measured(predicted: Any) -> None:
    board = fast_gpu(gpu_bandwidth=fitted(0.7), gpu_compute=fitted(0.4))
    for text in said(predicted(board)):
        assert UNMEASURED not in text
        assert "rest on kernels measured on this board: fitted to 12 steps of run.py --calibrate" in text
        assert WHY not in text


def test_a_calibration_that_ran_no_model_on_the_gpu(predicted: Any) -> None:
    board = with_gpu(fast_gpu(), [some_measured(bandwidths=(MeasuredBandwidth(("gpu",), (900.0,)),))])
    text, data, page = said(predicted(board), leads=False)
    for made in (text, data, page):
        assert UNMEASURED not in made
        assert WHY in made
    assert "its bandwidth and its launches, measured on this board; no kernel of a model was measured on it" in page


def test_factors_of_a_file(predicted: Any) -> None:
    for text in said(predicted(fast_gpu(), gpu_compute=0.7)):
        assert UNMEASURED not in text
        assert "rest on the factors that were given" in text


def test_a_chart_without_a_gpu_says_nothing_of_it(predicted: Any) -> None:
    assert "GPU" not in html_report(predicted(load_board("rpi5"))).split("row tiles.")[1].split("</p>")[0]
