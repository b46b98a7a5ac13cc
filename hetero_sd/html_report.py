"""The report of a prediction: one self-contained HTML file that an engineer can forward."""

from __future__ import annotations

from html import escape

from costmodel.decoder import DecoderSpec
from costmodel.placement import Placement
from costmodel.roofline import CpuSlice, GpuSlice, Processor
from costmodel.speculative import MOST_GAMMA, at_position, expected_tokens
from costmodel.variants import Variant, gb
from costmodel.work import step_ops, totals
from hetero_sd.predict import Prediction
from hetero_sd.predict_report import MOST_ROWS, facts_used, notes, rate, verdict
from hetero_sd.round_trace import round_spans
from hetero_sd.svg import Axis, Line, Mark, bars, heat_map, line_chart, timeline

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1b1f24;max-width:960px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}p.verdict{font-size:1.15rem;font-weight:600}
table{border-collapse:collapse;width:100%;font-size:13px}
td,th{padding:4px 8px;border-bottom:1px solid #ddd;text-align:left}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}tr.best{background:#eaf2ff}tr.no{color:#777}
svg{max-width:100%;height:auto;font-family:system-ui,sans-serif}p.note{color:#555;font-size:13px;margin-top:.3rem}
"""
_ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def html_report(p: Prediction) -> str:
    """The page: verdict, variants, and the charts behind them."""
    board = p.question.board
    sections = [
        f"<h1>Prediction for board {escape(board.name)}</h1><p>{escape(board.description)}</p>",
        f'<p class="verdict">{escape(verdict(p))}</p>',
        "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes(p)) + "</ul>",
        _variants(p),
        *_speculation(p),
        _verify_curves(p),
        _roofline(p),
        f"<h2>One round of the chosen variant</h2>{timeline(round_spans(p))}"
        '<p class="note">Hold the pointer over a bar to see what its time is made of.</p>',
        _memory(p),
        _facts(p),
    ]
    head = f'<meta charset="utf-8"><title>hetero_sd: {escape(board.name)}</title><style>{_STYLE}</style>'
    viewport = '<meta name="viewport" content="width=device-width,initial-scale=1">'
    body = "\n".join(f"<section>{s}</section>" for s in sections)
    return f'<!doctype html>\n<html lang="en"><head>{head}{viewport}</head><body>\n{body}\n</body></html>\n'


def _variants(p: Prediction) -> str:
    titles = ("mode", "gamma", "tokens/s", "interval", "x same", "x best", "memory", "where, and why")
    head = "".join(f"<th{' class=n' if 0 < i < 7 else ''}>{t}</th>" for i, t in enumerate(titles))
    rows = [
        _row(v, f"{rate(i.low)} to {rate(i.high)}", "best" if v == p.decision.best else "")
        for v, i in list(zip(p.decision.leading, p.intervals, strict=True))[:MOST_ROWS]
    ]
    rows += [_row(v, "does not fit", "no") for v in p.decision.not_fitting[:MOST_ROWS]]
    note = "x same: over the target alone where this variant runs it; x best: over the best single processor alone."
    return f'<h2>Leading variants</h2><table><tr>{head}</tr>{"".join(rows)}</table><p class="note">{note}</p>'


def _row(v: Variant, sure: str, style: str) -> str:
    where = f"target {v.target.name} on {v.target_placement.text(v.target)}"
    if v.draft is not None and v.draft_placement is not None:
        where += f"; draft {v.draft.name} on {v.draft_placement.text(v.draft)}"
    where = where.replace("gpu", "gpu (predicted)")
    numbers = (str(v.gamma or "-"), rate(v.tokens_per_s), sure, f"{v.against_same:.2f}", f"{v.against_best:.2f}")
    cells = "".join(f'<td class="n">{c}</td>' for c in (*numbers, gb(v.memory.total_bytes)))
    return f'<tr class="{style}"><td>{v.mode}</td>{cells}<td>{escape(where)}<br><em>{escape(v.reason)}</em></td></tr>'


def _speculation(p: Prediction) -> list[str]:
    """Speed-up over gamma and acceptance, and the break-even map, for the best variant that drafts."""
    best = p.speculative
    if best is None or best.draft is None or best.draft_placement is None:
        return []
    base = p.decision.baseline.tokens_per_s

    def gain(alpha: object, gamma: int) -> float:
        models = (best.mode, best.target, best.target_placement, best.draft, best.draft_placement)
        if gamma == 0:
            return p.search.price("target-only", best.target, best.target_placement).tokens_per_s / base
        return p.search.price(*models, gamma, alpha).tokens_per_s / base  # type: ignore[arg-type]

    lines = [Line(f"acceptance {a:g}", [(g, gain(a, g)) for g in range(MOST_GAMMA + 1)]) for a in _ALPHAS]
    own = [(g, gain(p.question.alpha, g)) for g in range(MOST_GAMMA + 1)]
    lines.append(Line("as asked", own, dashed=True))
    top = max(y for line in lines for _, y in line.points)
    mark = Mark(best.gamma, gain(p.question.alpha, best.gamma), f"gamma {best.gamma}: {best.against_best:.2f} x")
    chart = line_chart(
        Axis("gamma, drafted tokens a round", 0, MOST_GAMMA), Axis("speed over baseline", 0, 1.08 * top), lines, [mark]
    )
    where = escape(
        f"{best.mode}: target on {best.target_placement.text(best.target)}, "
        f"draft on {best.draft_placement.text(best.draft)}"
    )
    first = f'<h2>Speed-up over draft length and acceptance</h2><p class="note">{where}</p>{chart}'
    return [first, _break_even(p, best)]


def _break_even(p: Prediction, best: Variant) -> str:
    """S = E / (gamma c + T(gamma + 1) / T(1)) at its best gamma, on the target's own verify curve."""
    assert best.draft is not None
    assert best.draft_placement is not None
    costs = p.search.costs(best.target)
    one = costs.step_s(best.target_placement, 1)
    curve = [costs.step_s(best.target_placement, g + 1) / one for g in range(MOST_GAMMA + 1)]
    c = p.search.costs(best.draft).step_s(best.draft_placement, 1) / one
    alpha = at_position(p.question.alpha, 1)

    def best_gain(a: float, ratio: float) -> float:
        return max(expected_tokens(a, g) / (g * ratio + curve[g]) for g in range(1, MOST_GAMMA + 1))

    high = max(1.0, 1.2 * c)
    chart = heat_map(
        Axis("acceptance", 0.0, 1.0),
        Axis("c = draft step / target step", 0.0, high),
        best_gain,
        [Mark(alpha, c, "this pair")],
    )
    text = f"This pair: c = {c:.3f}. Sequential speculation pays in the blue part, at the best gamma of each point."
    return f'<h2>Where speculation pays</h2>{chart}<p class="note">{text}</p>'


def _verify_curves(p: Prediction) -> str:
    best = p.decision.best
    costs = p.search.costs(best.target)
    lines = []
    for placement in _fastest_wholes(p, best.target):
        points = [(n, 1e3 * costs.step_s(placement, n)) for n in range(1, MOST_GAMMA + 2)]
        lines.append(Line(_name(placement.segments[0].processor), points))
    top = max(y for line in lines for _, y in line.points)
    mark = Mark(best.gamma + 1, 1e3 * costs.step_s(best.target_placement, best.gamma + 1), f"n = {best.gamma + 1}")
    chart = line_chart(Axis("n, tokens in one step", 1, MOST_GAMMA + 1), Axis("ms", 0, 1.05 * top), lines, [mark])
    note = "Stairs come from the kernels' row tiles. GPU curves are predicted: no GPU kernel was measured."
    return f'<h2>T(n) of {escape(best.target.name)} by processor</h2>{chart}<p class="note">{note}</p>'


def _fastest_wholes(p: Prediction, shape: DecoderSpec) -> list[Placement]:
    costs = p.search.costs(shape)
    fastest: dict[str, Placement] = {}
    for processor in costs.slices:
        placement = costs.whole(processor)
        kept = fastest.get(processor.family)
        if kept is None or costs.step_s(placement, 4) < costs.step_s(kept, 4):
            fastest[processor.family] = placement
    return list(fastest.values())


def _roofline(p: Prediction) -> str:
    """Arithmetic intensity against rate: the limits of each processor, and the chosen target's steps on it."""
    best, f = p.decision.best, p.question.factors
    lines, marks = [], []
    for placement in _fastest_wholes(p, best.target):
        processor = placement.segments[0].processor
        if isinstance(processor, GpuSlice):
            peak, rate = f.gpu_compute * processor.gpu.fp32_gflops, f.gpu_bandwidth * processor.gpu.bandwidth_gb_per_s
        else:
            assert isinstance(processor, CpuSlice)
            cluster, threads = processor.parts[0]
            peak = cluster.fp32_gflops * threads / cluster.count
            rate = f.bandwidth * min(
                threads * cluster.bandwidth_one_thread_gb_per_s, cluster.bandwidth_all_threads_gb_per_s
            )
        knee = peak / rate
        lines.append(Line(_name(processor), [(0.1, 0.1 * rate), (knee, peak), (200.0, peak)]))
    costs = p.search.costs(best.target)
    for n in (1, 4, 16):
        work = totals(step_ops(best.target, n, p.question.context))
        rate = work.flops / costs.step_s(best.target_placement, n) / 1e9
        marks.append(Mark(work.flops / work.bytes, rate, f"n = {n}"))
    top = 2 * max(y for line in lines for _, y in line.points)
    chart = line_chart(
        Axis("operations a byte", 0.1, 200.0, log=True), Axis("GFLOP/s", 0.1, top, log=True), lines, marks
    )
    note = "Circles: steps of n tokens of the target as placed. Left of a knee memory decides, right of it arithmetic."
    return f'<h2>Roofline</h2>{chart}<p class="note">{note}</p>'


def _memory(p: Prediction) -> str:
    rows = []
    for v in [*p.decision.leading[:4], *p.decision.not_fitting[:2]]:
        m = v.memory
        parts = [("weights", m.mapped_bytes), ("GPU copies", m.gpu_bytes), ("KV cache", m.kv_bytes)]
        parts += [("activations", m.activation_bytes), ("process", m.process_bytes)]
        rows.append((f"{v.mode}, gamma {v.gamma}", [(name, size / 1e9) for name, size in parts]))
    return f"<h2>Memory</h2>{bars(rows, p.search.free_bytes / 1e9, 'GB')}"


def _facts(p: Prediction) -> str:
    rows = "".join(
        f'<tr><td>{escape(path)}</td><td class="n">{escape(value)}</td><td>{kind}</td><td>{escape(source)}</td></tr>'
        for path, value, kind, source in facts_used(p)
    )
    factors = ", ".join(f"{name} {value:g}" for name, value in p.question.factors.to_json().items())
    table = f'<table><tr><th>number</th><th class="n">value</th><th>kind</th><th>source</th></tr>{rows}</table>'
    return f'<h2>Numbers it rests on</h2>{table}<p class="note">Factors: {escape(factors)}.</p>'


def _name(processor: Processor) -> str:
    return "gpu (predicted)" if isinstance(processor, GpuSlice) else processor.name
