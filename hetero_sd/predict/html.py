"""The report of a prediction: one self-contained HTML file that an engineer can forward.

report.html.jinja has its words and looks; here is what fills it.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from costmodel.estimate import seconds
from costmodel.question import Variant, gb
from costmodel.schema.plan import TARGET_ONLY
from costmodel.speculative import Acceptance, at_position
from hetero_sd.predict.axes import Axis, Mark
from hetero_sd.predict.charts import Bar, Line, gain_map, line_chart, stacked_bars, timeline
from hetero_sd.predict.chrome_trace import round_spans
from hetero_sd.predict.page import both, render
from hetero_sd.predict.predict import Prediction
from hetero_sd.predict.processor_charts import roofline_chart, verify_curves
from hetero_sd.predict.sentences import (
    change_notes,
    models_of,
    notes,
    plural,
    rate,
    time_note,
    verdict,
    wait,
    where_text,
)
from hetero_sd.predict.story import MOST_GAMMA, gain_over_baseline, outcome_text, relative_cost
from hetero_sd.predict.text import MOST_POTENTIAL, MOST_ROWS, POTENTIAL, facts_used
from hetero_sd.predict.units import size, with_unit

_ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_STEPS = ("verify, decode", "draft", "loop")  # colours of the timeline


def html_report(p: Prediction) -> str:
    """The page: verdict, variants, and the charts behind them."""
    return render(
        "report.html.jinja",
        board=p.question.board,
        verdict=verdict(p),
        figures=_figures(p),
        command=p.command,
        changes=change_notes(p),
        assumed=p.assumed,
        notes=[note for note in notes(p) if note not in time_note(p)],
        variants=_variants(p),
        potential=_potential(p),
        speculation=_speculation(p),
        verify=verify_curves(p),
        roofline=roofline_chart(p),
        round=_round(p),
        memory=_memory(p),
        facts=_facts(p),
    )


_TITLES = ("mode", "gamma", "tokens/s", "interval", "x same", "x best", "memory", "where, and why")


def _figures(p: Prediction) -> list[dict[str, str]]:
    """The few numbers that stand first."""
    best, sure, t = p.decision.best, p.intervals[0], p.time
    found = [("tokens a second", rate(best.tokens_per_s), f"{rate(sure.low)} to {rate(sure.high)}")]
    if t is not None:
        found.append(("first token after", wait(t.first_token_s), f"a prompt of {plural(t.prompt_tokens, 'token')}"))
        found.append(("whole answer after", wait(t.answer_s), plural(t.new_tokens, "token")))
    found.append(("memory", size(best.memory.total_bytes), f"of {size(p.search.free_bytes)} that are free"))
    if t is not None and t.energy_j is not None and t.watts is not None:
        found.append(("energy of the answer", f"{t.energy_j:.3g} J", f"at {t.watts:g} W of the whole board"))
    return [{"name": name, "value": value, "note": note} for name, value, note in found]


def _variants(p: Prediction) -> dict[str, Any]:
    rows = [
        _variant(v, f"{rate(i.low)} to {rate(i.high)}", "best" if v == p.decision.best else "")
        for v, i in list(zip(p.decision.leading, p.intervals, strict=True))[:MOST_ROWS]
    ]
    rows += [_variant(v, "does not fit", "no") for v in p.decision.not_fitting[:MOST_ROWS]]
    return {"titles": _TITLES, "rows": rows}


def _potential(p: Prediction) -> dict[str, Any]:
    pairs = list(zip(p.potential, p.potential_intervals, strict=True))[:MOST_POTENTIAL]
    rows = [_variant(v, f"{rate(i.low)} to {rate(i.high)}", "no") for v, i in pairs]
    return {"title": POTENTIAL.capitalize(), "titles": _TITLES, "rows": rows}


def _variant(v: Variant, sure: str, style: str) -> dict[str, Any]:
    where = "; ".join(f"{title} {spec.name} on {where_text(place, spec)}" for title, spec, place in models_of(v))
    numbers = [str(v.gamma or "-"), rate(v.tokens_per_s), sure, f"{v.against_same:.2f}", f"{v.against_best:.2f}"]
    return {"style": style, "cells": [v.mode, *numbers, gb(v.memory.total_bytes), (where, v.reason)]}


def _speculation(p: Prediction) -> dict[str, Any] | None:
    """Speed-up over gamma and acceptance, and the break-even map, for the best variant that drafts."""
    best = p.speculative
    if best is None or best.draft is None or best.draft_placement is None:
        return None
    base = p.decision.baseline.tokens_per_s
    models = (best.mode, best.target, best.target_placement, best.draft, best.draft_placement)
    alone = p.search.price(TARGET_ONLY, best.target, best.target_placement).tokens_per_s

    def gain(alpha: Acceptance, gamma: int) -> float:
        return (p.search.price(*models, gamma, alpha).tokens_per_s if gamma else alone) / base

    def curve(alpha: Acceptance) -> list[tuple[float, float]]:
        return [(g, gain(alpha, g)) for g in range(longest + 1)]

    longest = max(MOST_GAMMA, best.gamma)
    lines = [Line(f"acceptance {a:g}", curve(a)) for a in reversed(_ALPHAS)]
    if p.question.alpha not in _ALPHAS:
        lines.append(Line("as asked", curve(p.question.alpha), dashed=True))
    top = max(y for line in lines for _, y in line.points)
    mark = Mark(best.gamma, gain(p.question.alpha, best.gamma), f"gamma {best.gamma}: {best.against_best:.2f} x")
    axes = Axis("gamma, drafted tokens a round", 0, longest, whole=True), Axis("speed over baseline", 0, 1.08 * top)
    where = ", ".join(f"{title} on {where_text(place, spec)}" for title, spec, place in models_of(best))
    chosen = "" if best == p.decision.best else ", the best that drafts; the verdict is another"
    return {
        "where": f"{best.mode}: {where}{chosen}",
        "chart": both(line_chart, "speed over draft length and acceptance", *axes, lines, [mark]),
        **_break_even(p, best),
    }


def _break_even(p: Prediction, best: Variant) -> dict[str, Any]:
    """The gain over the baseline, by acceptance and by the cost of a draft step."""
    c = relative_cost(p, best)
    axes = Axis("acceptance", 0.0, 1.0), Axis("c = draft step / token of the baseline", 0.0, max(1.0, 1.2 * c))
    marks = [Mark(at_position(p.question.alpha, 1), c, "this pair")]
    return {
        "map": both(gain_map, "where speculation pays", *axes, gain_over_baseline(p, best), marks),
        "c": f"{c:.3f}",
    }


def _round(p: Prediction) -> dict[str, Any]:
    spans = round_spans(p)
    bars = [Bar(*span, series=_step_kind(span[1])) for span in spans]
    rows = [
        {"style": "", "cells": [lane, name, seconds(start), seconds(duration), why]}
        for lane, name, start, duration, why in spans
    ]
    best = p.decision.best
    ends = f"It yields {outcome_text(p, best)}." if best.draft is not None else "It yields one token."
    return {
        "ends": ends,
        "chart": both(timeline, "one round", bars, _STEPS),
        "titles": ["processor", "step", "start", "time", "made of"],
        "rows": rows,
    }


def _step_kind(name: str) -> int:
    """The index in _STEPS of a span."""
    if name.startswith(("verify", "decode")):
        return 0
    return 1 if "draft" in name or "guess" in name else 2


def _memory(p: Prediction) -> dict[str, Markup]:
    rows = []
    for v in [*p.decision.leading[:4], *p.decision.not_fitting[:2]]:
        m = v.memory
        parts = [("weights", m.mapped_bytes), ("GPU copies", m.gpu_bytes), ("KV cache", m.kv_bytes)]
        parts += [("activations", m.activation_bytes), ("process", m.process_bytes)]
        rows.append((f"{v.mode}, gamma {v.gamma}", [(name, count / 1e9) for name, count in parts]))
    return both(stacked_bars, "memory", rows, ("free", p.search.free_bytes / 1e9), "GB")


def _facts(p: Prediction) -> dict[str, Any]:
    rows = [
        {"style": "", "cells": [path, with_unit(path, value), kind, source]}
        for path, value, kind, source in facts_used(p)
    ]
    values = p.question.factors.to_json().items()
    factors = [{"style": "", "cells": [name, with_unit(name, value)]} for name, value in values]
    titles = ["number", "value", "kind", "source"]
    return {"titles": titles, "rows": rows, "factor_titles": ["factor", "value"], "factors": factors}
