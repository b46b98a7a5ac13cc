from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import some_measured

from costmodel.decoder import DecoderSpec
from costmodel.factors import Factors
from costmodel.fit import Point, predict_point
from costmodel.schema.measured import Measured, MeasuredPoint, MeasuredStep
from hetero_sd.calibrate import CalibrateRequest, specs_of, to_toml
from hetero_sd.cli import main
from hetero_sd.predict.config_json import specs_from_config
from hetero_sd.quantisation.recipes import facts_of
from passes.onnx.quantise.recipe import Recipe, block_format
from passes.synthetic import LlamaShape, write_llama
from targets.boards import board_names, load_board
from targets.errors import UserError

CONFIG = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
    "num_key_value_heads": 3, "num_hidden_layers": 30, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in board_names() if not n.startswith("host")])
def test_a_board_file_round_trips(name: str, tmp_path: Path) -> None:
    board = load_board(name)
    path = tmp_path / "board.toml"
    path.write_text(to_toml(board))
    again = load_board(path)
    assert again == board
    assert again.provenance == board.provenance


def measured(tmp_path: Path, change: Any = None) -> list[str]:
    """A file as run.py --calibrate writes it, from a scripted machine."""
    config = tmp_path / "target.json"
    config.write_text(json.dumps(CONFIG))
    (shape,) = specs_from_config(config, ["float32"])
    board, factors, points = load_board("rpi5"), Factors(bandwidth=0.8, compute=1.3), []
    for n in (1, 2, 4, 5, 8):
        for past in (16, 128, 256, 480):
            point = Point(shape, "a76", 4, n, past, 1.0, 9.0)
            point = replace(point, seconds=predict_point(board, factors, point))
            step, s = MeasuredStep("target", "cpu", n, past, 0), point.seconds
            points.append(
                MeasuredPoint.of(step, seconds=s, low=s, high=s, bandwidth_gb_per_s=9.0, samples=8, stable=True)
            )
    rates = {"bandwidth_gb_per_s": 9.0, "bandwidth_one_thread_gb_per_s": 7.0}
    data = some_measured(tuple(points), bandwidths=(), gpu=None, **rates).to_json()
    if change:
        change(data)
    (tmp_path / "measured.json").write_text(json.dumps(data))
    return [str(tmp_path / "measured.json"), "--target", str(config), "--board", "rpi5"]


@pytest.mark.slow
def test_the_board_file_says_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.toml"
    assert main(["calibrate", *measured(tmp_path), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "held out : 8 points, error 0." in shown
    board = load_board(out)
    assert board.clusters[0].bandwidth_all_threads_gb_per_s == 9.0
    assert board.provenance["clusters.a76.bandwidth_all_threads_gb_per_s"].kind == "measured"
    factors = json.loads((tmp_path / "mine.factors.json").read_text())
    assert factors["held_out_n"] == [2, 5]
    assert factors["error"]["held_out"]["median"] < 0.01
    predicted = ["predict", str(tmp_path / "target.json"), "--board", str(out), "--weights", "float32"]
    assert main([*predicted, "--factors", str(tmp_path / "mine.factors.json")]) == 0
    given = capsys.readouterr().out
    assert main(predicted) == 0  # the board file carries them
    from_board = capsys.readouterr().out
    assert from_board.splitlines()[0] == given.splitlines()[0]
    assert board.factors["bandwidth"] == pytest.approx(0.8, rel=0.02)
    assert "held out" in board.provenance["factors.bandwidth"].source
    assert "gpu_compute" not in board.factors  # nobody measured it
    text = out.read_text()
    out.write_text(text[: text.index("[factors]")])
    assert main(predicted) == 0  # the negative control
    assert capsys.readouterr().out.splitlines()[0] != given.splitlines()[0]
    out.write_text(text.replace("[factors]\nbandwidth", "[factors]\nbandwidht"))
    assert main(predicted) == 2
    assert "unknown factor 'bandwidht'" in capsys.readouterr().err


def weights(spec: DecoderSpec) -> set[str]:
    return {op.format.dtype for op in spec.operators if op.kind == "linear"}


def test_weights_that_compile_quantised_are_priced_as_they_are_stored(tmp_path: Path) -> None:
    export = tmp_path / "model.onnx"
    write_llama(export, LlamaShape(layers=1, hidden=64, heads=4, kv_heads=2, ffn=96, vocab=64), "float16")
    recipe = Recipe(block_format("int4", 32), block_format("int8", 32), block_format("int8", 32))
    timed = some_measured(quantised={"target": facts_of(recipe, export)})
    assert Measured.from_json(timed.to_json()) == timed
    request = CalibrateRequest((tmp_path / "a.json", tmp_path / "b.json"), export, "rpi5")
    spec = specs_of(request, [timed, timed])["target"]
    assert weights(spec) == {"int4", "int8"}
    plain = specs_of(request, [some_measured(), some_measured()])["target"]
    assert weights(plain) == {"float16"}  # the negative control
    with pytest.raises(UserError, match=r"b.json: the weights are quantised otherwise than in .*a.json"):
        specs_of(request, [timed, some_measured()])
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UserError, match=r"config.json"):
        specs_of(CalibrateRequest(request.measured, tmp_path / "config.json", "rpi5"), [timed, timed])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=1), "not as run.py --calibrate of this version writes it: format is 1"),
        (lambda d: d["points"][0].pop("n"), "points.0.n is missing"),
        (lambda d: d["points"][0].update(model="draft"), "point 0 is of the draft: give it with --draft"),
        (lambda d: d["points"][1].update(seconds="fast"), "points.1.seconds is 'fast', not a number"),
        (lambda d: d["points"][1].update(seconds=-1.0), "points.1.seconds is -1.0, not a number above 0"),
        (lambda d: d["points"][1].update(bandwidth_gb_per_s=0), "points.1.bandwidth_gb_per_s is 0, not a number above"),
        (lambda d: d["points"][1].update(chunk=3), "points.1: has impossible numbers: 1 tokens in chunks of 3"),
        *(
            (lambda d, e=entry: d.update(bandwidths=[e]), f"bandwidths.0{said}")
            for entry, said in (
                ({"readers": [[0]], "gb_per_s": []}, ".gb_per_s is [], which does not have 1 to 64 entries"),
                ({"readers": [[0]], "gb_per_s": [1.0, 2.0]}, ": there are 2 rates of 1 readers"),
                ({"readers": [[0]], "gb_per_s": [-1.0]}, ".gb_per_s.0 is -1.0, not a number above 0"),
                ({"readers": ["npu"], "gb_per_s": [1.0]}, ".readers.0 is 'npu', none of gpu"),
                ({"gb_per_s": [1.0]}, ".readers is missing"),
            )
        ),
        *(
            (lambda d, c=cost: d.update(region_cost_s=c), "region_cost_s")
            for cost in ([1], 3, {"x": 1.0}, {"2": "x"}, {"2": -1.0}, {"2": float("nan")}, {"1": 1e-6}, None)
        ),
        (lambda d: d.update(points=d["points"][:3]), "too few to fit"),
        (lambda d: d.update(bandwidth_gb_per_s=5000.0), "above dram.peak_bandwidth_gb_per_s"),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    out = tmp_path / "mine.toml"
    arguments = measured(tmp_path, change)
    if "above dram" in message:  # a peak from a data sheet is not moved
        text = to_toml(load_board("rpi5")).replace(
            '{ value = 17.0, kind = "assumed"', '{ value = 17.0, kind = "datasheet"'
        )
        (tmp_path / "board.toml").write_text(text)
        arguments[-1] = str(tmp_path / "board.toml")
    assert main(["calibrate", *arguments, "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not out.exists()
