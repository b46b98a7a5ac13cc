"""Requests that come together, counted out: against sums by hand, and what more rows, prompts and a bound do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from costmodel.batch_text import Drafting, ModelDrafting
from costmodel.batch_throughput import Requests, Throughput, throughput
from costmodel.schema.batch import BatchPrediction
from costmodel.speculative import RoundCosts, sequential_round

ROWS = {1: (2.0, 0.01), 2: (2.2, 0.01), 4: (2.4, 0.01), 8: (3.0, 0.01)}
CALLS = BatchPrediction(ROWS, {8: (3.0, 0.02), 32: (6.0, 0.05)}, 0.1)


def test_one_request_is_its_own_time() -> None:
    """A prompt of 40 tokens in a chunk and a piece of 8, then four steps after 40 to 43 tokens; each with the loop."""
    found = throughput(Requests(1, 40, 5), 1, CALLS, 100.0)
    steps = [2.0 + 0.01 * past for past in (40, 41, 42, 43)]
    reading = 6.0 + 3.0 + 0.02 * 32
    assert found.seconds == pytest.approx(reading + sum(steps) + 5 * 0.1)
    assert found.first_token_s == pytest.approx(reading + 2 * 0.1)
    assert found.gap_s == pytest.approx(sum(steps) / 4 + 3 / 4 * 0.1)  # the first follows in the same round
    assert found.prompt_share == pytest.approx(reading / found.seconds)
    assert found.tokens_per_s == pytest.approx(found.alone_tokens_per_s, rel=0.02)


def test_eight_requests_fill_the_rows_of_eight() -> None:
    alone, together = (throughput(Requests(n, 1, 50), n, replace(CALLS, round_s=0.0), 100.0) for n in (1, 8))
    assert together.rows_filled == 1.0
    assert together.seconds == pytest.approx(50 * 3.0 + 0.08 * sum(range(50)))
    assert together.alone_s == pytest.approx(8 * (alone.seconds - 2.0 + 3.0))  # alone a prompt of one token is read
    seven = throughput(Requests(7, 1, 50), 8, CALLS, 100.0)
    assert seven.rows_filled == pytest.approx(7 / 8)


def test_attention_of_longer_contexts_and_prompts_take_time() -> None:
    short, long = (throughput(Requests(8, n, 50), 8, CALLS) for n in (64, 640))
    assert long.tokens_per_s < 0.5 * short.tokens_per_s
    assert long.prompt_share > short.prompt_share
    free = replace(CALLS, row_calls={n: (s, 0.0) for n, (s, _) in CALLS.row_calls.items()})
    assert throughput(Requests(8, 640, 50), 8, free).seconds < long.seconds


@pytest.mark.parametrize("bound_s", [9.5, 12.0, 30.0])
def test_the_bound_holds_where_it_can_and_costs_throughput(bound_s: float) -> None:
    asked, calls = Requests(12, 100, 40), replace(CALLS, round_s=0.0)
    found = throughput(asked, 8, calls, bound_s)
    assert found.longest_gap_s <= bound_s * 1.35  # rows are longer when the texts are: the plan is for the mean
    assert throughput(asked, 8, calls, 1000.0).longest_gap_s > bound_s  # the negative control


@pytest.mark.parametrize("alpha", [0.3, 0.7, 0.9])
def test_one_text_that_drafts_is_the_round_of_the_single_formula(alpha: float) -> None:
    calls = replace(CALLS, row_calls={n: (s, 0.0) for n, (s, _) in ROWS.items()})
    costs = RoundCosts(0.0, 0.0, lambda n: calls.row_call_s(calls.row_width(n), 0.0), dispatch_s=calls.round_s)
    best = max((sequential_round(alpha, gamma, costs) for gamma in range(8)), key=lambda r: r.tokens_per_s)
    found = throughput(Requests(1, 8, 4000), 1, calls, 100.0, Drafting(alpha))
    assert found.gap_s == pytest.approx(1 / best.tokens_per_s, rel=0.01)
    assert found.drafted_per_round == pytest.approx(best.gamma, rel=0.01)
    plain = throughput(Requests(1, 8, 4000), 1, calls, 100.0)
    assert found.tokens_per_s > plain.tokens_per_s
    half = throughput(Requests(1, 8, 4000), 1, calls, 100.0, Drafting(alpha, 0.5))
    assert plain.tokens_per_s < half.tokens_per_s < found.tokens_per_s


def test_drafts_get_fewer_as_rows_fill() -> None:
    each, gains = [], []
    calls = replace(CALLS, row_calls={n: (s, 0.0) for n, (s, _) in ROWS.items()})
    for count in (1, 2, 4, 8):
        plain, drafting = (throughput(Requests(count, 8, 200), 8, calls, 100.0, d) for d in (None, Drafting(0.8)))
        each.append(drafting.drafted_per_round / count)
        gains.append(drafting.tokens_per_s / plain.tokens_per_s)
    assert each == sorted(each, reverse=True)
    assert gains == sorted(gains, reverse=True)
    assert (each[0] > 3, gains[0] > 2) == (True, True)
    assert (each[-1], gains[-1]) == (pytest.approx(0.0, abs=0.3), pytest.approx(1.0, abs=0.05))


def test_more_requests_than_slots_wait() -> None:
    few, many = (throughput(Requests(16, 8, 30), slots, CALLS, 100.0) for slots in (4, 16))
    assert few.first_token_s > 2 * many.first_token_s
    assert few.tokens_per_s < many.tokens_per_s


DRAFT_CALLS = BatchPrediction({n: (s / 8, 0.0) for n, (s, _) in ROWS.items()}, {32: (0.9, 0.0)})


def test_one_text_with_a_draft_model_is_the_round_of_the_single_formula() -> None:
    calls = replace(CALLS, row_calls={n: (s, 0.0) for n, (s, _) in ROWS.items()})
    one, two = (DRAFT_CALLS.row_call_s(n, 0.0) for n in (1, 2))
    costs = RoundCosts(one, two, lambda n: calls.row_call_s(calls.row_width(n), 0.0), dispatch_s=calls.round_s)
    best = max((sequential_round(0.8, gamma, costs) for gamma in range(8)), key=lambda r: r.tokens_per_s)
    found = throughput(Requests(1, 64, 4000), 1, calls, 100.0, model=ModelDrafting(0.8, DRAFT_CALLS))
    assert found.gap_s == pytest.approx(1 / best.tokens_per_s, rel=0.02)
    assert found.drafted_per_round == pytest.approx(best.gamma, rel=0.02)
    plain = throughput(Requests(1, 64, 4000), 1, calls, 100.0)
    assert found.tokens_per_s > 1.3 * plain.tokens_per_s
    dear = replace(DRAFT_CALLS, row_calls=calls.row_calls)  # the negative control: a drafter as slow as the target
    assert throughput(Requests(1, 64, 4000), 1, calls, 100.0, model=ModelDrafting(0.8, dear)) == plain


def test_a_draft_model_reads_prompts_only_where_it_gains() -> None:
    """An answer of three tokens is not worth two chunks, one of 300 is."""
    calls, model = replace(CALLS, round_s=0.0), ModelDrafting(0.8, DRAFT_CALLS)
    for new, drafts in ((3, False), (300, True)):
        found, plain = (throughput(Requests(1, 64, new), 1, calls, 100.0, model=m) for m in (model, None))
        assert (found.drafted_per_round > 0) == drafts
        assert (found.seconds < plain.seconds) == drafts
    tight = throughput(Requests(1, 64, 300), 1, calls, 2.5, model=model)  # no piece fits beside a step
    assert tight.drafted_per_round == 0


def test_a_draft_model_gains_less_as_rows_fill() -> None:
    gains, model = [], ModelDrafting(0.8, DRAFT_CALLS)
    calls = replace(CALLS, row_calls={n: (s, 0.0) for n, (s, _) in ROWS.items()})
    for count in (1, 2, 4, 8):
        found, plain = (throughput(Requests(count, 8, 200), 8, calls, 100.0, model=m) for m in (model, None))
        gains.append(found.tokens_per_s / plain.tokens_per_s)
    assert gains == sorted(gains, reverse=True)
    assert (gains[0] > 1.3, gains[-1]) == (True, pytest.approx(1.0, abs=0.05))


def test_a_text_alone_branches_in_a_free_slot() -> None:
    """By hand (test_draft_rows.py): four drafts of 0.5 and a branch of two tokens that begins right in 0.4 of the rest.

    A round of eight rows takes 2.5 + 0.1 and gives 1 + 0.9375 + 0.2 + 0.1 tokens; without branches three drafts are
    best, in 2.2 + 0.1, and give 1.875.
    """
    flat = BatchPrediction({1: (2.0, 0.0), 2: (2.1, 0.0), 4: (2.2, 0.0), 8: (2.5, 0.0)}, {8: (3.0, 0.0)}, 0.1)
    branching = Drafting(0.5, beta=0.4)

    def of(slots: int, branch_s: float | None, drafting: Drafting = branching) -> Throughput:
        return throughput(Requests(1, 8, 4000), slots, flat, 100.0, drafting, branch_s=branch_s)

    found = of(2, 0.0)
    assert found.gap_s == pytest.approx(2.6 / 2.2375, rel=0.002)
    assert (found.drafted_per_round, found.branches_per_round) == (
        pytest.approx(4, rel=0.01),
        pytest.approx(1, rel=0.01),
    )
    assert of(2, 0.05).gap_s == pytest.approx(2.65 / 2.2375, rel=0.002)
    without = of(2, 0.0, Drafting(0.5))
    assert without.gap_s == pytest.approx(2.3 / 1.875, rel=0.002)
    assert without.branches_per_round == 0
    # negative controls: no slot is free, none can have the rows of another, they take too long to be had
    assert [of(1, 0.0), of(2, None), of(2, 1.0)] == [without] * 3


def test_branches_are_in_slots_that_no_text_has() -> None:
    flat = BatchPrediction({1: (2.0, 0.0), 2: (2.1, 0.0), 4: (2.2, 0.0), 8: (2.5, 0.0)}, {8: (3.0, 0.0)}, 0.1)
    both = [throughput(Requests(2, 8, 400), n, flat, 100.0, Drafting(0.4, beta=0.5), branch_s=0.0) for n in (2, 4)]
    assert both[0].branches_per_round < 0.05
    assert both[1].branches_per_round > 0.5


def test_a_branch_of_a_draft_model_is_its_second_choice() -> None:
    """By hand: steps of 0.1, rounds of 0.1, calls that take 2.0, 2.1, 2.2 and 2.5.

    With a = 0.3, b = 0.5: one draft and the branch are four rows, 1 + 0.3 + 0.35 tokens in 2.4; one draft alone 1.3 in
    2.3, two 1.39 in 2.5, and the branch beside two drafts 1.74 in 2.8.
    """
    flat = BatchPrediction({1: (2.0, 0.0), 2: (2.1, 0.0), 4: (2.2, 0.0), 8: (2.5, 0.0)}, {8: (3.0, 0.0)}, 0.1)
    steps = BatchPrediction({1: (0.1, 0.0), 2: (0.1, 0.0), 4: (0.1, 0.0), 8: (0.1, 0.0)}, {8: (0.1, 0.0)})
    second, first = (ModelDrafting(0.3, steps, beta=beta) for beta in (0.5, 0.0))
    found, plain = (throughput(Requests(1, 8, 3000), 2, flat, 100.0, model=m, branch_s=0.0) for m in (second, first))
    assert found.gap_s == pytest.approx(2.4 / 1.65, rel=0.002)
    assert plain.gap_s == pytest.approx(2.3 / 1.3, rel=0.002)
