"""What may be asked: formats, KV type, threads, places, draft length, lengths, a published configuration."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from golden import Golden

from costmodel.model_costs import ModelCosts
from costmodel.phase_threads import prompt_placement
from costmodel.processor import CpuSlice
from costmodel.question import Question
from costmodel.search import Search
from hetero_sd.cli import main, parser
from hetero_sd.predict.answer_time import answer_time, prompt_s
from hetero_sd.predict.known_models import CONFIGS, known_model
from hetero_sd.predict.predict import Prediction, answer
from hetero_sd.predict.request import PredictRequest
from hetero_sd.predict.sentences import notes
from hetero_sd.predict.text import predict_json, predict_text
from targets.boards import load_board
from targets.errors import UserError
from targets.read_board import board_from_json


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name in ("Qwen2.5-0.5B", "Qwen2.5-1.5B"):
        (tmp_path / name).mkdir()
        found[name] = tmp_path / name / "config.json"
        found[name].write_text(json.dumps(CONFIGS[name]))
    return found


def asked(models: dict[str, Path], board: str = "rpi5", **more: Any) -> Prediction:
    return answer(PredictRequest(models["Qwen2.5-1.5B"], board, models["Qwen2.5-0.5B"], **more))


def refusal(models: dict[str, Path], **more: Any) -> str:
    with pytest.raises(UserError) as refused:
        asked(models, **more)
    return str(refused.value)


# -- formats (published: 346 MB and 525 MB read a token, llama-roofline on the GGUF files) -------------------------


def test_bytes_as_gguf_files_count_them() -> None:
    layers = 24 * (2 * 896 * 896 + 2 * 896 * 128 + 3 * 896 * 4864)
    head = 151936 * 896
    small = 4 * (49 * 896 + 24 * (896 + 2 * 128))  # norms and biases of q, k, v in float32
    for weights, size, published in (
        ("q4_0", layers * 18 // 32 + head * 34 // 32, 346e6),
        ("q8_0", (layers + head) * 34 // 32, 525e6),
    ):
        found = known_model("Qwen2.5-0.5B", weights)
        assert found.weight_bytes == size + small
        assert found.weight_bytes == pytest.approx(published, rel=0.003)
    plain = known_model("Qwen2.5-0.5B", "int4")  # the negative control: a head of four bits
    assert plain.weight_bytes == (layers + head) * 18 // 32 + small
    assert plain.weight_bytes != pytest.approx(346e6, rel=0.1)
    assert (
        known_model("Qwen2.5-0.5B", "int4", head="int8").weight_bytes
        == known_model("Qwen2.5-0.5B", "q4_0").weight_bytes
    )


def test_head_and_blocks() -> None:
    spec = known_model("Qwen2.5-7B", "int4:128", head="float16")
    head = 152064 * 3584
    assert spec.head.matrix_bytes == 2 * head
    assert spec.embedding.matrix_bytes == head // 2 + 2 * head // 128  # of its own, so it is stored as the layers are
    tied = known_model("Qwen2.5-0.5B", "int4:128", head="float16")
    assert tied.embedding.format == tied.head.format


def test_a_kv_type(models: dict[str, Path]) -> None:
    whole, half, quarter = (asked(models, kv=kv, context=4096).decision.best for kv in ("float32", "float16", "int8"))
    row = 28 * 2 * 2 * 128  # layers, keys and values, heads, values
    assert whole.memory.kv_bytes == 2 * half.memory.kv_bytes > 0
    assert 0.5 < quarter.memory.kv_bytes / half.memory.kv_bytes < 0.53  # a scale beside the codes of a head
    assert whole.target.kv_bytes(10) == 10 * 4 * row
    assert (half.target.kv_bytes(10), quarter.target.kv_bytes(10)) == (10 * 2 * row, 10 * row * (128 + 4) // 128)
    assert len({v.tokens_per_s for v in (whole, half, quarter)}) == 3
    for kv in ("float16", "int8"):
        given = asked(models, kv=kv)
        assert f"KV cache in {kv} (--kv)" in " ".join(given.assumed)
        assert f"--kv {kv}" in str(given.command)
    assert "--kv" not in str(asked(models).command)


def test_an_onnx_file_has_its_own_head(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(UserError, match=r"--head int8: .* is an ONNX file, which says how its head is stored"):
        answer(PredictRequest(tmp_path / "model.onnx", "rpi5", head="int8"))


# -- where it runs -------------------------------------------------------------------------------------------------


def test_threads_are_obeyed(models: dict[str, Path]) -> None:
    for text, name in (("2", "a76 x2"), ("a55:3", "a55 x3")):
        p = asked(models, "rk3588", threads=text, place="cpu")
        processors = {s.processor.name for v in p.decision.leading for s in v.target_placement.segments}
        assert processors == {name}
    assert {s.processor.name for v in asked(models, "rk3588").decision.leading for s in v.target_placement.segments} > {
        "gpu"
    }


def test_place_and_gamma_are_obeyed(models: dict[str, Path]) -> None:
    p = asked(models, "rk3588", place="target=cpu,draft=gpu", gamma=3)
    best = p.decision.best
    assert best.gamma == 3
    assert best.target_placement.families == ("a76",)
    assert best.draft_placement is not None
    assert best.draft_placement.families == ("gpu",)
    assert p.potential == ()  # nothing else was asked
    free = asked(models, "rk3588").decision.best
    assert (free.gamma, free.target_placement.families) != (3, ("a76",)) or free.draft_placement != best.draft_placement
    alone = asked(models, "rk3588", gamma=0)
    assert {v.gamma for v in alone.decision.leading} == {0}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"threads": "5"}, "--threads 5: give 1 to 4, the cores of a76"),
        ({"threads": "a55:1"}, "no cluster 'a55'"),
        ({"threads": "0"}, "--threads 0"),
        ({"threads": "x"}, "--threads x"),
        ({"place": "gpu"}, "--place gpu"),
        ({"place": "here"}, "'here' cannot be read"),
        ({"gamma": 17}, "--gamma 17: it must lie between 0 and 16"),
        ({"gamma": -1}, "--gamma -1"),
        ({"prompt_tokens": 0}, "--prompt-tokens 0: must be from 1"),
        ({"new_tokens": 1 << 21}, "--new-tokens 2097152"),
        ({"weights": ("int4:1",)}, "a block has 2 to"),
        ({"weights": ("int4:100",)}, "is not a multiple of 100"),
        ({"head": "q5"}, "--head 'q5' is not a format"),
        ({"kv": "int4"}, "--kv 'int4' is not a type of KV cache"),
        ({"like": "2000.00000"}, "known configurations: 2602.08060"),
    ],
)
def test_mistakes(models: dict[str, Path], more: dict[str, Any], message: str) -> None:
    assert message in refusal(models, **more)


def test_a_draft_length_needs_a_drafter(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(models["Qwen2.5-0.5B"]), "--board", "rpi5", "--gamma", "2"]) == 2
    assert "--gamma 2: there is no draft model" in capsys.readouterr().err
    assert main(["predict", "--board", "rpi5"]) == 2
    assert "a model is missing" in capsys.readouterr().err
    assert main(["predict", str(models["Qwen2.5-0.5B"])]) == 2
    assert "--board is missing" in capsys.readouterr().err


def test_a_draft_length_without_a_drafter_is_one_of_drafts_from_the_text(models: dict[str, Path]) -> None:
    """The target alone leads; drafts from the text, of the length that was given, stand beside it, faster or slower."""
    target = models["Qwen2.5-0.5B"]

    def alone(**more: Any) -> Prediction:
        return answer(PredictRequest(target, "rpi5", **more))

    for gamma in (2, 16):
        p = alone(gamma=gamma, ngram_alpha=0.9, ngram_match=1.0)
        assert p.decision.best.mode == "target-only"
        assert p.from_text is not None
        drafting, sure = p.from_text
        assert (drafting.mode, drafting.gamma) == ("n-gram", gamma)
        assert sure.low < drafting.tokens_per_s < sure.high
        (said,) = [note for note in notes(p) if note.startswith("drafts from the text")]
        gain = drafting.tokens_per_s / p.decision.best.tokens_per_s
        assert f"gamma {gamma}, verify with " in said
        assert f"{gain:.2f} x the chosen one" in said
    none = alone(gamma=16, ngram_alpha=0.0, ngram_match=1.0)
    assert none.from_text is not None
    assert none.from_text[0].tokens_per_s < none.decision.best.tokens_per_s
    assert none.from_text[0] not in none.potential
    assert alone().from_text is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--board", "nope"], "nope"),
        (["--board", "rpi5", "--place", "gpu"], "--place gpu"),
        (["--board", "rpi5", "--threads", "9"], "--threads 9"),
        (["--board", "rpi5", "--factors", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_needs_no_model_is_refused_before_one_is_fetched(
    more: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_of_the_hub: list[object] = []
    monkeypatch.setattr("hetero_sd.compile.hub.files_of", lambda given, *more: asked_of_the_hub.append(given) or given)
    assert main(["predict", "hf:maker/model", *more]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert (asked_of_the_hub, err.count("\n")) == ([], 1)
    assert main(["predict", "hf:maker/model", "--board", "rpi5"]) == 2  # the control: there is no such file
    assert len(asked_of_the_hub) == 1


# -- how long it takes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 31, 32, 100, 1000])
def test_the_time_of_a_prompt_is_that_of_its_chunks(tokens: int) -> None:
    """Every chunk priced at its place in the prompt, against the few that are; the control leaves the place out."""
    spec = known_model("Qwen2.5-0.5B", "int8")
    search = Search(Question(load_board("rpi5"), (spec,), context=512))
    placement = search.costs(spec).whole(search.costs(spec).slices[3])
    sizes = [min(32, tokens - past) for past in range(0, tokens, 32)]

    def chunks_s(*pasts: int) -> float:
        chunks = list(zip(pasts, sizes, strict=True))
        costs = [(ModelCosts(search.roofline, spec, past), size) for past, size in chunks]
        return sum(c.prompt_chunk_s(placement, size, fills=c is not costs[-1][0]) for c, size in costs)

    exact = chunks_s(*range(0, tokens, 32))
    assert prompt_s(search, spec, placement, tokens) == pytest.approx(exact, rel=1e-3)
    start = chunks_s(*[0] * len(sizes))
    assert (start == pytest.approx(exact, rel=1e-3)) == (tokens <= 32)


def test_the_time_of_an_answer(models: dict[str, Path]) -> None:
    p = asked(models, gamma=2, prompt_tokens=64, new_tokens=101)
    best, t = p.decision.best, p.time
    assert t is not None
    assert p.question.context == 64 + 50
    assert p.question.cache_rows == 165
    assert best.draft is not None
    assert best.draft_placement is not None
    costs = [p.search.costs(spec) for spec in (best.target, best.draft)]
    target, draft = (
        prompt_placement(c, where, 32)
        for c, where in zip(costs, (best.target_placement, best.draft_placement), strict=True)
    )
    assert t.first_token_s == prompt_s(p.search, best.target, target, 64)
    assert t.first_token_s < 0.7 * prompt_s(p.search, best.target, best.target_placement, 64)  # two threads, not four
    drafter = prompt_s(p.search, best.draft, draft, 64)
    assert t.answer_s == pytest.approx(t.first_token_s + drafter + 100 / best.tokens_per_s)
    alone = answer_time(p.search, replace(best, draft=None, draft_placement=None), 64, 101)
    assert alone.answer_s == pytest.approx(t.answer_s - drafter)  # the control: nobody else reads the prompt


def test_energy_only_where_the_watts_are_known(models: dict[str, Path]) -> None:
    known = asked(models).time
    assert known is not None
    assert known.energy_j == pytest.approx(13.0 * known.answer_s)  # the board file's watts
    unknown = asked(models, "rk3588").time
    assert unknown is not None
    assert unknown.energy_j is None


def test_watts_are_a_fact_of_the_board() -> None:
    data = load_board("rpi5").to_json()
    again = board_from_json(data)
    assert again.power == load_board("rpi5").power
    assert again.provenance["power.decode_w"].kind == "measured"
    data["power"]["decode_w"]["value"] = 0
    with pytest.raises(UserError, match=r"power.decode_w is 0.0; it must lie between"):
        board_from_json(data)
    assert "power" not in load_board("imx95").to_json()


# -- a published configuration -------------------------------------------------------------------------------------


def test_like_the_reference_paper() -> None:
    """Target on one A55, drafter on the GPU: 1.68 x published, over one core; six cores alone are faster than that."""
    p = answer(PredictRequest(None, None, like="2602.08060"))
    best = p.decision.best
    assert (best.mode, best.target_placement.families) == ("sequential", ("a55",))
    processor = best.target_placement.segments[0].processor
    assert isinstance(processor, CpuSlice)
    assert processor.threads == 1
    assert best.draft_placement is not None
    assert best.draft_placement.families == ("gpu",)
    assert best.against_same == pytest.approx(1.68, rel=0.12)
    assert "published: 1.68 x, predicted 1." in p.like_note
    assert "That core is the baseline that makes the ratio" in p.like_note
    six = answer(PredictRequest(None, None, like="2602.08060", threads="a55:6", place="cpu")).decision.best
    assert six.tokens_per_s > 3 * best.tokens_per_s  # the control: more cores, another ratio


def test_the_reference_configuration_as_people_read_it(capsys: pytest.CaptureFixture[str], golden: Golden) -> None:
    assert main(["predict", "--like", "2602.08060"]) == 0
    golden("hetero_sd/predict_like_2602.08060.txt", capsys.readouterr().out)


def test_the_command_is_one_that_compile_reads(models: dict[str, Path]) -> None:
    p = asked(models, "rk3588", place="target=cpu,draft=gpu", gamma=3, alpha=0.7)
    words = shlex.split(p.command)
    assert words[0] == "hetero-sd"
    options = parser().parse_args(words[1:])
    assert options.command == "compile"
    assert options.target == models["Qwen2.5-1.5B"].with_name("model.onnx")
    assert options.draft == models["Qwen2.5-0.5B"].with_name("model.onnx")
    given = (options.board, options.gamma, options.alpha, options.place, options.context)
    assert given == ("rk3588", 3, 0.7, "target=cpu,draft=gpu", 640)


# -- several requests at a time ----------------------------------------------------------------------------------


def test_several_requests_together(models: dict[str, Path]) -> None:
    lengths = {"prompt_tokens": 64, "new_tokens": 64, "weights": ("int8",)}
    one, eight = asked(models, **lengths), asked(models, requests=8, **lengths)
    assert one.together is None
    found, best = eight.together, eight.decision.best
    assert found is not None
    assert 1.2 < found.tokens_per_s / found.alone_tokens_per_s < 8
    assert eight.time is not None
    alone_s = (
        eight.time.prefill_s
        + 63
        / Search(replace(eight.question, drafts=()))
        .price("target-only", best.target, best.target_placement)
        .tokens_per_s
    )
    assert eight.time.prefill_s < 0.8 * prompt_s(eight.search, best.target, best.target_placement, 64)  # two threads
    assert found.alone_s / 8 == pytest.approx(alone_s, rel=0.02)
    said = predict_text(eight)
    assert f"8 requests together, without drafts: {found.tokens_per_s:.2f} tokens/s" in " ".join(said.split())
    assert "--slots 8" in eight.command
    assert "requests together" not in predict_text(one)
    kv = eight.decision.best.memory.kv_bytes / one.decision.best.memory.kv_bytes
    assert kv > 5  # eight of the target's caches, and one of the drafter's
    assert json.loads(predict_json(eight))["together"]["requests"] == 8
    drafting = asked(models, requests=2, ngram_alpha=0.9, ngram_match=1.0, **lengths).together
    assert drafting is not None
    assert drafting.drafted_per_round > 0


def test_a_free_slot_has_branches_of_drafts_that_are_weak(models: dict[str, Path]) -> None:
    """What the server's formula makes of them: test_batch_throughput.py."""
    given: dict[str, Any] = {"prompt_tokens": 64, "new_tokens": 64, "weights": ("int8",), "ngram_alpha": 0.3}
    given |= {"ngram_match": 1.0}

    def of_text(**more: Any) -> Prediction:
        return answer(PredictRequest(models["Qwen2.5-1.5B"], "rpi5", **given, **more))

    found = of_text(slots=4, branch=0.9)
    assert found.together is not None
    assert found.together.branches_per_round > 0
    assert "1 request together" in predict_text(found)
    assert "branches" in predict_text(found)
    controls = [{"slots": 4}, {"slots": 4, "branch": 0.0}, {"slots": 2, "requests": 2, "branch": 0.9}]
    for more in controls:  # seldom right; never right; no free slot
        nothing = of_text(**more).together
        assert nothing is not None
        assert nothing.branches_per_round == 0


def test_a_beginning_in_common_is_read_once(models: dict[str, Path]) -> None:
    """Eight prompts of 80 tokens, 64 in common: seven of them are not read."""
    lengths: dict[str, Any] = {"prompt_tokens": 80, "new_tokens": 16, "weights": ("int8",), "requests": 8}
    apart, shared = (asked(models, **lengths, shared_prefix=n) for n in (None, 64))
    assert apart.sharing is None
    assert json.loads(predict_json(apart))["sharing"] is None
    found, sharing = shared.together, shared.sharing
    assert found is not None
    assert sharing is not None
    assert (sharing.prompt_tokens, sharing.read_tokens, sharing.apart) == (640, 640 - 7 * 64, apart.together)
    assert found.seconds < 0.8 * sharing.apart.seconds
    assert "448 of 640 tokens are not read (70 %)" in " ".join(predict_text(shared).split())
    assert json.loads(predict_json(shared))["sharing"]["read_tokens"] == 192
    whole = asked(models, **lengths, shared_prefix=80)  # one prompt, whose last token is read by each
    assert whole.sharing is not None
    assert whole.sharing.read_tokens == 80 + 7
    for more in (
        {"board": "rk3588", "place": "target=gpu,draft=cpu"},
        {"shared_prefix": 7},
    ):  # every slot has rows of its own there; too few to copy
        nothing = asked(models, **{**lengths, "shared_prefix": 64, **more})
        assert nothing.sharing is not None
        assert nothing.sharing.apart == nothing.together
        assert "is read by each" in " ".join(predict_text(nothing).split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"shared_prefix": 9}, "--shared-prefix is what several prompts begin with: give --requests, too"),
        (
            {"requests": 2, "prompt_tokens": 64, "shared_prefix": 65},
            "--shared-prefix 65: must be 1 to 64, the tokens of a prompt",
        ),
        (
            {"requests": 2, "prompt_tokens": 64, "shared_prefix": 0},
            "--shared-prefix 0: must be 1 to 64, the tokens of a prompt",
        ),
        ({"requests": 0}, "--requests 0: must be 1 to 64 at a time"),
        ({"requests": 3, "slots": 2}, "--slots 2: must be 3, the requests, to 64"),
        ({"branch": 0.5}, "--branch is of drafts in a free slot: give --slots, and --ngram-alpha or --draft"),
        ({"slots": 4, "branch": 1.5, "ngram_alpha": 0.5}, "--branch 1.5: must be 0 to 1"),
        ({"requests": 65}, "--requests 65: must be 1 to 64 at a time"),
    ],
)
def test_requests_that_no_bundle_answers(models: dict[str, Path], more: dict[str, Any], message: str) -> None:
    assert refusal(models, **more) == message
