"""A compiled pair, the target on one core and the drafter on the GPU's backend: the same text in every mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import hetero_sd
from hetero_sd.cli import main
from hetero_sd.compile import compile as compile_module
from hetero_sd.runtime.manifest import Bundle
from tests.support.host_with_gpu import host_with_gpu

EXPORTS = Path(__file__).resolve().parents[3] / "data" / "exports"
PROMPTS = ([5, 6, 7, 8], [100], list(range(40, 72)))
NEW_TOKENS = 40
GAMMA = 3


@pytest.fixture(scope="module")
def bundle(opencl: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two") / "bundle"
    target, draft = (EXPORTS / name for name in ("llama-dynamo-fp32", "llama-drafter-dynamo-fp32"))
    models = ["compile", str(target / "model.onnx"), "--draft", str(draft / "model.onnx"), "--tokenizer", str(target)]
    given = ["--board", "host", "--context", "80", "--gamma", str(GAMMA), "--place", "target=cpu,draft=gpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile_module, "load_board", lambda name, measure: host_with_gpu())
        assert main([*models, *given, "--out", str(out)]) == 0
    return out


def answered(bundle: Path, **settings: Any) -> tuple[list[list[int]], int, int, dict[str, str]]:
    """The answers' tokens, how many were drafted and accepted, and where each model ran."""
    tokens, drafted, accepted = [], 0, 0
    with hetero_sd.load(bundle, threads=1, **settings) as session:
        for prompt in PROMPTS:
            answer = session.generate(prompt, max_new_tokens=NEW_TOKENS)
            answer.read()
            tokens.append(answer.token_ids)
            drafted, accepted = drafted + answer.stats["drafted"], accepted + answer.stats["accepted"]
        return tokens, drafted, accepted, session.lanes


@pytest.mark.slow
def test_the_text_is_the_same_in_every_mode(bundle: Path, released: None) -> None:
    models = Bundle(bundle).models
    assert {role: model.place.text for role, model in models.items()} == {"target": "cpu", "draft": "gpu"}
    alone, nothing, _, _ = answered(bundle, mode="off")
    assert nothing == 0
    assert len({tuple(tokens) for tokens in alone}) == len(PROMPTS)
    waiting = [{"mode": "overlapped", "gamma": GAMMA, "least": least} for least in (1, GAMMA)]
    for settings in ({"mode": "sequential", "gamma": GAMMA}, *waiting):
        found, drafted, accepted, lanes = answered(bundle, **settings)
        assert found == alone, settings
        assert 0 < accepted < drafted, settings  # so caches were rolled back
        assert lanes["target"].startswith("CPU")
        assert lanes["draft"].startswith("GPU")
    for settings in ({"mode": "overlapped", "gamma": GAMMA, "least": 0}, {"mode": "auto"}):
        assert answered(bundle, **settings)[0] == alone, settings  # a slow drafter may never come to a draft
