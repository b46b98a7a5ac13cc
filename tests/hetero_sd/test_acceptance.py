from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodel.speculative import expected_tokens
from hetero_sd.acceptance import ReferenceDecoder
from hetero_sd.acceptance_rate import judge, summary
from hetero_sd.cli import main
from hetero_sd.predict.inputs import read_alpha_file
from hetero_sd.runtime.decode.trace import Round
from targets.errors import UserError

EXPORTS = Path(__file__).parent.parent / "data" / "exports"
TARGET, DRAFT = EXPORTS / "llama-dynamo-fp32", EXPORTS / "llama-drafter-dynamo-fp32"


def rounds(*pairs: tuple[int, int]) -> list[Round]:
    return [Round(drafted, accepted, 0.0, 0.0, 0.0, 0.0) for drafted, accepted in pairs]


def test_verdicts_by_hand() -> None:
    found = judge(rounds((3, 0), (3, 2), (3, 3), (2, 2), (0, 0)), gamma=3)
    # position 1 is judged in 4 rounds and passed in 3; 2 in 3 and 3; 3 in 2 (the last round drafted two) and 1
    assert found.seen == (4, 3, 2)
    assert found.passed == (3, 3, 1)
    assert (found.rounds, found.tokens) == (4, 1 + 3 + 4 + 3)


def test_summary_recovers_a_scripted_acceptance() -> None:
    rng = np.random.default_rng(0)
    truth, prompts = [0.9, 0.6, 0.7], []
    for _ in range(40):
        scripted = []
        for _ in range(50):
            accepted = 0
            while accepted < 3 and rng.random() < truth[accepted]:
                accepted += 1
            scripted.append((3, accepted))
        prompts.append(judge(rounds(*scripted), 3))
    found = summary(prompts, 3)
    assert found["alpha_by_position"] == pytest.approx(truth, abs=0.03)
    assert all(low <= a <= high for a, (low, high) in zip(truth, found["interval_by_position"], strict=True))
    assert found["tokens_per_round"]["measured"] == pytest.approx(expected_tokens(truth, 3), rel=0.03)
    assert found["tokens_per_round"]["by_position"] == pytest.approx(found["tokens_per_round"]["measured"], rel=1e-9)
    assert found["interval"][0] < found["alpha"] < found["interval"][1]


def test_nothing_judged_is_refused() -> None:
    with pytest.raises(UserError, match="no drafted token was judged"):
        summary([judge([], 4)], 4)


def test_rolling_back_gives_the_same_logits() -> None:
    model = ReferenceDecoder(TARGET / "model.onnx", 64)
    first = model.forward([5, 6, 7, 8], 0)
    again = model.forward([7, 8], 2)
    np.testing.assert_allclose(again, first[2:], atol=1e-4)
    assert not np.allclose(model.forward([9, 8], 2)[1], first[3], atol=1e-4)


def measured(tmp_path: Path, draft: Path, *more: str) -> Any:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "alpha.json"
    prompts.write_text("\n".join(json.dumps({"token_ids": [3 + i, 40, 17]}) for i in range(3)))
    arguments = [str(TARGET / "model.onnx"), str(draft / "model.onnx"), "--prompts", str(prompts), "--json"]
    sizes = ["--max-new-tokens", "12", "--gamma", "3", "--eos", "511", "--out", str(out)]
    assert main(["acceptance", *arguments, "--tokenizer", str(TARGET), *sizes, *more]) == 0
    return json.loads(out.read_text())


def test_a_model_accepts_its_own_drafts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(tmp_path, TARGET)
    assert json.loads(capsys.readouterr().out) == found
    assert found["greedy"]["alpha"] == 1.0
    assert found["sampled"]["alpha"] == 1.0
    assert found["greedy"]["tokens_per_round"]["by_position"] == 4.0


def test_a_model_does_not_accept_all_that_it_drafts_in_four_bits(tmp_path: Path) -> None:
    four = measured(tmp_path, TARGET, "--quantise-draft", "int4", "--temperature", "0")
    assert four["greedy"]["alpha"] < 1
    both = measured(tmp_path, TARGET, "--quantise", "int4", "--temperature", "0")
    assert both["greedy"]["alpha"] == 1


def test_another_drafter_is_accepted_less_and_feeds_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(tmp_path, DRAFT)
    assert found["greedy"]["alpha"] < 1.0
    read = read_alpha_file(tmp_path / "alpha.json")
    assert read.source == "measured, alpha.json"
    assert list(read.alpha) == found["greedy"]["alpha_by_position"]
    sampled = read_alpha_file(tmp_path / "alpha.json", sampled=True)
    assert list(sampled.alpha) == found["sampled"]["alpha_by_position"]
    models = [str(TARGET / "config.json"), "--draft", str(DRAFT / "config.json"), "--weights", "float32"]
    capsys.readouterr()
    assert main(["predict", *models, "--board", "rpi5", "--alpha-file", str(tmp_path / "alpha.json")]) == 0
    assert "measured, alpha.json" in capsys.readouterr().out


def test_greedy_alone(tmp_path: Path) -> None:
    assert measured(tmp_path, DRAFT, "--temperature", "0")["sampled"] is None
    with pytest.raises(UserError, match="nothing was measured for sampled decoding"):
        read_alpha_file(tmp_path / "alpha.json", sampled=True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--gamma", "17"], "--gamma 17"),
        (["--max-new-tokens", "1"], "--max-new-tokens 1"),
        (["--temperature", "-1"], "--temperature -1"),
        (["--prompts", "/nowhere"], "cannot read /nowhere"),
        (["--tokenizer", "/nowhere"], "there is no tokenizer"),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\n")
    models = [str(TARGET / "model.onnx"), str(DRAFT / "model.onnx")]
    given = ["--prompts", str(prompts), "--tokenizer", str(TARGET), "--eos", "1"]
    assert main(["acceptance", *models, *given, *more]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize(("calls", "expected"), [(0, "nothing"), (6, "greedy"), (100, "both")])
def test_what_was_judged_until_ctrl_c_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, calls: int, expected: str
) -> None:
    """The interrupt comes at the k-th forward pass after the models were loaded."""
    left = [calls + 2]  # one pass of each model tells its vocabulary
    original = ReferenceDecoder.submit

    def submit(self: ReferenceDecoder, *given: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] < 2:
            raise KeyboardInterrupt
        return original(self, *given, **more)

    monkeypatch.setattr(ReferenceDecoder, "submit", submit)
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "alpha.json"
    prompts.write_text("\n".join(json.dumps({"token_ids": [3 + i, 40, 17]}) for i in range(3)))
    given = ["--prompts", str(prompts), "--tokenizer", str(TARGET), "--eos", "511", "--out", str(out)]
    sizes = ["--max-new-tokens", "12", "--gamma", "3"]
    assert main(["acceptance", str(TARGET / "model.onnx"), str(DRAFT / "model.onnx"), *given, *sizes]) == 130
    shown = capsys.readouterr().out
    if expected == "nothing":
        assert (shown, out.exists()) == ("", False)
        return
    found = json.loads(out.read_text())
    assert shown.startswith(f"partial: {found['partial']}\ngreedy: acceptance")
    assert 0 < found["greedy"]["rounds"]
    assert read_alpha_file(out).alpha
    assert read_alpha_file(out).source == "measured, in part: it was interrupted, alpha.json"
    whole = 3
    if expected == "greedy":
        assert found["sampled"] is None
        assert "of 3 of the greedy run" in found["partial"]
        assert found["greedy"]["prompts"] < whole
    else:
        assert found["greedy"]["prompts"] == whole
        assert "of 3 of the sampled run" in found["partial"]


def test_a_folder_that_is_missing_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "missing" / "alpha.json")
    assert main(["acceptance", "/nowhere.onnx", "/nowhere.onnx", "--prompts", "/nowhere", "--out", missing]) == 2
    assert "there is no folder" in capsys.readouterr().err
