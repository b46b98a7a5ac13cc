"""Threads of a prompt beside those of a step."""

from __future__ import annotations

import pytest

from costmodel.model_costs import ModelCosts
from costmodel.phase_threads import prompt_placement
from costmodel.processor import CpuSlice, GpuSlice
from costmodel.roofline import Roofline
from hetero_sd.predict.inputs import with_activations
from hetero_sd.predict.known_models import known_model
from targets.boards import load_board


@pytest.mark.parametrize(("weights", "least"), [("int4", 3.0), ("float16", 1.5)])
def test_a_pi_5_decodes_with_one_thread_and_reads_prompts_with_four(weights: str, least: float) -> None:
    """Reads fall with threads there; a chunk of 32 rows is bound by arithmetic."""
    board = load_board("rpi5")
    (cluster,) = board.clusters
    costs = ModelCosts(Roofline(board), with_activations(known_model("Qwen2.5-1.5B", weights), None), 256)
    one, *_, four = (costs.whole(CpuSlice(((cluster, threads),))) for threads in range(1, 5))
    assert costs.step_s(one, 1) < costs.step_s(four, 1)
    found = prompt_placement(costs, one, 32)
    assert found.segments[0].processor.threads == 4
    assert costs.prompt_chunk_s(one, 32) > least * costs.prompt_chunk_s(found, 32)
    assert prompt_placement(costs, four, 32) is four  # nothing is gained


def test_other_placements_stay_as_they_are() -> None:
    board = load_board("rk3588")
    assert board.gpu is not None
    costs = ModelCosts(Roofline(board), known_model("Qwen2.5-0.5B", "int8"), 256)
    whole = costs.whole(GpuSlice(board.gpu, board.clusters[0]))
    assert prompt_placement(costs, whole, 32) is whole
    both = costs.whole(CpuSlice(tuple((cluster, 1) for cluster in board.clusters)))
    assert prompt_placement(costs, both, 32) is both
