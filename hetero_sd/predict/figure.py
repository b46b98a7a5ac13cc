"""From a matplotlib figure to SVG text whose colours are those of the page, light or dark.

Drawn are stand-in colours, which `drawn` replaces by CSS variables of STYLE. A figure has two forms: wide, and narrow
for the screen of a phone, with the same font size in both. The same figure is the same text on every machine:
matplotlib's own font is measured, identifiers are hashes of the figure's name, and there is no date.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from xml.etree import ElementTree

from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.style import context as style_context

_LIGHT = {
    "paper": ("#ffffff",),
    "ink": ("#1b1f24",),
    "faint": ("#d0d7de",),
    "series": ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#9a6700", "#0b7285", "#c2255c", "#57606a"),
    "gain": ("#c93c2a", "#e58d7f", "#f7d5cf", "#d6e6fb", "#a9cbf7", "#6fa8f0", "#3683e8", "#1258b8"),
}
_DARK = {
    "paper": ("#0d1117",),
    "ink": ("#e6edf3",),
    "faint": ("#3d444d",),
    "series": ("#58a6ff", "#f0883e", "#3fb950", "#bc8cff", "#d29922", "#39c5cf", "#ff7b9c", "#8b949e"),
    "gain": ("#a3382a", "#6f2a21", "#42231f", "#1c2d45", "#1f4370", "#245c9e", "#3b82d6", "#86b8ff"),
}
_WIDE, _NARROW = 760, 360  # pixels
_RC = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 12,
    "figure.dpi": 72,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 12,
    "legend.handlelength": 2.2,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}
_HALO = "paint-order: stroke; stroke: var(--paper-0); stroke-width: 3px"
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


def _variables(colours: dict[str, tuple[str, ...]]) -> str:
    return "".join(f"--{name}-{i}:{value};" for name, values in colours.items() for i, value in enumerate(values))


STYLE = (
    f":root{{color-scheme:light dark;{_variables(_LIGHT)}}}\n"
    f"@media (prefers-color-scheme:dark){{:root{{{_variables(_DARK)}}}}}\n"
    "svg{stroke-linejoin:round;stroke-linecap:butt}"
)
# colour that is drawn -> CSS variable
_STAND_INS = {
    f"#01{kind:02x}{i:02x}": f"var(--{name}-{i})"
    for kind, (name, values) in enumerate(_LIGHT.items(), 1)
    for i in range(len(values))
}
_DRAWN = {variable[6:-1]: colour for colour, variable in _STAND_INS.items()}
PAPER, INK, FAINT = (_DRAWN[name] for name in ("paper-0", "ink-0", "faint-0"))
SERIES = tuple(_DRAWN[f"series-{i}"] for i in range(8))
BANDS = tuple(_DRAWN[f"gain-{i}"] for i in range(8))


def drawn(
    name: str, draw: Callable[[Figure], None], narrow: bool, height: int, titles: dict[str, str] | None = None
) -> str:
    """Draw a figure and write it as SVG for a page."""
    width = _NARROW if narrow else _WIDE
    salt = f"{name} {width}"
    with style_context(["default", _RC | {"svg.hashsalt": salt}]):
        figure = Figure((width / 72, height / 72), layout="constrained")
        draw(figure)
        if figure.get_layout_engine() is not None:
            laid_out(figure)
        written = io.BytesIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", metadata=nothing, transparent=True)
    short = re.sub(r"[^a-z]+", "-", name.lower()).strip("-")
    return _finish(written.getvalue(), name, f"{short}-{'narrow' if narrow else 'wide'}", (width, height), titles or {})


def standalone(svg: str) -> str:
    """A chart as a file of its own: with its colours, on paper."""
    start = svg.index(">") + 1
    paper = '<rect width="100%" height="100%" fill="var(--paper-0)"/>'
    return f"{svg[:start]}<style>{STYLE}</style>{paper}{svg[start:]}\n"


def laid_out(figure: Figure) -> RendererAgg:
    """Lay the figure out, once; returns what measures its texts."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    figure.set_layout_engine("none")
    renderer: RendererAgg = canvas.get_renderer()  # type: ignore[no-untyped-call]
    return renderer


def _finish(svg: bytes, name: str, prefix: str, size: tuple[int, int], titles: dict[str, str]) -> str:
    """Matplotlib's SVG for a page: its colours, identifiers of its own, tooltips, no style for the whole page."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{_SVG}}}style":
                parent.remove(child)
    used = {v[1:] for e in root.iter() for k, v in e.items() if k == f"{{{_XLINK}}}href"}
    used |= {v[5:-1] for e in root.iter() for v in e.attrib.values() if v.startswith("url(#")}
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in titles:
            title = ElementTree.Element(f"{{{_SVG}}}title")
            title.text = titles[own]
            element.insert(0, title)
        if own == "label":
            for text in element.iter(f"{{{_SVG}}}text"):
                text.set("style", f"{text.get('style', '')}; {_HALO}")
        if own in used:
            element.set("id", f"{prefix}-{own}")
        for key, value in list(element.items()):
            element.set(key, _attribute(key, value, prefix))
        if element.get("transform", "").startswith("rotate(0 "):
            del element.attrib["transform"]
        element.text = element.text if element.text and element.text.strip() else None
        element.tail = None
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"width": str(size[0]), "height": str(size[1]), "role": "img", "aria-label": name}
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(key: str, value: str, prefix: str) -> str:
    """An attribute with the page's colours and the chart's identifiers; coordinates to a hundredth of a pixel."""
    if key == f"{{{_XLINK}}}href":
        return f"#{prefix}-{value[1:]}"
    if value.startswith("url(#"):
        return f"url(#{prefix}-{value[5:]}"
    if key == "style":
        value = re.sub(r"#01[0-9a-f]{4}", lambda m: _STAND_INS.get(m[0], m[0]), value)
        return value.replace("font-family: 'DejaVu Sans'", "font-family: system-ui, sans-serif")
    if key in ("d", "x", "y", "width", "height", "transform", "viewBox"):
        value = re.sub(r"-?\d+(\.\d+)?", _hundredths, " ".join(value.split()))
    return value


def _hundredths(number: re.Match[str]) -> str:
    short = f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if short == "-0" else short
