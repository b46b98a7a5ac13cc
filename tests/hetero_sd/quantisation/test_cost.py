"""What quantising costs: by hand on distributions of three tokens, and on the pair."""

from __future__ import annotations

import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hetero_sd import reference
from hetero_sd.progress import Progress
from hetero_sd.quantisation.cost import (
    Texts,
    encode_texts,
    log_softmax,
    measure_cost,
    model_cost,
    pair_cost,
)
from hetero_sd.quantisation.recipes import Quantisation
from hetero_sd.quantisation.stored_rows import RowsFile
from targets.errors import UserError

EXPORTS = Path(__file__).parents[2] / "data" / "exports"
SOURCES = {
    "target": EXPORTS / "llama-dynamo-fp32" / "model.onnx",
    "draft": EXPORTS / "llama-drafter-dynamo-fp32" / "model.onnx",
}
TEXTS = Texts("two texts", ([3, 4, 5, 6, 7], [8, 9, 10]))


def rows(*distributions: list[float]) -> np.ndarray:
    return np.log(np.array(distributions)).astype(np.float32)


FLOAT = [rows([0.5, 0.25, 0.25], [0.2, 0.6, 0.2])]
OURS = [rows([0.25, 0.5, 0.25], [0.2, 0.6, 0.2])]


def test_log_softmax() -> None:
    found = log_softmax(np.array([[0, math.log(3), 0], [1000, 0, 0]], np.float32))
    assert np.allclose(np.exp(found), [[0.2, 0.6, 0.2], [1, 0, 0]], atol=1e-6)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_one_model_by_hand() -> None:
    """First row: 0.5 ln 2 + 0.25 ln 0.5 = 0.25 ln 2; the text's second token is 1, with 0.25 and 0.5."""
    cost = model_cost("r", "float", [[0, 1]], FLOAT, OURS)
    assert cost.kl_nats == pytest.approx(0.25 * math.log(2) / 2, rel=1e-5)
    assert cost.float_perplexity == pytest.approx(4, rel=1e-5)
    assert cost.perplexity == pytest.approx(2, rel=1e-5)
    assert cost.agreement == 0.5
    same = model_cost("r", "float", [[0, 1]], FLOAT, FLOAT)
    assert (same.kl_nats, same.agreement) == (0, 1)
    assert model_cost("r", "float", [[0]], [FLOAT[0][:1]], [OURS[0][:1]]).perplexity is None


def test_a_pair_by_hand() -> None:
    """Sampled: 0.25 + 0.25 + 0.25 and 1; the drafter has one token less in its vocabulary in the second case."""
    pair = pair_cost({"target": FLOAT, "draft": FLOAT}, {"target": FLOAT, "draft": OURS})
    assert (pair.float_greedy, pair.float_sampled) == (1, pytest.approx(1))
    assert pair.greedy == 0.5
    assert pair.sampled == pytest.approx((0.75 + 1) / 2, rel=1e-5)
    fewer = [rows([0.5, 0.5], [0.5, 0.5])]
    assert pair_cost({"target": FLOAT, "draft": fewer}, {"target": FLOAT, "draft": fewer}).sampled == pytest.approx(
        (0.5 + 0.25 + 0.2 + 0.5) / 2, rel=1e-5
    )


def test_more_bits_cost_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one model is in memory at a time: no other one is there when the next is loaded."""
    there, most = weakref.WeakSet[Any](), []

    class Watched(reference.ReferenceModel):
        def __init__(self, *given: Any, **more: Any) -> None:
            there.add(self)
            super().__init__(*given, **more)
            there.add(self._session)
            most.append(len(there))

    monkeypatch.setattr(reference, "ReferenceModel", Watched)

    def cost(quantise: str):
        quantisation = Quantisation.of(quantise, None, None, SOURCES)
        activations = dict.fromkeys(SOURCES, "float")
        return measure_cost(SOURCES, quantisation, activations, TEXTS, tmp_path, Progress(quiet=True))

    four, eight = cost("int4"), cost("int8")
    assert most == [2] * 8  # a model and its session
    assert list(tmp_path.iterdir()) == []  # the rows' file has no name
    assert four.tokens == 8
    for role in SOURCES:
        assert 0 < 20 * eight.models[role].kl_nats < four.models[role].kl_nats
        assert eight.models[role].perplexity == pytest.approx(eight.models[role].float_perplexity, rel=0.05)
    assert four.pair is not None
    assert eight.pair is not None
    assert four.pair.float_sampled == eight.pair.float_sampled
    assert abs(eight.pair.sampled - eight.pair.float_sampled) < 0.02


def test_only_the_drafter_is_quantised(tmp_path: Path) -> None:
    quantisation = Quantisation.of(None, None, "int8", SOURCES)
    activations = {"target": "float", "draft": "int8"}
    cost = measure_cost(SOURCES, quantisation, activations, TEXTS, tmp_path, Progress(quiet=True))
    assert list(cost.models) == ["draft"]
    assert cost.models["draft"].activations == "int8"
    assert list(quantisation.scales) == ["draft"]
    assert len(quantisation.scales["draft"]) == 9  # the scales that the compiler takes, too


def test_rows_in_a_file_are_as_rows_in_memory(tmp_path: Path) -> None:
    """40 rows: three parts of those that are compared at once."""
    drawn = np.random.default_rng(0)
    exact, ours = ([log_softmax(drawn.standard_normal((40, 7))) for _ in range(2)] for _ in range(2))
    encoded = [drawn.integers(0, 7, 40).tolist() for _ in range(2)]
    file = RowsFile(tmp_path)
    stored = [[file.add([text[:11], text[11:]]) for text in rows] for rows in (exact, ours)]
    assert all(np.array_equal(kept[:], text) for kept, text in zip(stored[0], exact, strict=True))
    assert np.array_equal(stored[1][0][5:9], ours[0][5:9])
    assert model_cost("r", "float", encoded, *stored) == model_cost("r", "float", encoded, exact, ours)
    whole = (
        -np.concatenate([r[np.arange(39), ids[1:]] for r, ids in zip(ours, encoded, strict=True)])
        .astype(np.float64)
        .mean()
    )
    assert model_cost("r", "float", encoded, exact, ours).perplexity == pytest.approx(math.exp(whole), rel=1e-12)


def test_texts(tmp_path: Path) -> None:
    folder = EXPORTS / "llama-dynamo-fp32"
    ours = encode_texts(None, folder)
    assert 100 < sum(map(len, ours.encoded)) <= 512
    assert "hetero-sd" in ours.source
    assert [len(ids) for ids in ours.within(5).encoded] == [5] * len(ours.encoded)
    (tmp_path / "p.jsonl").write_text('{"token_ids": [1, 2, 3]}\n{"prompt": "The dog sleeps."}\n')
    given = encode_texts(tmp_path / "p.jsonl", folder)
    assert given.encoded[0] == [1, 2, 3]
    assert len(given.encoded) == 2
    with pytest.raises(UserError, match="cannot read"):
        encode_texts(tmp_path / "none.txt", folder)
