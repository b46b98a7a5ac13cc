"""Everything around a verdict tells of one variant."""

from __future__ import annotations

from typing import Any

import pytest

from costmodel.question import Question
from costmodel.schema.plan import OVERLAPPED
from costmodel.speculative import expected_tokens
from hetero_sd.predict.chrome_trace import round_spans
from hetero_sd.predict.known_models import known_model
from hetero_sd.predict.predict import Prediction, predict
from hetero_sd.predict.story import gain_over_baseline, outcome_text, outcomes, relative_cost
from targets.boards import load_board


def pair(board: str, alpha: float = 0.8, target: str = "Qwen2.5-1.5B", draft: str = "Qwen2.5-0.5B") -> Question:
    models = [known_model(name, "float16") for name in (target, draft)]
    return Question(load_board(board), (models[0],), (models[1],), alpha)


@pytest.fixture(scope="module", params=["imx95", "rk3588"])
def drafting(request: Any) -> Prediction:
    p = predict(pair(request.param, 0.85))
    assert p.decision.best.draft is not None
    return p


def test_the_map_and_the_answer_agree(drafting: Prediction) -> None:
    """The map's value where this pair is marked is the speed over the baseline that the verdict states."""
    best = drafting.decision.best
    c = relative_cost(drafting, best)
    assert gain_over_baseline(drafting, best)(0.85, c) == pytest.approx(best.against_best, rel=0.03)
    assert gain_over_baseline(drafting, best)(0.85, 3 * c) < 0.97 * best.against_best  # the control: a slower drafter


def test_c_is_over_the_baseline_not_over_a_slower_target() -> None:
    """Point 12 of issue 12: with the target on a slower processor, c must not shrink."""
    p = predict(pair("imx95", 0.85))
    speculative = [v for v in p.decision.leading if v.draft_placement is not None and v.draft is not None]
    slow = min(speculative, key=lambda v: v.against_best / v.against_same)  # the target alone is slowest there
    assert slow.draft is not None
    assert slow.draft_placement is not None
    own = p.search.costs(slow.draft).step_s(slow.draft_placement, 1)
    alone = p.search.costs(slow.target).step_s(slow.target_placement, 1)
    assert alone > 1.2 / p.decision.baseline.tokens_per_s
    assert relative_cost(p, slow) == pytest.approx(own * p.decision.baseline.tokens_per_s)
    assert relative_cost(p, slow) > 1.2 * own / alone


def test_a_round_shows_how_it_ends(drafting: Prediction) -> None:
    """Weights, tokens and time of the ways to end are those of the round that the verdict rests on."""
    best = drafting.decision.best
    found = outcomes(drafting, best)
    assert [o.tokens for o in found] == list(range(best.gamma + 1, 0, -1))
    assert sum(o.weight for o in found) == pytest.approx(1)
    assert sum(o.weight * o.tokens for o in found) == pytest.approx(best.round.tokens)
    assert best.round.tokens == pytest.approx(expected_tokens(0.85, best.gamma))
    assert found[0].weight == pytest.approx(0.85**best.gamma)
    drafts = [span for span in round_spans(drafting) if span[1].startswith("draft")]
    if best.mode == OVERLAPPED:
        (verify,) = [span for span in round_spans(drafting) if span[1].startswith("verify")]
        assert drafts[0][2] == verify[2] == 0
        assert drafts[0][0] != verify[0]
        assert len({span[1] for span in drafts}) == best.gamma + 1
    else:
        later = sum(span[3] for span in drafts[len(drafts) // best.gamma :])
        assert sum(o.weight * o.first_draft_s for o in found) + later == pytest.approx(best.round.draft_s)
    assert found[0].first_draft_s > found[-1].first_draft_s  # the control: a hit costs the drafter more
    text = outcome_text(drafting, best)
    assert text.startswith(f"{best.gamma + 1} tokens with {100 * 0.85**best.gamma:.0f} %, {best.gamma} with ")
