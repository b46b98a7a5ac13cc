"""Charts as SVG text, drawn by arithmetic: no library, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#1f6feb", "#d4572a", "#2b8a3e", "#8250df", "#b08800", "#0b7285", "#c2255c", "#495057")
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 130, 14, 42


@dataclass(frozen=True)
class Line:
    """A named series of points; `dashed` for limits rather than results."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Mark:
    """A highlighted point with a label."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A range with its title; `log` for a logarithmic scale."""

    title: str
    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """0 at `low`, 1 at `high`, clipped."""
        if self.log:
            share = math.log(max(value, 1e-30) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))

    def ticks(self) -> list[float]:
        """About five round values."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [10.0**e for e in range(first, last + 1)]
        raw = (self.high - self.low) / 5
        size = 10 ** math.floor(math.log10(raw))
        step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
        start = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(start, math.floor(self.high / step + 1e-9) + 1)]


def line_chart(
    x: Axis, y: Axis, lines: Sequence[Line], marks: Sequence[Mark] = (), size: tuple[int, int] = (640, 320)
) -> str:
    """Lines over two axes, named at the right edge."""
    width, height = size
    right, bottom = width - _RIGHT, height - _BOTTOM

    def at(px: float, py: float) -> tuple[float, float]:
        return _LEFT + x.place(px) * (right - _LEFT), bottom - y.place(py) * (bottom - _TOP)

    parts = [_frame(x, y, right, bottom)]
    ends: list[tuple[float, str, str]] = []
    for i, line in enumerate(lines):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(*p) for p in line.points))
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        ends.append((at(*line.points[-1])[1], line.name, colour))
    previous = -99.0
    for py, name, colour in sorted(ends):
        previous = max(py, previous + 14)
        parts.append(_text(right + 6, previous + 4, name, colour))
    for mark in marks:
        px, py = at(mark.x, mark.y)
        anchor = "end" if px > _LEFT + 0.7 * (right - _LEFT) else "start"
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="5" fill="#fff" stroke="#111" stroke-width="2"/>')
        parts.append(
            _text(px + (-9 if anchor == "end" else 9), max(_TOP + 10, py - 8), mark.label, "#111", anchor, bold=True)
        )
    return _svg(width, height, parts)


def heat_map(x: Axis, y: Axis, value: Callable[[float, float], float], marks: Sequence[Mark], cells: int = 40) -> str:
    """A map of a gain: blue where it is above 1, red where it is below; the line of 1 lies where they meet."""
    width, height = 640, 360
    right, bottom = width - _RIGHT, height - _BOTTOM
    parts = []
    w, h = (right - _LEFT) / cells, (bottom - _TOP) / cells
    for i in range(cells):
        for j in range(cells):
            vx = x.low + (x.high - x.low) * (i + 0.5) / cells
            vy = y.low + (y.high - y.low) * (j + 0.5) / cells
            fill = _gain_colour(value(vx, vy))
            px, py = _LEFT + i * w, bottom - (j + 1) * h
            parts.append(
                f'<rect x="{px:.1f}" y="{py:.1f}" width="{w + 0.4:.1f}" height="{h + 0.4:.1f}" fill="{fill}"/>'
            )
    parts.append(_frame(x, y, right, bottom))
    for k, gain in enumerate((0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5)):
        py = bottom - 20 - k * 22
        parts.append(f'<rect x="{right + 12}" y="{py}" width="18" height="18" fill="{_gain_colour(gain)}"/>')
        parts.append(_text(right + 36, py + 13, f"{gain:g} x", "#333"))
    for mark in marks:
        px = _LEFT + x.place(mark.x) * (right - _LEFT)
        py = bottom - y.place(mark.y) * (bottom - _TOP)
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="6" fill="#fff" stroke="#111" stroke-width="2"/>')
        anchor = "end" if x.place(mark.x) > 0.6 else "start"
        parts.append(_text(px + (-10 if anchor == "end" else 10), py - 8, mark.label, "#111", anchor, bold=True))
    return _svg(width, height, parts)


def timeline(spans: Sequence[tuple[str, str, float, float, str]]) -> str:
    """Lanes of (lane, name, start, duration, explanation) in seconds."""
    width, lane_height, left = 760, 44, 150
    lanes = list(dict.fromkeys(span[0] for span in spans))
    end = max(start + duration for _, _, start, duration, _ in spans)
    scale = (width - left - 16) / end
    height = lane_height * len(lanes) + 40
    parts = []
    for i, lane in enumerate(lanes):
        parts.append(_text(8, 26 + i * lane_height, lane, "#111", bold=True))
        parts.append(f'<path d="M{left},{40 + i * lane_height}H{width - 16}" stroke="#ddd"/>')
    for lane, name, start, duration, why in spans:
        colour = (
            COLOURS[0]
            if name.startswith(("verify", "decode"))
            else COLOURS[1]
            if "draft" in name or "guess" in name
            else "#888"
        )
        px, w, py = left + start * scale, max(1.0, duration * scale - 1), 10 + lanes.index(lane) * lane_height
        title = f"<title>{escape(f'{name}: {why}')}</title>"
        parts.append(f'<g>{title}<rect x="{px:.1f}" y="{py}" width="{w:.1f}" height="24" rx="3" fill="{colour}"/>')
        if w > 7 * len(name):
            parts.append(_text(px + 6, py + 16, name, "#fff"))
        parts.append("</g>")
    axis = Axis("", 0.0, 1e3 * end)
    for tick in axis.ticks():
        parts.append(_text(left + tick / 1e3 * scale, height - 10, f"{tick:g}", "#555", "middle"))
    parts.append(_text(8, height - 10, "ms", "#555"))
    return _svg(width, height, parts)


def bars(parts_by_row: Sequence[tuple[str, Sequence[tuple[str, float]]]], limit: float, unit: str) -> str:
    """Stacked horizontal bars against a limit, with a legend."""
    width, left, row = 760, 150, 34
    names = list(dict.fromkeys(name for _, parts in parts_by_row for name, _ in parts))
    most = 1.08 * max(limit, *(sum(v for _, v in parts) for _, parts in parts_by_row))
    scale = (width - left - 16) / most
    height = row * len(parts_by_row) + 52
    drawn = []
    for i, (title, parts) in enumerate(parts_by_row):
        drawn.append(_text(8, 24 + i * row, title, "#111"))
        px = float(left)
        for name, value in parts:
            w = value * scale
            label = escape(f"{name}: {value:.3g} {unit}")
            colour = COLOURS[names.index(name)]
            drawn.append(
                f"<g><title>{label}</title>"
                f'<rect x="{px:.1f}" y="{8 + i * row}" width="{w:.1f}" height="22" fill="{colour}"/></g>'
            )
            px += w
        drawn.append(_text(px + 5, 24 + i * row, f"{sum(v for _, v in parts):.2f} {unit}", "#333"))
    at, base = left + limit * scale, row * len(parts_by_row) + 4
    drawn.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="2" y2="{base}" stroke="#111" stroke-dasharray="4 3"/>')
    drawn.append(_text(at, base + 14, f"{limit:.2f} {unit} free", "#111", "middle", bold=True))
    for i, name in enumerate(names):
        drawn.append(f'<rect x="{left + i * 120}" y="{height - 18}" width="12" height="12" fill="{COLOURS[i]}"/>')
        drawn.append(_text(left + i * 120 + 17, height - 8, name, "#333"))
    return _svg(width, height, drawn)


def _frame(x: Axis, y: Axis, right: float, bottom: float) -> str:
    parts = [f'<path d="M{_LEFT},{_TOP}V{bottom}H{right}" fill="none" stroke="#555"/>']
    for tick in x.ticks():
        px = _LEFT + x.place(tick) * (right - _LEFT)
        parts.append(f'<line x1="{px:.1f}" x2="{px:.1f}" y1="{bottom}" y2="{bottom + 4}" stroke="#555"/>')
        parts.append(_text(px, bottom + 17, f"{tick:g}", "#555", "middle"))
    for tick in y.ticks():
        py = bottom - y.place(tick) * (bottom - _TOP)
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{py:.1f}" y2="{py:.1f}" stroke="#0001"/>')
        parts.append(_text(_LEFT - 6, py + 4, f"{tick:g}", "#555", "end"))
    parts.append(_text((_LEFT + right) / 2, bottom + 35, x.title, "#333", "middle"))
    middle = (_TOP + bottom) / 2
    turn = f'transform="rotate(-90 13 {middle:.0f})"'
    parts.append(f'<text x="13" y="{middle:.0f}" fill="#333" text-anchor="middle" {turn}>{escape(y.title)}</text>')
    return "".join(parts)


def _gain_colour(gain: float) -> str:
    """White at 1, blue above, red below; full colour at factors of 2.5."""
    share = min(1.0, abs(math.log(max(gain, 1e-6))) / math.log(2.5))
    full = (31, 111, 235) if gain >= 1 else (212, 60, 42)
    r, g, b = (round(255 + (c - 255) * share) for c in full)
    return f"#{r:02x}{g:02x}{b:02x}"


def _text(x: float, y: float, text: str, colour: str, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    box = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-size="12">{"".join(parts)}</svg>'
