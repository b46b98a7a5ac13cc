"""Predictions against what others measured on boards: `predict --check`, its files and its page."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from golden import Golden

from costmodel.engine import GENERIC, INTERLEAVED, KERNELS, OURS, ROWS, WIDENING, GenericRoofline, kernels_of
from costmodel.processor import CpuSlice, GpuSlice, all_cores
from costmodel.roofline import Roofline
from costmodel.work import step_ops
from hetero_sd.cli import main
from hetero_sd.predict.check import check_boards, check_one, contradictions, kinds, missed
from hetero_sd.predict.known_models import CONFIGS, known_model
from hetero_sd.predict.published import boards_with_measurements, published_on, read_published
from targets.boards import load_board
from targets.errors import UserError


def test_text_as_people_read_it(capsys: pytest.CaptureFixture[str], golden: Golden) -> None:
    assert main(["predict", "--check", "--board", "rpi5", "--engine", GENERIC.name]) == 0
    golden("hetero_sd/predict_check_rpi5.txt", capsys.readouterr().out)


def test_generic_kernels_explain_the_pi_5() -> None:
    """Memory and threads are right: decode within 15 % with four threads, within 20 % with any (issue 12)."""
    rows = [row for row in check_boards(["rpi5"], GENERIC.name) if row.published.engine not in ("Ollama", LATER)]
    assert len(rows) == 25
    for row in rows:
        assert row.decode_ratio == pytest.approx(1, abs=0.15 if row.published.threads == 4 else 0.20), row
    assert {row.published.threads for row in rows} == {1, 2, 3, 4}


def test_generic_kernels_explain_six_files_of_gemma_on_a_pi_4() -> None:
    """Two models in three formats, which came to this project after its model of the board: all within 5 %."""
    rows = [row for row in check_boards(["rpi4"], GENERIC.name) if row.published.model.startswith("gemma")]
    assert len(rows) == 6
    for row in rows:
        assert row.decode_ratio == pytest.approx(1, abs=0.05), row
        assert row.prefill_ratio == pytest.approx(1, abs=0.20), row


LATER = "Ollama, 2025-09"
UNKNOWN = {
    ("rk3566", "Llama-3.2-1B", "llama.cpp, 2024-12"),
    ("rk3588", "Llama-2-7B", "distributed-llama, 2024"),
    ("rpi5", "Llama-3.2-3B", LATER),
    *(("rpi5", model, "Ollama") for model in ("Llama-3.2-3B", "Qwen2.5-1.5B", "Qwen2.5-7B", "Phi-3-mini")),
}
SLOW_KERNELS = {
    ("rk3588", "Phi-3-mini", "llama.cpp, 2024, Q4_0"),
    ("rk3588", "Qwen3-0.6B", "llama.cpp, 2026"),
    ("rpi4", "Llama-3.2-3B", "Ollama"),
}


@pytest.mark.parametrize(("engine", "expected"), [(OURS, UNKNOWN | SLOW_KERNELS), (GENERIC.name, UNKNOWN)])
def test_each_row_is_near_or_says_why_not(engine: str, expected: set[tuple[str, str, str]]) -> None:
    """With our kernels three engines are slower than predicted; the kinds of kernels explain those (issue 12)."""
    rows = check_boards([], engine)
    off = {
        (row.board, row.published.model, row.published.engine): row
        for row in rows
        if row.decode_ratio is not None and abs(row.decode_ratio - 1) > (0.15 if row.published.threads == 4 else 0.20)
    }
    assert set(off) == expected
    lines = missed(rows)
    assert len(lines) == len(off)
    for row, line in zip(off.values(), lines, strict=True):
        assert row.published.reason
        assert line.endswith(row.published.reason)
    unexplained = [replace(row, published=replace(row.published, reason="")) for row in off.values()]
    assert all(line.endswith("nobody knows why") for line in missed(unexplained))
    near = [row for row in rows if (row.board, row.published.model, row.published.engine) not in expected]
    assert not missed(near)


def test_prompts_on_cores_without_dot_products() -> None:
    """14 prompts of a Pi 4, 0.84 to 1.36 of what was published; about twice too fast at 40 % of the peak."""
    rows = [row for row in check_boards(["rpi4"], GENERIC.name) if row.prefill_ratio is not None]
    assert len(rows) == 14
    assert statistics.median(abs((row.prefill_ratio or 0) - 1) for row in rows) < 0.12
    assert all(0.8 < (row.prefill_ratio or 0) < 1.4 for row in rows)
    board = load_board("rpi4")
    for row in rows:
        if row.published.weights != "float16":
            fast = check_one(board, replace(row.published, kernels=INTERLEAVED), GENERIC.name)
            assert fast.prefill_ratio is not None
            assert fast.prefill_ratio > 1.8


def test_kinds_of_kernels_by_hand() -> None:
    """Operations a cycle and core, each from its source: tokens/s x 2 x weights over clocks x threads."""
    n1, a72 = load_board("rpi5").clusters[0].core, load_board("rpi4").clusters[0].core
    linear = {name: sum(op.flops for op in step_ops(known_model(name, "q8_0"), 256, 0, 1, 1) if op.kind == "linear")
              / 256 for name in ("Qwen2.5-0.5B", "TinyLlama-1.1B")}  # fmt: skip
    found = {name: kind.operations_per_cycle for name, kind in KERNELS.items()}
    assert found[WIDENING](n1) == pytest.approx(34.75 * linear["Qwen2.5-0.5B"] / (2 * 3.0e9), rel=0.01)
    assert found[WIDENING](a72) == pytest.approx(10 * linear["TinyLlama-1.1B"] / (4 * 1.8e9), rel=0.02)
    assert found[ROWS](n1) == pytest.approx((20 * 35) ** 0.5 * linear["TinyLlama-1.1B"] / (4 * 2.4e9), rel=0.06)
    assert found[INTERLEAVED](n1) > 4 * found[ROWS](n1) > 4 * found[WIDENING](n1)
    assert (kernels_of(n1), kernels_of(a72)) == (INTERLEAVED, WIDENING)
    half, board = known_model("Qwen2.5-0.5B", "float16"), load_board("rpi4")
    (head,) = (op for op in step_ops(half, 512, 0) if op.name == "head")
    priced = GenericRoofline(board).op(head, CpuSlice(((board.clusters[0], 1),)))
    assert priced.compute_s == pytest.approx(512 * 896 * 151936 / (1.8e9))  # a multiply-add a cycle


def test_our_prompts_are_said_to_be_no_trial_of_the_board() -> None:
    """70 % of the float32 peak of a Pi 4, by the prediction of the row with float16 weights."""
    rows = check_boards(["rpi4"], OURS)
    (said,) = kinds(rows, OURS)
    (row,) = (r for r in rows if (r.published.model, r.published.weights) == ("Qwen2.5-0.5B", "float16"))
    assert row.prefill_tokens_per_s is not None
    ops = step_ops(known_model("Qwen2.5-0.5B", "float16"), 1, 0)
    flops = sum(op.flops for op in ops if op.kind == "linear" and op.name != "head")
    share = row.prefill_tokens_per_s * flops / (4 * 1.8e9 * 8)
    assert share == pytest.approx(0.70, abs=0.01)
    assert "70 % of the float32 peak" in said
    assert kinds([r for r in rows if r.published.prefill_tokens_per_s is None], OURS) == []


def test_measurements_that_contradict_each_other_are_shown() -> None:
    """Two decode speeds of the same bytes on one board are rows, and both stand in the sentence about them."""
    rows = check_boards(["rk3588"], OURS)
    speeds = [r.published.decode_tokens_per_s for r in rows if r.published.model == "Phi-3-mini"]
    assert speeds == [7.02, 5.12]
    lines = contradictions(rows)
    assert any("7.02" in line and "5.12" in line for line in lines)
    assert all(line.startswith("published of rk3588") for line in lines)
    assert contradictions([]) == []


def test_the_table_by_threads_beats_one_bandwidth() -> None:
    """The baseline to beat: 11.82 GB/s over the bytes of a token, whatever the threads."""
    rows = [r for r in check_boards(["rpi5"], GENERIC.name) if r.published.model == "Qwen2.5-0.5B"]
    ours, flat = [], []
    for row in rows:
        speed = row.published.decode_tokens_per_s
        assert speed is not None
        assert row.decode_ratio is not None
        size = known_model("Qwen2.5-0.5B", row.published.weights).weight_bytes
        ours.append(abs(row.decode_ratio - 1))
        flat.append(abs(11.82e9 / size / speed - 1))
    assert statistics.median(ours) < statistics.median(flat)
    assert max(ours) < max(flat)
    four = {r.published.threads: r.decode_tokens_per_s for r in rows if r.published.weights == "q8_0"}
    assert four[1] > four[2] > four[3] > four[4]  # as published: bandwidth falls with threads


def test_a_decode_step_by_hand() -> None:
    """Bytes over what one thread reads: 525 MB, and the KV rows of half the answer in float16, at 0.9 x 13.7 GB/s."""
    (row,) = (r for r in published_on("rpi5") if r.weights == "q8_0" and r.threads == 1 and r.prompt_tokens == 128 and
              r.model == "Qwen2.5-0.5B")  # fmt: skip
    board = load_board("rpi5")
    found = check_one(board, row, GENERIC.name)
    assert found.decode_tokens_per_s is not None
    kv = 64 * 24 * 2 * 2 * 64 * 2  # rows, layers, keys and values, heads, values, bytes
    seconds = (known_model("Qwen2.5-0.5B", "q8_0").weight_bytes + kv) / (0.9 * 13.7e9)
    assert 1 / found.decode_tokens_per_s == pytest.approx(seconds, rel=0.10)
    discounted_twice = seconds / 0.9
    assert 1 / found.decode_tokens_per_s < discounted_twice  # point 1: one discount, once


def test_the_generic_kernels_are_what_they_declare() -> None:
    board = load_board("rpi5")
    (cluster,) = board.clusters
    spec = known_model("Qwen2.5-0.5B", "q8_0")
    (head,) = (op for op in step_ops(spec, 512, 0) if op.name == "head")
    for threads in (1, 4):
        here = CpuSlice(((cluster, threads),))
        priced = GenericRoofline(board).op(head, here)
        peak = cluster.core.int8_ops_per_cycle * cluster.frequency_ghz * 1e9 * threads
        assert priced.compute_s == pytest.approx(2 * 512 * 896 * 151936 / (0.4 * peak))
        assert priced.compute_s < 0.5 * Roofline(board).op(head, here).compute_s  # the control: ours are not those
    rk3588 = load_board("rk3588")
    mixed, gpu = all_cores(rk3588), rk3588.gpu
    assert mixed is not None
    assert gpu is not None
    for where in (mixed, GpuSlice(gpu, rk3588.clusters[0])):
        with pytest.raises(UserError, match="only the cores of one cluster can be priced"):
            GenericRoofline(rk3588).op(head, where)


def test_the_files_name_known_models_clusters_and_sources() -> None:
    assert boards_with_measurements() == sorted(boards_with_measurements())
    for name in boards_with_measurements():
        board = load_board(name)
        for row in published_on(name):
            assert row.model in CONFIGS
            assert 1 <= row.threads <= board.cluster(row.cluster).count
            assert row.source.startswith("https://")
    assert published_on("imx93") == []


def test_json_has_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--check", "--board", "rpi5", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["engine"] == OURS
    for row in data["rows"]:
        assert row["decode_ratio"] == pytest.approx(row["predicted_decode_tokens_per_s"] / row["decode_tokens_per_s"])
        low, high = row["predicted_interval"]
        assert row["inside_interval"] == (low <= row["decode_tokens_per_s"] <= high)


def test_the_page_is_what_the_code_says() -> None:
    import sys

    folder = Path(__file__).parents[3] / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        from published import PAGE, page
    finally:
        sys.path.remove(str(folder))
    assert page() == PAGE.read_text("utf-8"), "run python benchmarks/published.py, and look at git diff"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--check", "--board", "imx93"], "nothing is published of board imx93"),
        (["--check", "--engine", "fast"], "--engine fast: known engines: ours, generic-int8-dot"),
        (["--engine", "ours", "--board", "rpi5", "x.json"], "--engine belongs to --check"),
        (["--check", "x.json"], "--check compares what is published"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


GOOD: dict[str, Any] = {
    "source": '"a"', "engine": '"e"', "model": '"Qwen2.5-0.5B"', "weights": '"q4_0"', "cluster": '"a76"',
    "threads": "[1, 2]", "decode_tokens_per_s": "[1.0, 2.0]",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, ""),
        ({"source": '"b"'}, "'b' is none of the file's sources: a"),
        ({"engine": "3"}, "measurements[0].engine is missing"),
        ({"threads": "[1]"}, "as many speeds as numbers of threads"),
        ({"threads": "[1.5, 2]"}, "threads must be whole numbers"),
        ({"threads": "4"}, "threads must be a list of 1 to 64 numbers"),
        ({"decode_tokens_per_s": "[1.0, -2.0]"}, "must hold positive numbers"),
        ({"decode_tokens_per_s": "[1.0, nan]"}, "must hold positive numbers"),
        ({"new_tokens": "0"}, "new_tokens must be a whole number"),
        ({"kernels": '"fast"'}, "kernels 'fast' is none of interleaved, rows, widening"),
        ({"note": "7"}, "note must be a text"),
        ({"reason": "7"}, "reason must be a text"),
        ({"speed": "7"}, "unknown key 'speed'"),
    ],
)
def test_a_file_of_measurements_is_checked(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    path = tmp_path / "board.toml"
    lines = [f"{name} = {value}" for name, value in {**GOOD, **changed}.items()]
    path.write_text("\n".join(['[sources]\na = "https://example.org"', "[[measurements]]", *lines]))
    if not message:
        assert [row.threads for row in read_published(path)] == [1, 2]
        return
    with pytest.raises(UserError) as refused:
        read_published(path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content",
    ["[", "sources = 3", "[sources]\nmeasurements = 3", "x = 1", "contradictions = 1", 'contradictions = [""]'],
)
def test_a_damaged_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "board.toml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"board\.toml"):
        read_published(path)
