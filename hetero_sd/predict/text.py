"""A prediction as a report for people and as JSON for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from costmodel.processor import CpuSlice
from costmodel.question import Variant, gb
from costmodel.uncertainty import used_processors
from hetero_sd.predict.predict import Prediction
from hetero_sd.predict.sentences import change_notes, models_of, notes, rate, verdict, where_text
from hetero_sd.predict.units import plain, with_unit
from hetero_sd.predict.variants import planned_variant

_WIDTH = 118
MOST_ROWS = 8
MOST_POTENTIAL = 3
POTENTIAL = "potential: predicted to be faster, but measured by nobody, up to the texts, or not in this version"
CURVE = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)


def predict_text(p: Prediction) -> str:
    """The verdict, the leading variants, what decided, and the numbers it rests on."""
    lines = textwrap.wrap(verdict(p), _WIDTH)
    if p.command:
        lines += ["", "  " + p.command, ""]
    lines += _bullets(notes(p))
    for title, said in (("what would change this", change_notes(p)), ("assumed", p.assumed)):
        lines += [title, *_bullets(said)] if said else []
    lines += ["", *variant_table(p, MOST_ROWS)]
    lines += ["", "T(n), a step of n tokens in ms"]
    lines += [f"  {'n':28}" + "".join(f"{n:>8}" for n in CURVE)]
    for title, spec, placement in models_of(p.decision.best):
        costs = p.search.costs(spec)
        times = "".join(f"{_ms(costs.step_s(placement, n)):>8}" for n in CURVE)
        lines.append(f"  {_short(f'{title} on {where_text(placement, spec)}', 28):28}{times}")
        lines.append(f"    n = 1: {costs.step(placement, 1).explain()}")
    lines += ["", f"numbers of board {p.question.board.name} behind the chosen variant"]
    lines += [
        _short(f"  {path} = {with_unit(path, value)}: {kind}, {source}", _WIDTH)
        for path, value, kind, source in facts_used(p)
    ]
    factors = ", ".join(f"{name} {plain(value)}" for name, value in p.question.factors.to_json().items())
    lines += textwrap.wrap(f"  factors: {factors}", _WIDTH, subsequent_indent="    ")
    return "\n".join(lines)


def _bullets(notes: Sequence[str]) -> list[str]:
    wrapped = (textwrap.wrap(n, _WIDTH, initial_indent="  - ", subsequent_indent="    ") for n in notes)
    return [line for lines in wrapped for line in lines]


def variant_table(p: Prediction, most: int) -> list[str]:
    """The leading variants, and those that do not fit, each with where it runs and its reason."""
    lines = [f"{'mode':12}{'gamma':>6}{'tokens/s':>10}{'interval':>18}{'x same':>8}{'x best':>8}{'memory':>10}"]
    for variant, sure in list(zip(p.decision.leading, p.intervals, strict=True))[:most]:
        lines += _row(variant, f"{rate(sure.low)} to {rate(sure.high)}")
    for variant in p.decision.not_fitting[:most]:
        lines += _row(variant, "does not fit")
    if p.potential:
        lines += ["", POTENTIAL]
        for variant, sure in list(zip(p.potential, p.potential_intervals, strict=True))[:MOST_POTENTIAL]:
            lines += _row(variant, f"{rate(sure.low)} to {rate(sure.high)}")
    return lines


def facts_used(p: Prediction) -> list[tuple[str, Any, str, str]]:
    """(path, value, kind, source) of the board's numbers that the chosen variant rests on."""
    board, paths = p.question.board, []
    for processor in used_processors(p.decision.best):
        if isinstance(processor, CpuSlice):
            for cluster, _ in processor.parts:
                ends = ("bandwidth_one_thread_gb_per_s", "bandwidth_all_threads_gb_per_s")
                reads = ("bandwidth_by_threads_gb_per_s",) if cluster.bandwidth_by_threads_gb_per_s else ends
                names = ("count", "frequency_ghz", *reads)
                paths += [f"clusters.{cluster.name}.{n}" for n in (*names, "launch_overhead_s", "l2_bytes", "l3_bytes")]
                paths.append(f"clusters.{cluster.name}.core.fp32_flops_per_cycle")
        else:
            names = ("bandwidth_gb_per_s", "fp32_gflops", "launch_overhead_s", "unified_memory")
            paths += [f"gpu.{n}" for n in names]
    paths += [f"dram.{n}" for n in ("capacity_bytes", "reserved_bytes", "peak_bandwidth_gb_per_s")]
    rows = []
    for path in dict.fromkeys(paths):
        origin = board.provenance[path]
        source = origin.source
        if origin.range is not None:
            low, high = (with_unit(path, end) for end in origin.range)
            source = f"{low} to {high}; {source}"
        rows.append((path, board.number(path), origin.kind, source))
    return rows


def predict_json(p: Prediction) -> str:
    """The same as one JSON object."""
    q = p.question
    data = {
        "verdict": verdict(p),
        "notes": notes(p),
        "command": p.command,
        "answer": None if p.time is None else dict(p.time.to_json()),
        "together": None if p.together is None else {"requests": p.requests, **asdict(p.together)},
        "sharing": None if p.sharing is None else asdict(p.sharing),
        "assumed": list(p.assumed),
        "changes": [asdict(c) | {"errors": c.errors if c.flips_at is not None else None} for c in p.changes],
        "board": q.board.name,
        "context": q.context,
        "alpha": q.alpha if isinstance(q.alpha, float) else list(q.alpha),
        "alpha_source": p.alpha_source,
        "pays_from_alpha": p.pays_from,
        "leading": [planned_variant(v, i).to_json() for v, i in zip(p.decision.leading, p.intervals, strict=True)],
        "potential": [planned_variant(v, i).to_json() for v, i in zip(p.potential, p.potential_intervals, strict=True)],
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
    where = "; ".join(f"{title} {spec.name} on {where_text(place, spec)}" for title, spec, place in models_of(variant))
    more = [
        line
        for text in (where, variant.reason)
        for line in textwrap.wrap(text, _WIDTH, initial_indent="    ", subsequent_indent="      ")
    ]
    return [head, *more]


def _ms(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _value(item: Any) -> str:
    return f"{item:g}" if isinstance(item, float) else str(item)
