"""Times of steps, as seen and as expected."""

from __future__ import annotations

import pytest

from costmodel.schema.plan import LivePrediction
from hetero_sd.runtime.decode.live_times import LiveTimes
from hetero_sd.runtime.decode.trace import Round

PREDICTED = LivePrediction(0.8, 0.001, {1: 0.01, 2: 0.011, 4: 0.012}, 1e-5, 0.005, 32)


def test_a_width_that_was_seen_once_takes_no_longer_than_a_wider_one() -> None:
    """The one time was a pause of the system; the negative control has no wider step to compare with."""
    times, alone = LiveTimes(PREDICTED), LiveTimes(PREDICTED)
    for width in (1, 1, 4, 4):
        times.measured(width, PREDICTED.verify_s[width])
    for width in (1, 1):
        alone.measured(width, PREDICTED.verify_s[width])
    for some in (times, alone):
        some.measured(2, 1.0)
    assert 0.01 <= times.step_s(2) <= 0.012
    assert alone.step_s(2) > 0.4
    times.measured(2, 1.0)
    assert times.step_s(2) == 1.0  # seen twice, it is believed


def test_what_telling_confidences_takes_is_no_part_of_a_draft_step() -> None:
    times = LiveTimes(PREDICTED)
    assert times.confidence_s() == 0.0
    times.observe(Round(2, 1, 0.004, 0.012, 0.0, 0.0, source="model"), 2)
    assert times.confidence_s() == 0.0
    told = Round(2, 1, 0.004, 0.012, 0.0, 0.0, source="model", confidence_s=0.0006, confidences=(0.5, 0.9))
    times.observe(told, 4)
    assert times.confidence_s() == pytest.approx(0.0003)
    assert times.draft_s("model") == pytest.approx(0.002)
