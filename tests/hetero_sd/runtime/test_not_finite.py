"""Logits that are NaN or infinite: the target's stop the run, the drafter's only the drafting."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.policy import FixedGamma
from hetero_sd.runtime.decode.sampling import Sampling
from hetero_sd.runtime.decode.speculate import speculate
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.manifest import MANIFEST, read_manifest, write_manifest
from hetero_sd.runtime.model.protocol import NotFiniteError
from hetero_sd.runtime.model.weights import Weights

GREEDY, SAMPLED = Sampling(), Sampling(1.0, seed=3)
BAD = [np.nan, np.inf, -np.inf]


def text(target: Any, draft: Any, sampling: Sampling, prompt: tuple[int, ...] = (1, 2)) -> tuple[list[int], Trace]:
    trace, request = Trace(), Request(40, frozenset(), sampling)
    stream = (
        generate(target, prompt, request, trace)
        if draft is None
        else speculate(target, ModelDrafter(draft, target.vocab, sampling), prompt, request, FixedGamma(3), trace)
    )
    return list(stream), trace


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("speculative", [False, True])
@pytest.mark.parametrize("bad", BAD)
def test_the_target_stops_the_generation(
    pair: Callable[..., Any], sampling: Sampling, speculative: bool, bad: float
) -> None:
    target, draft = pair(0, 0.5)
    draft = draft if speculative else None
    assert len(text(target, draft, sampling)[0]) == 40  # the negative control: finite logits
    target.table[:, 2] = bad
    with pytest.raises(NotFiniteError, match="the target computed logits that are not finite"):
        text(target, draft, sampling)


@pytest.mark.parametrize("bad", BAD)
def test_a_drafter_that_is_lost_changes_no_greedy_token(pair: Callable[..., Any], bad: float) -> None:
    """Wherever the text comes to the bad row: in the prompt, at the first drafted token or after some."""
    drafted_before = []
    for row in range(11):
        target, draft = pair(row, 0.5)
        wanted, trace = text(target, draft, GREEDY)
        assert trace.lost_drafter is None
        draft.table[row, 1] = bad
        found, trace = text(target, draft, GREEDY)
        assert found == wanted
        if trace.lost_drafter is not None:
            assert "the draft computed logits that are not finite" in trace.lost_drafter
            last = max((i for i, r in enumerate(trace.rounds) if r.drafted), default=-1)
            assert len(trace.rounds) > last + 2
            drafted_before.append(sum(r.drafted for r in trace.rounds))
    assert len(drafted_before) >= 8
    assert min(drafted_before) == 0
    assert max(drafted_before) > 3


def test_a_lost_drafter_leaves_the_targets_law(pair: Callable[..., Any]) -> None:
    """Frequencies of the third token with a drafter that is lost while it drafts, against the target's own."""
    counts = np.zeros((2, 4))
    for seed in range(1500):
        for which in range(2):
            target, draft = pair(5, 0.5, vocab=4, states=5)
            draft.table[3, 0] = np.nan
            found, _ = text_of(target, draft if which else None, seed)
            counts[which, found[2]] += 1
    share = counts / counts.sum(1, keepdims=True)
    assert np.abs(share[0] - share[1]).max() < 0.06  # standard error of a difference: 0.018


def text_of(target: Any, draft: Any, seed: int) -> tuple[list[int], Trace]:
    trace, request = Trace(), Request(3, frozenset(), Sampling(1.0, seed=seed))
    if draft is None:
        return list(generate(target, [1], request, trace)), trace
    return list(
        speculate(target, ModelDrafter(draft, target.vocab, request.sampling), [1], request, FixedGamma(2), trace)
    ), trace


MODES = {
    "target alone": ["--mode", "target-only"],
    "speculative": ["--gamma", "2"],
    "live": [],
    "sampled": ["--mode", "target-only", "--temperature", "0.8", "--seed", "1"],
    "sampled, speculative": ["--gamma", "2", "--temperature", "0.8", "--seed", "1"],
    "json": ["--json"],
    "saved": ["--save-logits", "LOGITS"],
}


@pytest.fixture
def spoil(tiny_pair: Path, tmp_path: Path) -> Callable[[str, float], Path]:
    """Copies the pair with the first number of a model's last norm replaced, and their manifest written again."""

    def copy(role: str, value: float) -> Path:
        folder = tmp_path / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tiny_pair, folder)
        path = folder / "weights" / f"{role}.safetensors"
        (name,) = [n for n in Weights(path) if n.endswith("model.norm.weight")]
        with path.open("r+b") as file:
            file.seek(Weights(path).entry(name).offset)
            file.write(np.float32(value).tobytes())
        found = read_manifest(folder / MANIFEST)  # else the weights are refused as damaged
        write_manifest(folder, found.models, found.plan, found.tokenizer, found.board)
        return folder

    return copy


def run(worker: Any, folder: Path, mode: str) -> dict[str, Any]:
    prompts = folder.parent / "prompts.jsonl"
    prompts.write_text('{"token_ids": [1, 5, 9]}\n{"token_ids": [2, 3, 4, 5, 6, 7, 8]}\n')
    options = [o.replace("LOGITS", str(folder.parent / "logits")) for o in MODES[mode]]
    outcome: dict[str, Any] = worker.run(folder, "--prompts", str(prompts), "--max-new-tokens", "8", *options)
    return outcome


@pytest.mark.parametrize("mode", MODES)
def test_a_bundle_of_nan_ends_with_3(
    spoil: Callable[[str, float], Path], tiny_pair: Path, worker: Any, mode: str, tmp_path: Path
) -> None:
    intact = run(worker, tiny_pair, mode)
    assert (intact["code"], intact["err"]) == (0, "")
    assert intact["out"].count("\n") >= 2
    (tiny_pair.parent / "logits").unlink(missing_ok=True)
    for value in (np.nan, np.inf, 3e38):  # the last is finite, the logits are not
        spoilt = run(worker, spoil("target", value), mode)
        assert spoilt["code"] == 3, spoilt
        assert spoilt["err"].startswith("run.py: error: the target computed logits that are not finite after ")
        assert spoilt["err"].count("\n") == 1
        assert not (tmp_path / "logits").exists()


@pytest.mark.parametrize("mode", [mode for mode in MODES if "alone" not in mode and mode != "sampled"])
def test_a_drafter_of_nan_is_left_out(
    spoil: Callable[[str, float], Path], tiny_pair: Path, worker: Any, mode: str
) -> None:
    folder = spoil("draft", np.nan)
    spoilt = run(worker, folder, mode)
    assert spoilt["code"] == 0, spoilt
    lines = spoilt["err"].splitlines()
    assert len(lines) == (2 if "--gamma" in MODES[mode] else 1), "one for each prompt, or before all of them"
    assert all(line.startswith("run.py: note: the draft computed logits that are not finite") for line in lines)
    if "sampled" not in mode and mode != "json":
        assert spoilt["out"] == run(worker, tiny_pair, "target alone")["out"]
