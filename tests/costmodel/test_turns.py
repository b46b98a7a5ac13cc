from __future__ import annotations

from typing import Any

import pytest

from costmodel.factors import Factors
from costmodel.format import Format
from costmodel.processor import CpuSlice
from costmodel.question import Question
from costmodel.schema.plan import SEQUENTIAL, TARGET_ONLY
from costmodel.search import Search
from costmodel.turns import kept_bytes, turns_of

FEW = Factors(round_cycles=2.3e3)  # 1 us at 2.3 GHz
TURNING = Factors(round_cycles=2.3e3, turn_cycles=23e3, draft_turn_cycles=46e3, verify_turn_cycles=69e3)


def test_a_round_of_two_models_pays_for_the_turns(published: Any, rk3588: Any) -> None:
    """20 us a draft, 30 us for the target's step, 10 us for the loop; nothing of it where the target is alone."""
    target, draft = published["Llama-3.2-3B"](Format("int4", 32, "float16")), published["Llama-3.2-1B"]()
    cores = CpuSlice(((rk3588.clusters[0], 4),))
    rounds = {}
    for factors in (FEW, TURNING):
        search = Search(Question(rk3588, (target,), (draft,), factors=factors))
        here, there = search.costs(target).whole(cores), search.costs(draft).whole(cores)
        for gamma in (0, 1, 3):
            rounds[gamma, factors] = (
                search.price(SEQUENTIAL, target, here, draft, there, gamma)
                if gamma
                else search.price(TARGET_ONLY, target, here)
            ).round
    for gamma in (1, 3):
        few, more = rounds[gamma, FEW], rounds[gamma, TURNING]
        assert more.draft_s - few.draft_s == pytest.approx(gamma * 20e-6, rel=1e-3)
        assert more.verify_s - few.verify_s == pytest.approx(30e-6, rel=1e-3)
        assert more.other_s - few.other_s == pytest.approx(10e-6, rel=1e-3)
        assert more.time_s - few.time_s == pytest.approx((40 + 20 * gamma) * 1e-6, rel=1e-3)
    assert rounds[0, TURNING] == rounds[0, FEW]  # the negative control
    turns = turns_of(search.roofline)
    assert (turns.loop_s, turns.draft_s, turns.verify_s) == pytest.approx((10e-6, 20e-6, 30e-6))


def test_until_they_are_measured_the_loop_stands_for_them(rk3588: Any, published: Any) -> None:
    roofline = Search(Question(rk3588, (published["Llama-3.2-1B"](),))).roofline
    turns = turns_of(roofline)
    assert turns.loop_s + turns.draft_s + turns.verify_s < 1e-4 * roofline.round_overhead_s()


def test_what_steps_lose_beside_another_model_says_what_caches_kept() -> None:
    """12 MB at 40 GB/s in place of 80 take 150 us longer."""
    assert kept_bytes(150e-6, 40e9, 80e9) == pytest.approx(12e6)
    assert kept_bytes(-10e-6, 40e9, 80e9) == 0.0
    assert kept_bytes(150e-6, 80e9, 40e9) == 0.0  # what caches give cannot be told from memory
