"""A prediction as text for people and as JSON for programs."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from costmodel.decoder import DecoderSpec
from costmodel.placement import Placement
from costmodel.question import OVERLAPPED, Question, Variant, factors_of, gb
from costmodel.roofline import CpuSlice, GpuSlice
from costmodel.schema.plan import TARGET_ONLY
from costmodel.search import Search
from costmodel.uncertainty import used_processors
from hetero_sd.calibrated_board import GPU_HOW
from hetero_sd.predict.predict import Prediction, bundle_question, compilable
from hetero_sd.predict.variants import planned_variant
from targets.device import Board

_WIDTH = 118
_GPU_KERNELS = ("gpu_bandwidth", "gpu_compute", "gpu_attention")  # factors that a calibration fits to steps on a GPU
MOST_ROWS = 8
CURVE = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)


def predict_text(p: Prediction) -> str:
    """The verdict, the leading variants, what decided, and the numbers it rests on."""
    lines = textwrap.wrap(verdict(p), _WIDTH)
    lines += [
        line
        for note in notes(p)
        for line in textwrap.wrap(note, _WIDTH, initial_indent="  - ", subsequent_indent="    ")
    ]
    lines += ["", *variant_table(p, MOST_ROWS)]
    lines += ["", "T(n), a step of n tokens in ms"]
    lines += [f"  {'n':28}" + "".join(f"{n:>8}" for n in CURVE)]
    for title, shape, placement in models_of(p.decision.best):
        costs = p.search.costs(shape)
        times = "".join(f"{_ms(costs.step_s(placement, n)):>8}" for n in CURVE)
        lines.append(f"  {_short(f'{title} on {where_text(placement, shape)}', 28):28}{times}")
        lines.append(f"    n = 1: {costs.step(placement, 1).explain()}")
    lines += ["", f"numbers of board {p.question.board.name} behind the chosen variant"]
    lines += [
        f"  {path} = {_value(value)}: {kind}, {_short(source, 80)}" for path, value, kind, source in facts_used(p)
    ]
    factors = ", ".join(f"{name} {value:g}" for name, value in p.question.factors.to_json().items())
    lines += textwrap.wrap(f"  factors: {factors}", _WIDTH, subsequent_indent="    ")
    return "\n".join(lines)


def variant_table(p: Prediction, most: int) -> list[str]:
    """The leading variants, and those that do not fit, each with where it runs and its reason."""
    lines = [f"{'mode':12}{'gamma':>6}{'tokens/s':>10}{'interval':>18}{'x same':>8}{'x best':>8}{'memory':>10}"]
    for variant, sure in list(zip(p.decision.leading, p.intervals, strict=True))[:most]:
        lines += _row(variant, f"{rate(sure.low)} to {rate(sure.high)}")
    for variant in p.decision.not_fitting[:most]:
        lines += _row(variant, "does not fit")
    return lines


def verdict(p: Prediction) -> str:
    """The answer in one sentence."""
    best, sure = p.decision.best, p.intervals[0]
    speed = f"{rate(best.tokens_per_s)} tokens/s ({rate(sure.low)} to {rate(sure.high)})"
    board = p.question.board.name
    if best.mode == TARGET_ONLY:
        start = f"On {board} run {best.target.name} alone on {where_text(best.target_placement, best.target)}: {speed}"
        if not p.question.drafts:
            return f"{start}."
        other = p.speculative
        if other is None:
            return f"{start}; speculation does not fit the memory."
        reached = f"{rate(other.tokens_per_s)} tokens/s at gamma {other.gamma}"
        return f"{start}; speculation does not pay, its best reaches {reached}."
    drafter = (
        "the text itself"
        if best.draft is None or best.draft_placement is None
        else (f"{best.draft.name} on {where_text(best.draft_placement, best.draft)}")
    )
    return (
        f"On {board} speculate ({best.mode}) with gamma {best.gamma}: draft with {drafter}, "
        f"verify with {best.target.name} on {where_text(best.target_placement, best.target)}: {speed}, "
        f"{best.against_best:.2f} x the best single processor alone."
    )


def notes(p: Prediction) -> list[str]:
    """What a reader must know beside the verdict."""
    best, found = p.decision.best, []
    if any(isinstance(s, GpuSlice) for s in used_processors(best)):
        found.append(gpu_note(p.question))
    if best.mode == OVERLAPPED:
        found.append("the overlapped mode is predicted; this version runs drafter and target one after the other")
    if not compilable(best):
        runs = Search(bundle_question(p.question)).decide().best
        where = "; ".join(f"{title} on {where_text(place, shape)}" for title, shape, place in models_of(runs))
        gamma = f" with gamma {runs.gamma}" if runs.gamma else ""
        speed = f"{rate(runs.tokens_per_s)} tokens/s"
        found.append(f"the best that this version can run, as `compile` decides: {runs.mode}{gamma}, {where}: {speed}")
    base = p.decision.baseline
    on = where_text(base.target_placement, base.target)
    found.append(
        f"baseline, the best single processor alone: {base.target.name} on {on}, {rate(base.tokens_per_s)} tokens/s"
    )
    speculative = p.speculative
    if speculative is not None:
        pays = f"pays from {p.pays_from:.2f} on" if p.pays_from is not None else "does not pay at any acceptance"
        found.append(
            f"acceptance {p.alpha_source}; {speculative.mode} speculation with gamma {speculative.gamma} {pays}"
        )
    wide = ", ".join(f"{i.number} (+-{100 * i.effect:.0f} %)" for i in p.intervals[0].influences[:3])
    if wide:
        found.append(f"the interval is made by: {wide}")
    return found


def gpu_note(question: Question) -> str:
    """What the GPU's times rest on, by the origin of the board's numbers."""
    board = question.board
    if gpu_kernels_given(question):
        return "the GPU's times rest on the factors that were given"
    if gpu_kernels_measured(question):
        origins = {board.provenance[f"factors.{name}"].source for name in _GPU_KERNELS if name in board.factors}
        return f"the GPU's times rest on kernels measured on this board: {'; '.join(sorted(origins))}"
    if board.provenance["gpu.bandwidth_gb_per_s"].source == GPU_HOW:
        rests = "its bandwidth and its launches, measured on this board; no kernel of a model was measured on it"
        return f"the GPU's times are predicted from {rests}"
    return "the GPU's times are predicted from the board's numbers: no GPU kernel was measured on this board"


def gpu_kernels_given(question: Question) -> bool:
    """Whether the question has other factors for the GPU's kernels than its board: those of a calibration."""
    given, own = question.factors.to_json(), factors_of(question.board).to_json()
    return any(given[name] != own[name] for name in _GPU_KERNELS)


def gpu_kernels_measured(question: Question) -> bool:
    """Whether a calibration fitted the factors of the GPU's kernels."""
    origins = [question.board.provenance.get(f"factors.{name}") for name in _GPU_KERNELS]
    return gpu_kernels_given(question) or any(o is not None and o.kind == "measured" for o in origins)


def facts_used(p: Prediction) -> list[tuple[str, Any, str, str]]:
    """(path, value, kind, source) of the board's numbers that the chosen variant rests on."""
    board, paths = p.question.board, []
    for processor in used_processors(p.decision.best):
        if isinstance(processor, CpuSlice):
            for cluster, _ in processor.parts:
                names = ("count", "frequency_ghz", "bandwidth_one_thread_gb_per_s", "bandwidth_all_threads_gb_per_s")
                paths += [f"clusters.{cluster.name}.{n}" for n in (*names, "launch_overhead_s", "l2_bytes", "l3_bytes")]
                paths.append(f"clusters.{cluster.name}.core.fp32_flops_per_cycle")
        else:
            names = ("bandwidth_gb_per_s", "fp32_gflops", "launch_overhead_s", "unified_memory")
            paths += [f"gpu.{n}" for n in names]
    paths += [f"dram.{n}" for n in ("capacity_bytes", "reserved_bytes", "peak_bandwidth_gb_per_s")]
    rows = []
    for path in dict.fromkeys(paths):
        origin = board.provenance[path]
        rows.append((path, _at(board, path), origin.kind, origin.source))
    return rows


def predict_json(p: Prediction) -> str:
    """The same as one JSON object."""
    q = p.question
    data = {
        "verdict": verdict(p),
        "notes": notes(p),
        "board": q.board.name,
        "context": q.context,
        "alpha": q.alpha if isinstance(q.alpha, float) else list(q.alpha),
        "alpha_source": p.alpha_source,
        "pays_from_alpha": p.pays_from,
        "leading": [planned_variant(v, i).to_json() for v, i in zip(p.decision.leading, p.intervals, strict=True)],
        "not_fitting": [planned_variant(v, None).to_json() for v in p.decision.not_fitting],
        "baseline": planned_variant(p.decision.baseline, None).to_json(),
        "factors": q.factors.to_json(),
        "facts": [
            {"path": path, "value": _value(value), "kind": kind, "source": source}
            for path, value, kind, source in facts_used(p)
        ],
    }
    return json.dumps(data, indent=1)


def _row(variant: Variant, sure: str) -> list[str]:
    """A table row, where the models run, and the reason."""
    numbers = f"{rate(variant.tokens_per_s):>10}{sure:>18}{variant.against_same:>8.2f}{variant.against_best:>8.2f}"
    head = f"{variant.mode:12}{variant.gamma or '-':>6}{numbers}{gb(variant.memory.total_bytes):>10}"
    where = "; ".join(
        f"{title} {shape.name} on {where_text(place, shape)}" for title, shape, place in models_of(variant)
    )
    more = [
        line
        for text in (where, variant.reason)
        for line in textwrap.wrap(text, _WIDTH, initial_indent="    ", subsequent_indent="      ")
    ]
    return [head, *more]


def models_of(variant: Variant) -> list[tuple[str, DecoderSpec, Placement]]:
    """Title, shape and placement of each model of a variant."""
    models = [("target", variant.target, variant.target_placement)]
    if variant.draft is not None and variant.draft_placement is not None:
        models.append(("draft", variant.draft, variant.draft_placement))
    return models


def where_text(placement: Placement, shape: DecoderSpec) -> str:
    """Where a model runs, for people; the GPU's times are predicted."""
    return placement.text(shape).replace("gpu", "gpu (predicted)")


def _ms(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"


def rate(tokens_per_s: float) -> str:
    """A speed for people."""
    return f"{tokens_per_s:.2f}" if tokens_per_s < 99.5 else f"{tokens_per_s:.0f}"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _at(board: Board, path: str) -> Any:
    """The number at a path of `provenance`."""
    parts = path.split(".")
    item: Any = board
    if parts[0] == "clusters":
        item, parts = board.cluster(parts[1]), parts[2:]
    for part in parts:
        item = getattr(item, part)
    return item


def _value(item: Any) -> str:
    return f"{item:g}" if isinstance(item, float) else str(item)
