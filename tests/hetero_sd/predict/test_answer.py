"""The answer: what would change it, how sure it is, and that everything around it tells of one variant."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from costmodel.question import Question
from costmodel.search import Search
from costmodel.speculative import expected_tokens
from costmodel.uncertainty import alpha_bounds
from hetero_sd.predict.changes import Change, kind, what_would_change
from hetero_sd.predict.chrome_trace import round_spans
from hetero_sd.predict.known_models import known_model
from hetero_sd.predict.predict import Prediction, predict
from hetero_sd.predict.sentences import change_notes
from hetero_sd.predict.story import gain_over_baseline, outcome_text, outcomes, relative_cost
from targets.boards import load_board

FACTORS = {
    "DRAM bandwidth": ("bandwidth", "bandwidth_one_thread"),
    "time of the CPU": ("compute", "attention", "serial"),
    "bandwidth of GPU": ("gpu_bandwidth",),
    "arithmetic of GPU": ("gpu_compute", "gpu_attention"),
    "dispatch": ("gpu_dispatch",),
}


def pair(board: str, alpha: float = 0.8, target: str = "Qwen2.5-1.5B", draft: str = "Qwen2.5-0.5B") -> Question:
    models = [known_model(name, "float16") for name in (target, draft)]
    return Question(load_board(board), (models[0],), (models[1],), alpha)


def moved(question: Question, change: Change, value: float) -> Question:
    """The question with that input at another value."""
    if change.name == "acceptance":
        return replace(question, alpha=value)
    names = next(names for start, names in FACTORS.items() if change.name.startswith(start))
    scaled = {name: getattr(question.factors, name) * value / change.now for name in names}
    return replace(question, factors=replace(question.factors, **scaled))


def fastest_whole(question: Question) -> tuple[object, ...]:
    """The kind of the fastest variant with whole models, by looking at every thread count and draft length."""
    search, found = Search(question), []
    (target,), (draft,) = question.targets, question.drafts
    for group in search.groups():
        for here in group:
            place = search.costs(target).whole(here)
            found.append(search.price("target-only", target, place))
            for there in group:
                drafter = search.costs(draft).whole(there)
                found += [search.price("sequential", target, place, draft, drafter, g) for g in range(1, 9)]
    return kind(max(found, key=lambda v: v.tokens_per_s))


@pytest.mark.parametrize(("board", "alpha"), [("rpi5", 0.8), ("imx95", 0.9), ("rpi5", 0.3)])
def test_the_verdict_flips_where_it_is_said_to(board: str, alpha: float) -> None:
    """Every whole placement on either side of the value: another answer beyond it, and the same before it."""
    p = predict(pair(board, alpha))
    search = p.search
    decision = search.decide()
    found = what_would_change(search, decision, p.alphas)
    assert 1 <= len(found) <= 3
    assert [c.errors for c in found] == sorted(c.errors for c in found)
    flips = [c for c in found if c.flips_at is not None]
    assert flips
    for change in flips:
        assert change.flips_at is not None
        ends = [moved(search.question, change, change.now + (change.flips_at - change.now) * s) for s in (0.97, 1.03)]
        before, after = map(fastest_whole, ends)
        assert before == kind(decision.best), change
        assert after != kind(decision.best), change


def test_an_input_that_nothing_rests_on_flips_nothing() -> None:
    alone = Question(load_board("rpi5"), (known_model("Qwen2.5-0.5B", "float16"),))
    search = Search(replace(alone, one_process=True, overlapped=False))
    assert what_would_change(search, search.decide(), None) == ()  # there is one way to run it


def test_changes_in_words() -> None:
    p = predict(pair("rpi5"))
    flips = Change("acceptance", "", 0.8, 0.5612, 0.0, 1.0, "M on a76 alone", 2.0)
    same = Change("dispatch of a GPU kernel", "us", 6.0, None, 0.75, 48.0, "", math.inf)
    assert change_notes(replace(p, changes=(flips, same))) == [
        "acceptance: 0.8 now; below 0.561 M on a76 alone is faster",
        "dispatch of a GPU kernel: 6 us now; nothing flips between 0.75 us and 48 us",
    ]
    tied = replace(p, changes=(flips,), decision=replace(p.decision, tied=p.decision.best))
    assert change_notes(tied) == ["acceptance: 0.8 now; below 0.561 the tie with M on a76 alone ends"]


# -- the interval --------------------------------------------------------------------------------------------------


def test_the_interval_holds_an_acceptance_that_nobody_measured() -> None:
    question = pair("rpi5")
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
    from targets.device import Board

    spec = known_model("Qwen2.5-0.5B", "int4")
    board = load_board("rpi5")
    fact = {"value": 1.0, "kind": "measured", "source": "fitted"}
    fitted = Board.from_json(board.to_json() | {"factors": {"compute": fact}})
    errors = []
    for each in (board, fitted):
        p = predict(Question(each, (spec,)))
        found = {i.number: i.error for i in p.intervals[0].influences}
        errors.append(found["clusters.a76.core.fp32_flops_per_cycle"])
    kind_error = {"datasheet": 0.10, "assumed": 0.30, "measured": 0.05}[
        board.provenance["clusters.a76.core.fp32_flops_per_cycle"].kind
    ]
    assert errors == pytest.approx([math.hypot(kind_error, 0.30), math.hypot(kind_error, 0.05)])


# -- one variant, one story ----------------------------------------------------------------------------------------


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
    later = sum(span[3] for span in drafts[len(drafts) // best.gamma :])
    assert sum(o.weight * o.first_draft_s for o in found) + later == pytest.approx(best.round.draft_s)
    assert found[0].first_draft_s > found[-1].first_draft_s  # the control: a hit costs the drafter more
    text = outcome_text(drafting, best)
    assert text.startswith(f"{best.gamma + 1} tokens with {100 * 0.85**best.gamma:.0f} %, {best.gamma} with ")
