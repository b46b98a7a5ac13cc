"""The charts of the report, drawn with matplotlib; figure.py writes them and gives them their colours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from hetero_sd.predict.axes import Axis, Mark, axes_of, legend, put_marks
from hetero_sd.predict.figure import BANDS, INK, PAPER, SERIES, drawn, laid_out
from hetero_sd.predict.units import plain

GAINS = (0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5)  # borders of the bands of a map of gains
_DASHES = ("-", (0, (6, 2)), (0, (3, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


@dataclass(frozen=True)
class Line:
    """A named series of points; `dashed` for limits rather than results."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Bar:
    """A bar of a timeline: lane, name, start and duration in seconds, what its time is made of, which colour it has."""

    lane: str
    name: str
    start: float
    duration: float
    why: str
    series: int


def line_chart(name: str, x: Axis, y: Axis, lines: Sequence[Line], marks: Sequence[Mark], narrow: bool = False) -> str:
    """Lines over two axes; `name` says in words what it shows and is the chart's label."""

    def draw(figure: Figure) -> None:
        axes = axes_of(figure, x, y)
        for i, line in enumerate(lines):
            style = ":" if line.dashed else _DASHES[i % len(_DASHES)]
            xs, ys = zip(*line.points, strict=True)
            colour = INK if line.dashed else SERIES[i % len(SERIES)]
            axes.plot(xs, ys, color=colour, linestyle=style, linewidth=2, label=line.name)
        legend(figure, axes.get_legend_handles_labels()[0], narrow)
        put_marks(figure, axes, marks)

    return drawn(name, draw, narrow, 340 if not narrow else 300 + 19 * ((len(lines) + 1) // 2))


def gain_map(
    name: str, x: Axis, y: Axis, value: Callable[[float, float], float], marks: Sequence[Mark], narrow: bool = False
) -> str:
    """A map of a gain in bands: blue where it is above 1, red where it is below."""
    cells = 60

    def draw(figure: Figure) -> None:
        axes = axes_of(figure, x, y, grid=False)
        xs = [x.low + (x.high - x.low) * i / cells for i in range(cells + 1)]
        ys = [y.low + (y.high - y.low) * i / cells for i in range(cells + 1)]
        gains = [[value(vx, vy) for vx in xs] for vy in ys]
        axes.contourf(xs, ys, gains, levels=[0.0, *GAINS, 1e9], colors=BANDS)
        titles = [f"below {GAINS[0]:g} x", *(f"{a:g} to {b:g} x" for a, b in pairwise(GAINS))]
        titles.append(f"above {GAINS[-1]:g} x")
        patches = [Patch(facecolor=c, label=t) for c, t in zip(BANDS, titles, strict=True)]
        legend(figure, patches if narrow else patches[::-1], narrow)
        put_marks(figure, axes, marks)

    return drawn(name, draw, narrow, 360 if not narrow else 400)


def cell_map(
    name: str,
    x: tuple[str, Sequence[str]],
    y: tuple[str, Sequence[str]],
    cells: Mapping[tuple[int, int], tuple[float, object]],
    narrow: bool = False,
) -> str:
    """A table of gains in the colours of `gain_map`, with a line between cells of different verdicts.

    Args:
        name: in words what it shows.
        x: title and names of the columns.
        y: title and names of the rows, from below.
        cells: (row, column) -> gain and verdict; one that is missing is left empty.
        narrow: for a phone; numbers of cells that are too small for them are left out.
    """
    columns, rows = len(x[1]), len(y[1])

    def draw(figure: Figure) -> None:
        axes = axes_of(figure, Axis(x[0], -0.5, columns - 0.5), Axis(y[0], -0.5, rows - 0.5), grid=False)
        step = 1 if columns <= (8 if narrow else 18) else 2 + columns // (16 if narrow else 36)
        axes.set_xticks(range(0, columns, step), x[1][::step])
        axes.set_yticks(range(rows), y[1])
        axes.tick_params(length=0)
        for (row, column), (gain, verdict) in cells.items():
            band = sum(gain >= border for border in GAINS)
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=BANDS[band], edgecolor=PAPER))
            if columns <= (7 if narrow else 14):
                text = axes.text(column, row, f"{gain:.2f}", color=INK, ha="center", va="center")
                text.set_gid("label")
            for other, ends in (
                ((row, column + 1), ((column + 0.5, column + 0.5), (row - 0.5, row + 0.5))),
                ((row + 1, column), ((column - 0.5, column + 0.5), (row + 0.5, row + 0.5))),
            ):
                if other in cells and cells[other][1] != verdict:
                    axes.plot(*ends, color=INK, linewidth=2.5)
        titles = [f"below {GAINS[0]:g} x", *(f"{a:g} to {b:g} x" for a, b in pairwise(GAINS))]
        titles.append(f"above {GAINS[-1]:g} x")
        used = sorted({sum(gain >= border for border in GAINS) for gain, _ in cells.values()})
        legend(figure, [Patch(facecolor=BANDS[i], label=titles[i]) for i in used], narrow, below=True)

    return drawn(name, draw, narrow, 30 * rows + (160 if narrow else 120))


def timeline(name: str, bars: Sequence[Bar], series: Sequence[str], narrow: bool = False) -> str:
    """Lanes of bars; a bar's explanation is its tooltip, `series` names the colours."""
    lanes = list(dict.fromkeys(bar.lane for bar in bars))
    end = max(bar.start + bar.duration for bar in bars)
    titles = {f"bar-{i}": f"{bar.name}: {bar.why}" for i, bar in enumerate(bars)}

    def draw(figure: Figure) -> None:
        axes = axes_of(figure, Axis("ms", 0.0, 1e3 * end), Axis("", len(lanes) - 0.5, -0.5), grid=False)
        axes.set_yticks(range(len(lanes)), [lane.replace(", ", ",\n") for lane in lanes])
        axes.tick_params(axis="y", length=0)
        texts = []
        for i, bar in enumerate(bars):
            width, left = 1e3 * max(bar.duration, end / 500), 1e3 * bar.start
            [shape] = axes.barh([lanes.index(bar.lane)], [width], 0.7, [left], color=SERIES[bar.series])
            shape.set_gid(f"bar-{i}")
            shape.set_edgecolor(PAPER)
            shape.set_linewidth(0.5)
            middle = (left + width / 2, lanes.index(bar.lane))
            texts.append((shape, axes.text(*middle, bar.name, color=PAPER, ha="center", va="center", in_layout=False)))
        patches = [Patch(facecolor=SERIES[i], label=title) for i, title in enumerate(series)]
        legend(figure, patches, narrow, below=True)
        renderer = laid_out(figure)
        for shape, text in texts:
            if text.get_window_extent(renderer).width + 8 > shape.get_window_extent(renderer).width:
                text.remove()

    return drawn(name, draw, narrow, 44 * len(lanes) + (86 if not narrow else 110), titles)


def stacked_bars(
    name: str,
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]],
    limit: tuple[str, float],
    unit: str,
    narrow: bool = False,
) -> str:
    """Stacked horizontal bars, each with its sum, against a named limit."""
    names = list(dict.fromkeys(part for _, parts in rows for part, _ in parts))
    titles: dict[str, str] = {}

    def draw(figure: Figure) -> None:
        most = max(limit[1], *(sum(v for _, v in parts) for _, parts in rows))
        axes = axes_of(
            figure, Axis(unit, 0.0, (1.5 if narrow else 1.15) * most), Axis("", len(rows) - 0.5, -0.5), False
        )
        axes.set_yticks(range(len(rows)), [title.replace(", ", ",\n") if narrow else title for title, _ in rows])
        axes.tick_params(axis="y", length=0)
        for y, (_, parts) in enumerate(rows):
            left = 0.0
            for i, (part, value) in enumerate(parts):
                [shape] = axes.barh([y], [value], 0.65, [left], color=SERIES[names.index(part)])
                shape.set_gid(f"part-{y}-{i}")
                titles[f"part-{y}-{i}"] = f"{part}: {plain(value, 3)} {unit}"
                left += value
            total = f"{left:.2f} {unit}"
            axes.annotate(total, (left, y), (5, 0), textcoords="offset points", va="center", color=INK)
        axes.axvline(limit[1], color=INK, linestyle="--", linewidth=1.5, zorder=0.5)
        handles: list[Patch | Line2D] = [Patch(facecolor=SERIES[i], label=n) for i, n in enumerate(names)]
        handles.append(Line2D([], [], color=INK, linestyle="--", label=f"{limit[1]:.2f} {unit} {limit[0]}"))
        legend(figure, handles, narrow, below=True)

    return drawn(name, draw, narrow, (44 if narrow else 34) * len(rows) + (140 if narrow else 90), titles)


def columns_with_range(
    name: str, x: Axis, y: Axis, columns: Sequence[tuple[str, float, float, float]], narrow: bool = False
) -> str:
    """Columns (title, value, least, most) with their range, the highest in another colour; a line at 1."""

    def draw(figure: Figure) -> None:
        axes = axes_of(figure, x, y)
        axes.set_xticks(range(len(columns)), [title for title, *_ in columns])
        best = max(value for _, value, *_ in columns)
        for i, (_, value, least, most) in enumerate(columns):
            axes.bar([i], [value], 0.7, color=SERIES[2 if value == best else 0])
            axes.plot([i, i], [least, most], color=INK, linewidth=1.5)
            axes.text(i, 0.02 * y.high, f"{value:.2f}", ha="center", va="bottom", color=PAPER)
        axes.axhline(1.0, color=INK, linewidth=1)

    return drawn(name, draw, narrow, 320)
