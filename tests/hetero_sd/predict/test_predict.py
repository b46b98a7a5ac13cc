from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from golden import Golden

from costmodel.question import Question
from costmodel.uncertainty import alpha_bounds
from hetero_sd.cli import main
from hetero_sd.predict.inputs import with_activations
from hetero_sd.predict.known_models import known_model
from hetero_sd.predict.predict import predict
from targets.boards import load_board
from targets.read_board import board_from_json

ROOT = Path(__file__).parent.parent.parent
EXPORTS = ROOT / "data" / "exports"

LLAMA_1B = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
    "num_key_value_heads": 8, "num_hidden_layers": 16, "vocab_size": 128256, "tie_word_embeddings": True,
    "head_dim": 64,
}  # fmt: skip
LLAMA_3B = LLAMA_1B | {"hidden_size": 3072, "num_attention_heads": 24, "num_hidden_layers": 28, "head_dim": 128}


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    for name, config in (("Llama-3.2-3B", LLAMA_3B), ("Llama-3.2-1B", LLAMA_1B)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return ["Llama-3.2-3B/config.json", "--draft", "Llama-3.2-1B/config.json"]


def predicted(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert main(["predict", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert main(["predict", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("hetero-sd: error: ")
    return err


@pytest.mark.parametrize("board", ["imx95", "rk3588"])
def test_text_as_people_read_it(
    pair: list[str], capsys: pytest.CaptureFixture[str], board: str, golden: Golden
) -> None:
    text = predicted(capsys, [*pair, "--board", board, "--alpha", "0.8"])
    golden(f"hetero_sd/predict_{board}.txt", text)


@pytest.mark.parametrize("board", ["imx95", "rk3588"])
def test_figures_by_hand(pair: list[str], capsys: pytest.CaptureFixture[str], board: str) -> None:
    """Memory, a step and a round, from the board file and the factors that the prediction itself prints."""
    data = json.loads(predicted(capsys, [*pair, "--board", board, "--alpha", "0.8", "--json"]))
    facts = {f["path"]: f["value"] for f in data["facts"]}
    leading = data["leading"]

    # 1. memory: q and o, k and v, gate, up and down of 28 layers, the tied table, two bytes each; 57 norms of float32
    big = 2 * (28 * (2 * 3072 * 3072 + 2 * 3072 * 1024 + 3 * 3072 * 8192) + 128256 * 3072) + 4 * 57 * 3072
    small = 2 * (16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192) + 128256 * 2048) + 4 * 33 * 2048
    assert (big, small) == (6_425_849_856, 2_471_763_968)
    alone = data["baseline"]
    kv_row = 28 * 2 * 8 * 128 * 4  # layers, keys and values, heads, values, bytes
    kv = 512 * kv_row  # in the middle of an answer of 256 tokens to a prompt of 384
    activations = 32 * 4 * (4 * 3072 + 2 * 24 * 128 + 2 * 8 * 128 + 3 * 8192 + 128256)
    assert alone["memory_bytes"]["total_bytes"] == big + 640 * kv_row + activations + 150_000_000
    both = next(v for v in leading + data["not_fitting"] if v["draft"])
    assert both["memory_bytes"]["mapped_bytes"] + both["memory_bytes"]["gpu_bytes"] == big + small
    free = int(facts["dram.capacity_bytes"]) - int(facts["dram.reserved_bytes"])
    fits = both["memory_bytes"]["total_bytes"] <= free
    assert (both in leading) == fits
    assert fits == (board == "imx95")  # 9.24 GB of 16.11, but not of 7.52

    # 2. a step of one token reads the weights and the KV rows: bytes over bandwidth, the arithmetic hides behind it
    path, factor = {
        "imx95": ("clusters.a55.bandwidth_all_threads_gb_per_s", "bandwidth"),
        "rk3588": ("clusters.a76.bandwidth_all_threads_gb_per_s", None),  # stated as what decoders reach
    }[board]
    rate = float(facts[path]) * (data["factors"][factor] if factor else 1.0) * 1e9
    step = next(v for v in leading if v["mode"] == "target-only" and "a" in v["target"]["placement"][0]["processor"])
    step = step["round_s"]["verify"]
    assert (big + kv) / rate == pytest.approx(step, rel=0.08)
    assert (big + small + kv) / rate != pytest.approx(
        step, rel=0.08
    )  # the negative control: another model's weights too

    # 3. a round of gamma tokens: E = 1 + 0.8 + 0.64 + ..., and its speed
    spoken = next(v for v in leading + data["not_fitting"] if v["mode"] == "sequential")
    expected = sum(0.8**k for k in range(spoken["gamma"] + 1))
    assert spoken["tokens_per_round"] == pytest.approx(expected)
    parts = [spoken["round_s"][name] for name in ("draft", "verify", "other")]
    loop = (data["factors"]["round_cycles"] + data["factors"]["turn_cycles"]) / (
        1e9 * load_board(board).clusters[0].frequency_ghz
    )
    assert parts[2] == pytest.approx(loop)
    assert spoken["tokens_per_s"] == pytest.approx(expected / sum(parts))
    assert spoken["against_best"] == pytest.approx(spoken["tokens_per_s"] / data["baseline"]["tokens_per_s"])


@pytest.mark.slow
def test_json_is_complete_and_the_same_every_time(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*pair, "--board", "imx95", "--json", "--weights", "float16,int4"]
    first, second = predicted(capsys, arguments), predicted(capsys, arguments)
    assert first == second
    data = json.loads(first)
    best = data["leading"][0]
    assert best["reason"].startswith("chosen")
    assert best["interval"][0] < best["tokens_per_s"] < best["interval"][1]
    round_s = best["round_s"]
    assert best["tokens_per_s"] == pytest.approx(best["tokens_per_round"] / round_s["total"])
    assert all(v["reason"] for v in data["leading"] + data["not_fitting"])
    assert {f["kind"] for f in data["facts"]} <= {"measured", "datasheet", "assumed"}
    assert {v["target"]["name"] for v in data["leading"]} == {"Llama-3.2-3B float16", "Llama-3.2-3B int4"}


def test_an_onnx_file_is_counted_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    target, draft = EXPORTS / "llama-dynamo-fp32", EXPORTS / "llama-drafter-dynamo-fp32"
    arguments = [str(target / "model.onnx"), "--draft", str(draft / "model.onnx"), "--board", "rpi5", "--json"]
    from_onnx = json.loads(predicted(capsys, [*arguments, "--context", "64"]))
    configs = [str(target / "config.json"), "--draft", str(draft / "config.json"), "--board", "rpi5", "--json"]
    from_config = json.loads(predicted(capsys, [*configs, "--context", "64", "--weights", "float32"]))
    speeds = [[v["tokens_per_s"] for v in data["leading"]] for data in (from_onnx, from_config)]
    assert speeds[0] == speeds[1]


def test_trace_is_what_perfetto_reads(pair: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "round.json"
    data = json.loads(predicted(capsys, [*pair, "--board", "imx95", "--json", "--trace", str(path)]))
    trace = json.loads(path.read_text())
    spans = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert all({"name", "pid", "tid", "ts", "dur"} <= set(e) for e in spans)
    best = data["leading"][0]
    assert best["mode"] == "sequential"
    assert sum(e["name"].startswith("draft") for e in spans) == best["gamma"]
    end = max(e["ts"] + e["dur"] for e in spans) / 1e6
    assert end == pytest.approx(best["round_s"]["total"], rel=0.05)  # less the two-token step after full acceptance
    assert all(b["ts"] >= a["ts"] + a["dur"] - 0.01 for a, b in pairwise(spans))


def test_an_acceptance_file_widens_the_interval(
    pair: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def answer(low: float, high: float) -> Any:
        path = tmp_path / "alpha.json"
        bounds = {"alpha_by_position": [0.8, 0.75], "interval_by_position": [[low, high], [low - 0.05, high - 0.05]]}
        path.write_text(json.dumps(bounds))
        return json.loads(predicted(capsys, [*pair, "--board", "imx95", "--json", "--alpha-file", str(path)]))

    narrow, wide = answer(0.79, 0.81), answer(0.5, 0.95)
    widths = [d["leading"][0]["interval"][1] / d["leading"][0]["interval"][0] for d in (narrow, wide)]
    assert widths[0] < widths[1]
    assert narrow["alpha"] == [0.8, 0.75]


def test_a_cpu_only_board_and_no_drafter(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = predicted(capsys, [pair[0], "--board", "rpi5", "--weights", "int4"])
    assert text.startswith("On rpi5 run Llama-3.2-3B int4 alone on a76 x1")  # bandwidth falls with more threads
    assert "predicted from the board" not in text


def test_nothing_accepted_is_not_worth_drafting(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = predicted(capsys, [*pair, "--board", "imx95", "--alpha", "0"])
    assert "speculation does not pay" in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--board", "imx95", "--alpha", "1.5"], "acceptance 1.5 is not a probability"),
        (["--board", "imx95", "--alpha", "nan"], "acceptance nan"),
        (["--board", "imx96"], "board 'imx96' is not known"),
        (["--board", "imx95", "--context", "0"], "--context 0"),
        (["--board", "imx95", "--weights", "int3"], "--weights 'int3'"),
        (["--board", "imx95", "--alpha", "0.5", "--alpha-file", "x"], "contradict"),
        (["--board", "rk3566", "--weights", "float32"], "needs at least 13."),
        (["--board", "imx95", "--report", "/nowhere/report.html"], "there is no folder /nowhere"),
        (["--board", "imx95", "--alpha-file", "/nowhere/alpha.json"], "cannot be read"),
        (["--board", "imx95", "--factors", "/nowhere/f.json"], "cannot be read"),
    ],
)
def test_mistakes_end_in_one_line(
    pair: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refused(capsys, [*pair, *arguments])


def test_vocabularies_that_differ(pair: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(LLAMA_1B | {"vocab_size": 32000}))
    assert "128256 token ids" in refused(capsys, [pair[0], "--draft", str(other), "--board", "imx95"])


def test_contradictory_board_numbers(pair: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import targets.boards

    text = (Path(targets.boards.__file__).parent / "rpi5.toml").read_text()
    board = tmp_path / "odd.toml"
    board.write_text(text.replace("{ value = 17.0,", "{ value = 7.0,"))
    assert "13.7 is above dram.peak_bandwidth_gb_per_s 7" in refused(capsys, [*pair, "--board", str(board)])
    lines = [line for line in text.splitlines() if not line.startswith("launch_overhead_s")]
    board.write_text("\n".join(lines))
    assert "launch_overhead_s is missing" in refused(capsys, [*pair, "--board", str(board)])


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        '{"alpha_by_position": [1.2], "interval_by_position": [[0, 1]]}',
        "{}",
        '{"alpha_by_position": [0.5], "interval_by_position": [0.1]}',
    ],
)
def test_damaged_acceptance_files(
    pair: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str
) -> None:
    path = tmp_path / "alpha.json"
    path.write_text(content)
    refused(capsys, [*pair, "--board", "imx95", "--alpha-file", str(path)])


def test_what_can_run_comes_first_and_the_rest_is_potential(
    pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Text as the drafter and mixed clusters are never the answer, whatever they promise."""
    arguments = [*pair, "--board", "imx95", "--alpha", "0.9", "--ngram-alpha", "0.95"]
    data = json.loads(predicted(capsys, [*arguments, "--json"]))
    assert all(v["compilable"] and v["mode"] in ("target-only", "sequential", "overlapped") for v in data["leading"])
    assert [v["mode"] for v in data["potential"]].count("n-gram") >= 1
    best = data["leading"][0]["tokens_per_s"]
    speeds = [v["tokens_per_s"] for v in data["potential"]]
    assert speeds == sorted(speeds, reverse=True)
    assert min(speeds) > best
    for v in data["potential"]:  # what cannot be run at all: the golden file of rk3588
        assert len({s["processor"] for s in v["target"]["placement"]} - {"gpu"}) <= 1
        how = "`run.py --drafter ngram` drafts from the text, how often it repeats decides"
        assert v["reason"] == f"{v['tokens_per_s'] / best:.2f} x the chosen one; {how}"
    text = predicted(capsys, arguments)
    assert text.index("target-only") < text.index(
        "potential: predicted to be faster, but measured by nobody, up to the texts, or not in this version"
    )
    none = json.loads(predicted(capsys, [*pair, "--board", "rpi5", "--alpha", "0.1", "--json"]))
    assert none["potential"] == []  # nothing gains at such an acceptance


def test_a_gpu_that_nobody_measured_is_potential(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """On rk3588 it is predicted to be 4 % faster than the A76; who asks for it gets it."""
    data = json.loads(predicted(capsys, [*pair, "--board", "rk3588", "--json"]))
    first, gpu = data["leading"][0], data["potential"][-1]
    assert [v["target"]["placement"][0]["processor"] for v in (first, gpu)] == ["a76 x4", "gpu"]
    assert first["tokens_per_s"] < gpu["tokens_per_s"] < 1.1 * first["tokens_per_s"]
    assert gpu["interval"][0] < first["tokens_per_s"] < gpu["interval"][1]
    assert gpu["reason"] == "1.04 x the chosen one; no kernel of a model was measured on this board's GPU"
    assert "--place" not in data["command"]  # compile decides by the same rule
    for place in ("gpu", "cpu"):
        asked = json.loads(predicted(capsys, [pair[0], "--board", "rk3588", "--place", f"target={place}", "--json"]))
        assert (asked["leading"][0]["target"]["placement"][0]["processor"] == "gpu") == (place == "gpu")
        assert f"--place target={place}" in asked["command"]
        assert asked["potential"] == []


@pytest.mark.parametrize(
    ("speeds", "intervals", "chosen"),
    [
        ((10.0, 9.5), ((5.0, 20.0), (9.0, 10.1)), 1),
        ((10.0, 8.9), ((5.0, 20.0), (8.0, 10.1)), 0),  # more than a tenth slower
        ((10.0, 9.5), ((5.0, 20.0), (9.0, 9.9)), 0),  # the fastest is outside of the other's interval
        ((10.0, 9.5), ((9.8, 10.2), (9.0, 10.1)), 0),  # and the other way round
        ((10.0, 9.5), ((9.0, 11.0), (8.7, 10.4)), 0),  # hardly surer
    ],
)
def test_what_a_tie_is(speeds: Any, intervals: Any, chosen: int) -> None:
    from dataclasses import replace

    from costmodel.question import Question
    from costmodel.search import Search
    from costmodel.standard_decoder import Blocks, standard_decoder
    from costmodel.ties import settle_ties
    from costmodel.uncertainty import Interval

    spec = standard_decoder("tiny", Blocks(64, 2, 1, 32, 128, 100), [0], tied=True)
    decision = Search(Question(load_board("rpi5"), (spec,))).decide()
    best = decision.best
    variants = tuple(replace(best, round=replace(best.round, tokens=s * best.round.time_s)) for s in speeds)
    decision = replace(decision, best=variants[0], leading=variants)
    sure = {v.tokens_per_s: Interval(low, high, ()) for v, (low, high) in zip(variants, intervals, strict=True)}
    found = settle_ties(decision, lambda variant: sure[variant.tokens_per_s])
    assert found.best.tokens_per_s == pytest.approx(speeds[chosen])
    assert [v.tokens_per_s for v in found.leading] == pytest.approx([speeds[chosen], speeds[1 - chosen]])

    drafts = replace(decision, leading=(variants[0], replace(variants[1], mode="sequential")))
    alone = settle_ties(drafts, lambda variant: sure[variant.tokens_per_s])
    assert alone == drafts  # drafting does not tie with a faster target alone


@pytest.mark.parametrize(("gain", "mode"), [(1.0001, "target-only"), (1.019, "target-only"), (1.03, "overlapped")])
def test_what_drafting_must_gain(gain: float, mode: str) -> None:
    """An early exit on the other cluster, at an acceptance near 0, costs the target nothing and gains nothing."""
    from dataclasses import replace

    from costmodel.search import Search
    from costmodel.ties import settle_ties
    from costmodel.uncertainty import Interval

    decision = Search(Question(load_board("rpi5"), (known_model("Qwen2.5-0.5B", "float16"),))).decide()
    alone = decision.best
    tokens = gain * alone.tokens_per_s * alone.round.time_s
    drafts = replace(alone, mode="overlapped", round=replace(alone.round, tokens=tokens))
    decision = replace(decision, best=drafts, leading=(drafts, alone))
    found = settle_ties(decision, lambda variant: Interval(0.9 * variant.tokens_per_s, 1.1 * variant.tokens_per_s, ()))
    assert found.best.mode == mode
    if mode == "target-only":
        percent = f"{100 * (gain - 1):.1f} %"
        assert found.best.reason == f"chosen: drafting (overlapped) would gain {percent}"
        assert found.leading[1].reason == f"{percent} faster than the target alone: too little to draft for"


@pytest.mark.parametrize(("gain", "families"), [(None, ["a76"]), (1.03, ["a76", "gpu"])])
def test_what_a_second_processor_must_gain(gain: float | None, families: list[str]) -> None:
    """On rk3588 the head alone on the GPU is 0.6 % faster than all on the cores, by numbers that nobody measured."""
    from dataclasses import replace

    from costmodel.search import Search
    from costmodel.ties import end_of_tie, settle_ties
    from costmodel.uncertainty import Interval

    spec = with_activations(known_model("Qwen2.5-0.5B", "int8"), None)
    search = Search(Question(load_board("rk3588"), (spec,), one_process=True))
    decision = search.decide()
    split, (whole,) = decision.best, [v for v in decision.leading if v.target_placement.families == ("a76",)]
    assert split.target_placement.families == ("a76", "gpu")
    assert 1 < split.tokens_per_s / whole.tokens_per_s < 1.02
    if gain is not None:
        split = replace(split, round=replace(split.round, tokens=gain * whole.tokens_per_s * split.round.time_s))
        decision = replace(decision, best=split, leading=(split, *decision.leading[1:]))
    found = settle_ties(decision, lambda v: Interval(0.9 * v.tokens_per_s, 1.1 * v.tokens_per_s, ()))
    assert list(found.best.target_placement.families) == families
    if gain is None:
        assert found.best.reason.startswith("chosen: another processor would gain 0.")
        assert end_of_tie(found) == 1.02
    else:
        assert end_of_tie(found) == 1.0


def test_the_interval_holds_an_acceptance_that_nobody_measured() -> None:
    models = [known_model(name, "float16") for name in ("Qwen2.5-1.5B", "Qwen2.5-0.5B")]
    question = Question(load_board("rpi5"), (models[0],), (models[1],), 0.8)
    assumed, given = predict(question), predict(question, alpha_given=True)
    assert alpha_bounds(0.8, "assumed") == pytest.approx((0.65, 0.95))
    assert alpha_bounds(0.98, "given") == pytest.approx((0.93, 1.0))
    assert alpha_bounds((0.9, 0.02), "given") == (
        [pytest.approx(0.85), 0.0],
        [pytest.approx(0.95), pytest.approx(0.07)],
    )
    effects = {}
    for name, p in (("assumed", assumed), ("given", given)):
        drafts = next(i for v, i in zip(p.decision.leading, p.intervals, strict=True) if v.gamma)
        effects[name] = next((i.effect for i in drafts.influences if i.number == "acceptance"), 0.0)
        alone = next(i for v, i in zip(p.decision.leading, p.intervals, strict=True) if not v.gamma)
        assert "acceptance" not in {i.number for i in alone.influences}  # the control: nothing is drafted
    assert effects["assumed"] > 2 * effects["given"] > 0
    assert assumed.alpha_source == "0.8, assumed"
    assert given.alpha_source == "0.8, given"


def test_the_interval_holds_kernels_that_ran_under_emulation_only() -> None:
    """Arithmetic of AArch64 kernels is 30 % unsure, until a calibration of the board fitted it."""
    spec = known_model("Qwen2.5-0.5B", "int4")
    board = load_board("rpi5")
    fact = {"value": 1.0, "kind": "measured", "source": "fitted"}
    fitted = board_from_json(board.to_json() | {"factors": {"compute": fact}})
    errors = []
    for each in (board, fitted):
        p = predict(Question(each, (spec,)))
        found = {i.number: i.error for i in p.intervals[0].influences}
        errors.append(found["clusters.a76.core.fp32_flops_per_cycle"])
    kind_error = {"datasheet": 0.10, "assumed": 0.30, "measured": 0.05}[
        board.provenance["clusters.a76.core.fp32_flops_per_cycle"].kind
    ]
    assert errors == pytest.approx([math.hypot(kind_error, 0.30), math.hypot(kind_error, 0.05)])
