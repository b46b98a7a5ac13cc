from __future__ import annotations

from dataclasses import replace

import pytest

from costmodel.confidence import confidence_s
from costmodel.factors import Factors
from costmodel.roofline import Roofline
from targets.boards import load_board


def test_it_is_python_as_around_a_step_and_a_pass_over_the_logits() -> None:
    """By hand at 2.4 GHz; the negative control is another number of logits."""
    board = load_board("rpi5")
    assert board.clusters[0].frequency_ghz == 2.4
    roofline = Roofline(board, replace(Factors(), step_cycles=48_000.0))
    assert confidence_s(roofline, 12_000) == pytest.approx(20e-6 + 10e-6)
    assert confidence_s(roofline, 49_152) > 50e-6
