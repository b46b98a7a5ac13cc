"""Times of steps, as seen and as expected."""

from __future__ import annotations

import pytest

from costmodel.schema.prediction import LivePrediction
from hetero_sd.runtime.decode.drafters import Offer
from hetero_sd.runtime.decode.live_gamma import LiveGamma
from hetero_sd.runtime.decode.live_times import LiveTimes
from hetero_sd.runtime.decode.trace import Round

PREDICTED = LivePrediction(0.8, 0.001, {1: 0.01, 2: 0.011, 4: 0.012}, 1e-5, 0.005, 32)


def test_a_width_that_was_seen_a_few_times_takes_no_longer_than_a_wider_one() -> None:
    """Those times were pauses of the system; the negative control has no other step to compare with."""
    times, narrow, alone = LiveTimes(PREDICTED), LiveTimes(PREDICTED), LiveTimes(PREDICTED)
    for width in (1, 1, 4, 4):
        times.measured(width, PREDICTED.verify_s[width])
    for width in (1, 1):
        narrow.measured(width, PREDICTED.verify_s[width])
    for some in (times, narrow, alone):
        some.measured(2, 1.0)
    assert 0.01 <= times.step_s(2) <= 0.012
    assert narrow.step_s(2) <= 0.02  # two plain steps
    assert alone.step_s(2) > 0.4
    for _ in range(2):
        times.measured(2, 1.0)
    assert times.step_s(2) == pytest.approx(0.012, rel=0.01)
    for _ in range(4):
        times.measured(2, 1.0)
    assert times.step_s(2) == 1.0  # seen seven times, it is believed


def test_where_other_work_disturbs_most_steps_a_prediction_counts_for_longer() -> None:
    """Plain steps show how much: the same three times of another width are believed less."""
    quiet, busy = LiveTimes(PREDICTED), LiveTimes(PREDICTED)
    for i in range(40):
        quiet.measured(1, 0.010)
        busy.measured(1, 0.010 if i % 8 == 0 else 0.030)
    for some in (quiet, busy):
        for _ in range(3):
            some.measured(2, 0.019)
    assert quiet.step_s(2) > 0.018
    assert busy.step_s(2) < 0.017


def test_other_work_on_the_machine_hardly_changes_a_time() -> None:
    """It makes half of the steps longer; the negative control is a processor that became slower."""
    times, slower = LiveTimes(PREDICTED), LiveTimes(PREDICTED)
    for i in range(60):
        times.observe(Round(0, 0, 0.0, 0.010 + 0.0002 * (i % 3) + 0.02 * (i % 2), 0.0, 0.0), i)
        slower.observe(Round(0, 0, 0.0, 0.010 + 0.02 * (i > 40), 0.0, 0.0), i)
    for some in (times, slower):
        some.settle(60)
    assert times.step_s(1) == pytest.approx(0.010, rel=0.05)
    assert slower.step_s(1) == pytest.approx(0.030)


def test_of_a_few_times_the_least_counts_and_a_lasting_change_is_followed() -> None:
    times = LiveTimes(PREDICTED)
    for seconds in (0.001, 0.005):
        times.measured_draft(seconds)
    assert times.draft_s("model") == 0.001
    for _ in range(12):
        times.measured_draft(0.001)
    for seconds in (0.005,) * 7:
        times.measured_draft(seconds)
    times.settle(0)
    assert times.draft_s("model") == 0.005


def test_what_other_work_makes_longer_than_plain_steps_counts_as_so_much_longer() -> None:
    """Turns of 4 ms: plain steps wait each time, drafts mostly; in the control plain steps do mostly, too."""
    turns, control = LiveTimes(PREDICTED), LiveTimes(PREDICTED)
    for i in range(40):
        wait_s = 0.004 * (i % 4 > 0)
        turns.measured(1, 0.010 + 0.004)
        control.measured(1, 0.010 + 5 * wait_s)
        for some in (turns, control):
            some.measured_draft(0.002 + wait_s)
            some.measured(2, 0.011 + 2 * wait_s)
    assert turns.draft_s("model") == pytest.approx(0.002 * (1 + 5 / 6 * 1.5), rel=0.1)  # 40 of 48 times; 1.5: the waits
    assert 0.014 < turns.step_s(2) < 0.017  # its mean
    assert control.draft_s("model") == pytest.approx(0.002, rel=0.05)
    assert control.step_s(2) < 0.0115


@pytest.mark.parametrize(("wider_s", "steps"), [(0.008, 14), (0.0095, 2)])
def test_plain_steps_that_took_longer_than_wider_ones_are_seen_more_often(wider_s: float, steps: int) -> None:
    """Other work must have been beside all of them: drafting would look better than it is. The control is noise."""
    policy = LiveGamma(PREDICTED, [0, 1, 3])
    for width in (1, 1, 2, 2):
        policy.times.measured(width, 0.010 if width == 1 else wider_s)
    policy.times.measured_draft(0.0001)
    while policy.choose([Offer("model", 9)]).gamma == 0:
        policy.observe(Round(0, 0, 0.0, 0.010, 0.0, 1e-5))
    assert policy.times.seen(1) == steps


def test_a_few_longer_drafts_are_no_sign_of_that() -> None:
    times = LiveTimes(PREDICTED)
    for _ in range(20):
        times.measured(1, 0.010)
    for seconds in (0.002, 0.002, 0.0022, 0.01):  # a pause
        times.measured_draft(seconds)
    assert times.draft_s("model") == 0.002


def test_a_round_that_drafts_has_more_of_the_rest() -> None:
    times = LiveTimes(PREDICTED)
    times.observe(Round(0, 0, 0.0, 0.010, 0.0, 1e-6), 1)
    assert times.other_s(True) == times.other_s() == pytest.approx(1e-6)
    times.observe(Round(1, 0, 0.001, 0.011, 0.0, 5e-5, source="model"), 2)
    assert (times.other_s(), times.other_s(True)) == (pytest.approx(1e-6), pytest.approx(5e-5))
    assert times.round_s("model", 1) - times.round_s("model", 0) > 5e-5


def test_a_step_that_was_not_seen_takes_no_longer_than_narrower_ones_in_a_row() -> None:
    times = LiveTimes(PREDICTED)
    assert times.most_steps_s()[4] == 0.012  # nothing is known but the plan
    for width, seconds in ((1, 0.010), (1, 0.010), (2, 0.013), (2, 0.013)):
        times.measured(width, seconds)
    assert times.step_s(4) < times.most_steps_s()[4] == 2 * times.step_s(2)
    for _ in range(2):
        times.measured(4, 0.012)
    assert times.most_steps_s()[4] == times.step_s(4) == pytest.approx(0.012)


def test_a_round_risks_its_drafts_and_what_its_step_takes_beyond_a_plain_one() -> None:
    times = LiveTimes(PREDICTED)
    for _ in range(31):
        times.measured(1, 0.010)
    for _ in range(2):
        times.measured(2, 0.012)
        times.measured_draft(0.003)
    risks_s = times.risks_s("model", [0, 1, 3])
    assert risks_s[0] == 0.0
    assert risks_s[1] == pytest.approx(0.003 + times.step_s(2) - 0.010)
    assert risks_s[3] == pytest.approx(3 * 0.003 + 2 * times.step_s(2) - 0.010)  # T(4) was not seen


def test_a_plain_step_is_surely_less_than_what_was_seen_a_few_times() -> None:
    times = LiveTimes(PREDICTED)
    for _ in range(2):
        times.measured(1, 0.010)
    assert 0.95 * times.plain_s() < times.sure_plain_s() < 0.98 * times.plain_s()
    for _ in range(31):
        times.measured(1, 0.010)
    assert times.sure_plain_s() == times.plain_s()


def test_times_of_long_ago_count_in_plain_steps() -> None:
    """The plan, which they take the place of, is off by ten."""
    times = LiveTimes(LivePrediction(0.8, 0.01, {1: 0.01, 2: 0.011}, 1e-5, 0.005, 32))
    for _ in range(2):
        times.measured(1, 0.010)
        times.measured_draft(0.001)
    times.observe(Round(0, 0, 0.0, 0.010, 0.0, 0.0), 600)
    times.settle(600)
    assert times.draft_s("model") == pytest.approx(0.001)


def test_what_telling_confidences_takes_is_no_part_of_a_draft_step() -> None:
    times = LiveTimes(PREDICTED)
    assert times.confidence_s() == 0.0
    times.observe(Round(2, 1, 0.004, 0.012, 0.0, 0.0, source="model"), 2)
    assert times.confidence_s() == 0.0
    told = Round(2, 1, 0.004, 0.012, 0.0, 0.0, source="model", confidence_s=0.0006, confidences=(0.5, 0.9))
    times.observe(told, 4)
    assert times.confidence_s() == pytest.approx(0.0003)
    assert times.draft_s("model") == pytest.approx(0.002)
