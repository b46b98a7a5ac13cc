"""Axes, legends and labelled marks of the report's charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from hetero_sd.predict.figure import FAINT, INK, PAPER, laid_out
from hetero_sd.predict.units import plain


@dataclass(frozen=True)
class Mark:
    """A highlighted point with a label."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A range with its title; `log` for a logarithmic scale, `whole` for whole numbers."""

    title: str
    low: float
    high: float
    log: bool = False
    whole: bool = False


def axes_of(figure: Figure, x: Axis, y: Axis, grid: bool = True) -> Axes:
    """Axes with plain numbers; the y axis' title stands above it, where it needs no turning."""
    axes = figure.add_subplot()
    axes.set_xlim(x.low, x.high)
    axes.set_ylim(y.low, y.high)
    for axis, scale in ((axes.xaxis, x), (axes.yaxis, y)):
        if scale.log:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            axis.set_minor_locator(NullLocator())
        else:
            axis.set_major_locator(MaxNLocator(6, integer=scale.whole))
        axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axes.set_xlabel(x.title, color=INK)
    axes.set_title(y.title, loc="left", fontsize=12, color=INK)
    axes.tick_params(color=INK, labelcolor=INK)
    axes.tick_params(axis="x", pad=9)  # clear of the lowest number of the y axis
    for spine in axes.spines.values():
        spine.set_color(INK)
    if grid:
        axes.grid(color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
    return axes


def legend(figure: Figure, handles: Sequence[Artist], narrow: bool, below: bool = False) -> None:
    """The names of the series: beside a wide chart, else below."""
    if narrow or below:
        figure.legend(handles=handles, loc="outside lower center", ncols=2 if narrow else 6, labelcolor=INK)
    else:
        figure.legend(handles=handles, loc="outside right upper", labelcolor=INK)


def put_marks(figure: Figure, axes: Axes, marks: Sequence[Mark]) -> None:
    """Circles with labels, each at the first place beside its circle where it is inside and covers no other label."""
    renderer = laid_out(figure)
    taken: list[Bbox] = []
    inside = axes.get_window_extent()
    for mark in marks:
        axes.plot([mark.x], [mark.y], "o", color=INK, markerfacecolor=PAPER, markeredgewidth=2, markersize=8, zorder=5)
        found: Annotation | None = None
        for dx, dy in ((9, 9), (9, -18), (-9, 9), (-9, -18), (9, 24), (-9, 24), (9, -34), (-9, -34), (9, 40), (-9, 40)):
            if found is not None:
                found.remove()
            found = axes.annotate(
                *(mark.label, (mark.x, mark.y), (dx, dy)),
                textcoords="offset points",
                ha="left" if dx > 0 else "right",
                color=INK,
                weight="bold",
                zorder=6,
                gid="label",
            )
            box = found.get_window_extent(renderer)
            if inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1:
                if not any(box.overlaps(other) for other in taken):
                    break
        assert found is not None
        taken.append(found.get_window_extent(renderer).padded(2))
