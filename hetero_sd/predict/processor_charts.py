"""Charts of each processor of a board: the time of a step by its tokens, and the roofline."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from costmodel.cpu_reads import reached_gb_per_s
from costmodel.decoder import DecoderSpec
from costmodel.placement import Placement
from costmodel.processor import CpuSlice, GpuSlice, Processor
from costmodel.work import step_ops, totals
from hetero_sd.predict.axes import Axis, Mark
from hetero_sd.predict.charts import Line, line_chart
from hetero_sd.predict.page import both
from hetero_sd.predict.predict import Prediction
from hetero_sd.predict.sentences import gpu_note
from hetero_sd.predict.story import MOST_GAMMA


def verify_curves(p: Prediction) -> dict[str, Any]:
    """T(n) of the target on each kind of processor, on the threads that are fastest there."""
    best = p.decision.best
    costs = p.search.costs(best.target)
    placements = _fastest_wholes(p, best.target)
    widest = max(MOST_GAMMA, best.gamma) + 1
    lines = [
        Line(_name(place), [(n, 1e3 * costs.step_s(place, n)) for n in range(1, widest + 1)]) for place in placements
    ]
    at = 1e3 * costs.step_s(best.target_placement, best.gamma + 1)
    top = max(at, *(y for line in lines for _, y in line.points))
    axes = Axis("n, tokens in one step", 1, widest, whole=True), Axis("ms", 0, 1.05 * top)
    chart = both(line_chart, "time of a step", *axes, lines, [Mark(best.gamma + 1, at, f"n = {best.gamma + 1}")])
    note = "Stairs come from the kernels' row tiles."
    if any(isinstance(_processor(place), GpuSlice) for place in placements):
        said = gpu_note(p.question)
        note += f" {said[0].upper()}{said[1:]}."
    return {"target": best.target.name, "chart": chart, "note": note}


def _fastest_wholes(p: Prediction, spec: DecoderSpec) -> list[Placement]:
    costs = p.search.costs(spec)
    fastest: dict[str, Placement] = {}
    for processor in costs.slices:
        placement = costs.whole(processor)
        kept = fastest.get(processor.family)
        if kept is None or costs.step_s(placement, 4) < costs.step_s(kept, 4):
            fastest[processor.family] = placement
    return list(fastest.values())


def roofline_chart(p: Prediction) -> dict[str, Markup]:
    """Arithmetic intensity against rate: the limits of each processor, and the chosen target's steps on it."""
    best, lines, marks = p.decision.best, [], []
    for placement in _fastest_wholes(p, best.target):
        peak, reads = _limits(p, _processor(placement))
        lines.append(Line(_name(placement), [(0.1, 0.1 * reads), (peak / reads, peak), (200.0, peak)]))
    costs = p.search.costs(best.target)
    for n in (1, 4, 16):
        work = totals(step_ops(best.target, n, p.question.context))
        reached = work.flops / costs.step_s(best.target_placement, n) / 1e9
        marks.append(Mark(work.flops / work.bytes, reached, f"n = {n}"))
    top = 2 * max(y for line in lines for _, y in line.points)
    axes = Axis("operations a byte", 0.1, 200.0, log=True), Axis("GFLOP/s", 0.1, top, log=True)
    return both(line_chart, "roofline", *axes, lines, marks)


def _limits(p: Prediction, processor: Processor) -> tuple[float, float]:
    """What kernels reach on a processor: GFLOP/s and GB/s."""
    f = p.question.factors
    if isinstance(processor, GpuSlice):
        return f.gpu_compute * processor.gpu.fp32_gflops, f.gpu_bandwidth * processor.gpu.bandwidth_gb_per_s
    assert isinstance(processor, CpuSlice)
    cluster, threads = processor.parts[0]
    return cluster.fp32_gflops * threads / cluster.count, reached_gb_per_s(f, cluster, threads)


def _processor(placement: Placement) -> Processor:
    return placement.segments[0].processor


def _name(placement: Placement) -> str:
    processor = _processor(placement)
    return "gpu (predicted)" if isinstance(processor, GpuSlice) else processor.name
