"""Cores for several requests at a time, against every choice, on a board where one text wants others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from costmodel.batch_cores import batch_cores, batch_on
from costmodel.batch_throughput import Requests
from costmodel.format import Format
from costmodel.model_costs import ModelCosts
from costmodel.processor import CpuSlice, processors
from costmodel.question import Question
from costmodel.roofline import Roofline
from costmodel.search import Search
from targets.boards import load_board


def test_many_rows_keep_more_cores_busy_than_one(published: dict[str, Any]) -> None:
    spec = published["SmolLM2-135M"](Format("int8", block=32))
    question = Question(load_board("rpi5"), (spec,), context=128, one_process=True, slots=8)
    alone = Search(replace(question, slots=1)).decide().best.target_placement.segments[0].processor
    together = batch_cores(question)
    assert isinstance(alone, CpuSlice)
    assert together.threads > alone.threads
    asked = Requests(8, 128, 128)
    slices = [p for p in processors(question.board) if isinstance(p, CpuSlice)]
    costs = ModelCosts(Roofline(question.board), spec, 0)
    speeds = {p.name: batch_on(question, spec, costs.whole(p), asked).tokens_per_s for p in slices}
    assert speeds[together.name] >= max(speeds.values()) / 1.02
    same = [costs.whole(cores) for cores in (together, alone)]  # prompts on the same cores, too
    many, few = (batch_on(question, spec, p, asked, reading=p).tokens_per_s for p in same)
    assert many > 1.15 * few  # what the cores of one text would lose
    assert few < speeds[alone.name]  # prompts may have more threads
