"""Numbers of a run, worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from bundles import some_plan, some_prediction
from scipy.stats import binomtest

from hetero_sd.runtime.decode.stats import acceptance_rate, stats_json, summarise, wilson
from hetero_sd.runtime.decode.stats_text import stats_table
from hetero_sd.runtime.decode.trace import Round, Stopwatch, Switch, Trace


def a_trace():
    return Trace(
        prompt_tokens=5,
        token_ids=list(range(9)),
        finish_reason="length",
        prefill_s=0.5,
        draft_prefill_s=0.1,
        rounds=[
            Round(4, 4, draft_s=0.08, verify_s=0.3, sampling_s=0.01, dispatch_s=0.01),
            Round(4, 1, draft_s=0.12, verify_s=0.5, sampling_s=0.03, dispatch_s=0.01),
            Round(0, 0, draft_s=0.0, verify_s=0.2, sampling_s=0.02, dispatch_s=0.01),
        ],
    )


def test_summary_by_hand():
    got = summarise([a_trace()])
    decode_s = 0.1 + 0.40 + 0.66 + 0.23
    assert got["decode_s"] == pytest.approx(decode_s)
    assert got["tokens_per_s"] == pytest.approx(8 / decode_s)  # the first token belongs to the prompt
    assert got["time_to_first_token_s"] == 0.5
    assert (got["rounds"], got["drafted"], got["accepted"]) == (3, 8, 5)
    assert got["acceptance_rate"] == pytest.approx(5 / 6)  # 5 accepted, 1 rejected, 2 never judged
    assert got["tokens_per_round"] == (5 + 2) / 2  # rounds that drafted
    assert got["median_s"]["draft_step"] == pytest.approx((0.08 / 4 + 0.12 / 4) / 2)
    assert got["median_s"]["verify_step"] == {"1": 0.2, "5": pytest.approx(0.4)}
    assert got["median_s"]["sampling"] == 0.02
    assert got["median_s"]["dispatch"] == 0.01
    assert got["finish_reason"] == "length"
    assert got["acceptance_by_position"] == [[2, 2], [1, 2], [1, 1], [1, 1]]
    assert sum(got["time_shares"].values()) == pytest.approx(1.0)
    assert got["time_shares"]["dispatch"] == pytest.approx(0.03 / decode_s)
    assert got["time_shares"]["read"] == pytest.approx(0.1 / decode_s)


def test_overlapped_rounds_by_hand():
    """The drafter's steps are those beside the target's; the wait is part of a round; hand-overs are in us."""
    trace = replace(a_trace(), draft_prefill_s=0.0, draft_steps_s=[0.02, 0.04, 0.05], hand_overs_s=[2e-5, 3e-5, 9e-5])
    trace.rounds = [
        replace(r, draft_s=0.0, wait_s=wait) for r, wait in zip(trace.rounds, (0.05, 0.0, 0.1), strict=True)
    ]
    got = stats_json([trace], None)
    assert got["decode_s"] == pytest.approx(0.37 + 0.54 + 0.33)
    assert got["median_s"]["wait"] == 0.05
    assert got["median_s"]["draft_step"] == 0.04
    assert got["median_s"]["hand_over"] == 3e-5
    assert [row["measured"] for row in got["predicted_vs_measured"][-2:]] == pytest.approx([50.0, 30.0])
    lines = stats_table(got).splitlines()
    assert [line.split()[-3] for line in lines if line.startswith(("wait", "hand-over ("))] == ["50", "30"]
    assert "hand-overs between the threads: 2 of 3 within 50 us, what they may take" in lines
    assert not any("hand-overs" in line for line in stats_table(stats_json([a_trace()], None)).splitlines())


def test_transfers_are_the_mean_of_a_round() -> None:
    """Beside what the plan's steps copy; no row where nothing was moved."""
    rounds = [replace(r, transfer_s=moved) for r, moved in zip(a_trace().rounds, (3e-4, 0.0, 0.0), strict=True)]
    plan = some_plan(prediction=some_prediction(transfer_s=2e-4))
    got = stats_json([replace(a_trace(), rounds=rounds)], plan)
    (row,) = (r for r in got["predicted_vs_measured"] if r["term"] == "transfer in a round")
    assert (row["measured"], row["predicted"]) == pytest.approx((100.0, 200.0))
    assert got["decode_s"] == summarise([a_trace()])["decode_s"]  # it is in the terms already
    assert "transfer" not in stats_table(stats_json([a_trace()], some_plan()))


def test_several_generations_are_added():
    got = summarise([a_trace(), a_trace()])
    assert (got["prompt_tokens"], got["new_tokens"], got["rounds"]) == (10, 18, 6)
    assert got["finish_reason"] is None
    assert got["tokens_per_s"] == pytest.approx(summarise([a_trace()])["tokens_per_s"])


def test_nothing_measured_is_none():
    got = stats_json([Trace(prompt_tokens=1, token_ids=[3], finish_reason="eos", prefill_s=0.1)], None)
    assert got["tokens_per_s"] is None
    assert got["acceptance_rate"] is None
    names = ("draft_step", "sampling", "dispatch", "deciding", "wait", "first_rounds", "hand_over", "transfer")
    assert got["median_s"] == {**dict.fromkeys(names), "verify_step": {}}
    assert "1 prompt tokens, 1 new tokens" in stats_table(got)
    json.dumps(got, allow_nan=False)


def test_first_rounds_beside_later_ones() -> None:
    """Three texts: the median of 0.3, 0.4 and 0.5 s more than four later rounds took; too short a text says nothing."""

    def text(more: float, rounds: int = 9) -> Trace:
        verify = [0.1 + more, *[0.1] * (rounds - 1)]
        return Trace(1, token_ids=[1] * 20, rounds=[Round(2, 1, 0.02, s, 0, 0.01) for s in verify])

    plan = some_plan(prediction=some_prediction(start_s=0.1, turn_start_s=0.2))
    got = stats_json([text(0.3), text(0.5), text(0.4), text(9.0, rounds=6)], plan)
    (row,) = (r for r in got["predicted_vs_measured"] if r["term"] == "first rounds, more")
    assert (row["measured"], row["predicted"]) == pytest.approx((0.4e6, 0.2e6))
    assert summarise([text(9.0, rounds=6)])["median_s"]["first_rounds"] is None
    unknown = stats_json([text(0.3)], some_plan(prediction=some_prediction(turn_start_s=4e-10)))
    (row,) = (r for r in unknown["predicted_vs_measured"] if r["term"] == "first rounds, more")
    assert row["predicted"] is None
    assert summarise([text(0.0)])["median_s"]["first_rounds"] == pytest.approx(0.0)


def test_wilson_interval_of_a_textbook_case():
    rounds = [Round(1, 1, 0, 0, 0, 0)] * 81 + [Round(1, 0, 0, 0, 0, 0)] * 182  # 81 of 263
    alpha, (low, high) = acceptance_rate(rounds)
    assert alpha == pytest.approx(0.3080, abs=5e-5)
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3: 0.2553 to 0.3662
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_wilson_beside_scipy():
    for passed, seen in ((80, 100), (1, 7), (0, 5), (5, 5), (1, 1), (81, 263), (999_999, 1_000_000)):
        expected = binomtest(passed, seen).proportion_ci(confidence_level=0.95, method="wilson")
        assert wilson(passed, seen) == pytest.approx((expected.low, expected.high), rel=1e-12, abs=0)
        same = [Round(1, int(i < passed), 0, 0, 0, 0) for i in range(min(seen, 300))]
        assert seen > 300 or acceptance_rate(same) == (passed / seen, list(wilson(passed, seen)))
    assert (wilson(0, 10)[0], wilson(10, 10)[1]) == (0.0, 1.0)
    assert wilson(81, 263) != pytest.approx(wilson(82, 263), abs=1e-6)  # the negative control


def test_interval_stays_a_probability():
    assert acceptance_rate([Round(3, 3, 0, 0, 0, 0)])[1][1] <= 1.0
    assert acceptance_rate([Round(3, 0, 0, 0, 0, 0)])[1][0] >= 0.0


def test_comparison_with_the_plan():
    plan = some_plan(prediction=some_prediction(draft_step_s=0.02, verify_step_s={5: 0.5}))  # speed and sampling are 0
    rows = {row["term"]: row for row in stats_json([a_trace()], plan)["predicted_vs_measured"]}
    assert rows["draft step"]["measured"] == pytest.approx(25.0)  # ms
    assert rows["draft step"]["predicted"] == pytest.approx(20.0)
    assert rows["draft step"]["deviation"] == pytest.approx(0.25)
    assert rows["target step, n=5"]["deviation"] == pytest.approx(-0.2)
    assert rows["target step, n=1"]["predicted"] is None
    assert rows["speed"]["predicted"] is None
    assert rows["sampling"]["deviation"] is None


def test_time_to_first_token_is_predicted_from_chunks():
    prediction = some_prediction(prompt_chunk_s=0.2, verify_step_s={1: 0.01, 4: 0.03})
    # in chunks of 32 tokens: two and a step of 4; one for 12, more than any step; exactly one; a step of one token
    lengths = (68, 12, 32, 1)
    assert [prediction.first_token_s(n, 32) for n in lengths] == pytest.approx([0.43, 0.2, 0.2, 0.01])
    logits = replace(prediction, prompt_result_s=0.05)  # of the last chunk alone
    assert [logits.first_token_s(n, 32) for n in (*lengths, 64)] == pytest.approx([0.43, 0.25, 0.25, 0.01, 0.45])
    wide = replace(prediction, context=64, long_chunks_s={64: (0.3, 0.34)})  # dearer after 64 tokens
    assert [wide.first_token_s(n, 32) for n in (4, 32, 33, 68, 128, 160)] == pytest.approx(
        [0.03, 0.2, 0.3, 0.33, 0.64, 0.84]
    )
    plan = some_plan(prediction=prediction)  # a_trace has a prompt of 5: a chunk
    row = stats_json([a_trace()], plan)["predicted_vs_measured"][0]
    assert (row["term"], row["measured"], row["predicted"]) == ("time to first token", 500.0, 200.0)
    assert row["deviation"] == pytest.approx(1.5)


def test_a_bundle_without_a_plan():
    assert all(row["predicted"] is None for row in stats_json([a_trace()], None)["predicted_vs_measured"])


def test_table_for_people():
    plan = some_plan(prediction=some_prediction(draft_step_s=0.02, verify_step_s={5: 0.5}))
    assert stats_table(stats_json([a_trace()], plan)) == (
        "                            measured   predicted   deviation\n"
        "time to first token (ms)         500         500      +0.0 %\n"
        "speed (tokens/s)                5.76           -           -\n"
        "tokens per round                 3.5           -           -\n"
        "acceptance rate                0.833           -           -\n"
        "draft step (ms)                   25          20     +25.0 %\n"
        "target step, n=1 (ms)            200           -           -\n"
        "target step, n=5 (ms)            400         500     -20.0 %\n"
        "sampling (ms)                     20           -           -\n"
        "dispatch (us)                  10000           -           -\n"
        "5 prompt tokens, 9 new tokens, 3 rounds, 8 drafted, 5 accepted\n"
        "of the time: draft 14 %, verify 72 %, sampling 4.3 %, dispatch 2.2 %, read 7.2 %\n"
        "tokens drafted in a round: 0 in 1, 4 in 2 rounds\n"
        "accepted by position: 2 of 2, 1 of 2, 1 of 1, 1 of 1"
    )


@pytest.mark.parametrize(("share", "shown"), [(0.998, "100 %"), (0.1, "10 %"), (0.043, "4.3 %"), (0.0019, "0.19 %")])
def test_shares_of_the_time_are_whole_percent_or_two_digits(share: float, shown: str) -> None:
    stats = {**stats_json([a_trace()], some_plan()), "time_shares": {"verify": share, "draft": 0.0}}
    assert f"of the time: verify {shown}\n" in stats_table(stats)
    beside = stats_table({**stats, "predicted_time_shares": {"verify": 0.25}})
    assert f"of the time (predicted): verify {shown} (25 %)\n" in beside


def test_stopwatch_books_every_interval_once():
    times = iter([10.0, 10.5, 10.75, 11.75, 12.0])
    watch = Stopwatch(lambda: next(times))
    watch.book("draft")
    watch.book("sampling")
    watch.book("draft")
    got = watch.round(drafted=2, accepted=1)
    assert got == Round(2, 1, draft_s=1.5, verify_s=0.0, sampling_s=0.25, dispatch_s=0.25)
    assert got.total_s == 2.0


def test_switches_and_sources_are_shown():
    trace = a_trace()
    trace.rounds = [replace(r, source="model" if r.accepted == 4 else "ngram-3") for r in trace.rounds if r.drafted]
    trace.switches = [Switch("model", 3, 0, "drafting loses", 0.25, 0.01, 0.03, 0.75, 0.0, tokens=17)] * 14
    got = stats_json([trace], None)
    assert got["sources"] == {"model": {"drafted": 4, "accepted": 4}, "ngram-3": {"drafted": 4, "accepted": 1}}
    assert got["switches"][0]["tokens"] == 17
    text = stats_table(got)
    assert "accepted by source: model 4 of 4, ngram-3 1 of 4" in text
    line = (
        "after 17 tokens: model 3 -> 0 drafted, drafting loses (acceptance 0.25, plain step 10 ms, round 30 ms, 0.75x)"
    )
    assert text.count(line) == 12
    assert "... and 2 more switches (--json has all)" in text
    json.dumps(got, allow_nan=False)
