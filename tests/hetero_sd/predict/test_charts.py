"""Charts place points where they belong, name what they show, and are the same text every time."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from hetero_sd.predict.axes import Axis, Mark
from hetero_sd.predict.charts import (
    GAINS,
    Bar,
    Line,
    columns_with_range,
    gain_map,
    line_chart,
    stacked_bars,
    timeline,
)
from hetero_sd.predict.figure import STYLE, standalone

TEN = Axis("x", 0, 10), Axis("y & z", 0, 10)


def paths(svg: str, variable: str) -> list[list[tuple[float, float]]]:
    """The points of what is drawn in a colour."""
    found = []
    for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path"):
        if f"var(--{variable})" in element.get("style", ""):
            numbers = [float(n) for n in re.findall(r"-?[\d.]+", element.get("d", ""))]
            found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return [points for points in found if points]  # an empty band has a path without points


def texts(svg: str) -> list[str]:
    return [str(e.text) for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("narrow", [False, True])
def test_a_line_ends_in_the_corners(narrow: bool) -> None:
    lines = [Line("a < b", [(0, 0), (5, 5), (10, 10)]), Line("flat", [(0, 0), (10, 0)])]
    svg = line_chart("two lines", *TEN, lines, [Mark(5, 5, "here")], narrow)
    rising, flat = paths(svg, "series-0")[0], paths(svg, "series-1")[0]
    assert rising[0] == flat[0]
    assert (rising[-1][0], flat[-1][1]) == (flat[-1][0], rising[0][1])
    assert rising[-1][1] < rising[0][1]  # up
    assert rising[1] == pytest.approx([(a + b) / 2 for a, b in zip(rising[0], rising[-1], strict=True)], abs=0.02)
    assert {"a < b", "flat", "here", "y & z", "x"} <= set(texts(svg))
    assert "a < b" not in svg  # escaped


def test_a_logarithmic_axis() -> None:
    axes = Axis("x", 0.1, 1000, log=True), Axis("y", 0.1, 10, log=True)
    svg = line_chart("powers", *axes, [Line("line", [(0.1, 0.1), (10, 1), (1000, 10)])], [])
    (left, _), (middle, height), (right, _) = paths(svg, "series-0")[0]
    assert middle == pytest.approx((left + right) / 2, abs=0.02)
    assert {"0.1", "1", "10", "100", "1000"} <= set(texts(svg))
    assert height > 0


def test_whole_numbers_have_whole_ticks() -> None:
    """Nothing drafts 1.5 tokens."""

    def ticks(whole: bool) -> set[str]:
        axes = Axis("gamma", 0, 8, whole=whole), Axis("y", 0, 10)
        svg = line_chart("ticks", *axes, [Line("a", [(0, 0), (8, 8)])], [], narrow=True)
        return {e.text or "" for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}

    assert "1.5" in ticks(False)
    assert not any("." in tick for tick in ticks(True))


def test_labels_of_marks_keep_apart() -> None:
    marks = [Mark(9.9, 9.9, "a long label one"), Mark(9.9, 9.8, "a long label two"), Mark(9.8, 9.9, "a third one")]
    svg = line_chart("marks", *TEN, [Line("line", [(0, 0), (10, 10)])], marks, narrow=True)
    places = []
    for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        if "label" in str(element.text) or "third" in str(element.text):
            assert float(element.get("x", "")) <= 360
            places.append(float(element.get("y", "")))
    assert min(abs(a - b) for i, a in enumerate(places) for b in places[i + 1 :]) >= 12


def test_bands_of_gains() -> None:
    svg = gain_map("gains", Axis("x", 0.0, 1.0), Axis("y", 0.0, 1.0), lambda x, y: 3 * x, [])
    drawn = [p for i in range(len(GAINS) + 1) for p in paths(svg, f"gain-{i}")]
    assert len(drawn) == 2 * (len(GAINS) + 1)  # a band and its entry in the legend
    worst, best = paths(svg, "gain-0")[0], paths(svg, f"gain-{len(GAINS)}")[0]
    assert max(x for x, _ in worst) < min(x for x, _ in best)
    one = gain_map("gains", Axis("x", 0.0, 1.0), Axis("y", 0.0, 1.0), lambda x, y: 1.1, [])
    assert {"1 to 1.25 x", "below 0.6 x", "above 2.5 x"} <= set(texts(one))
    assert [len(paths(one, f"gain-{i}")) for i in range(8)] == [1, 1, 1, 2, 1, 1, 1, 1]


def test_a_timeline_explains_each_bar() -> None:
    bars = [Bar("CPU", "verify <2>", 0.0, 0.5, "memory 93 %", 0), Bar("GPU", "draft", 0.5, 0.001, "launch 9 %", 1)]
    svg = timeline("round", bars, ("verify", "draft"))
    titles = [e.text for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["verify <2>: memory 93 %", "draft: launch 9 %"]
    wide, thin = paths(svg, "series-0")[0], paths(svg, "series-1")[0]
    assert min(x for x, _ in thin) == pytest.approx(max(x for x, _ in wide), abs=0.02)
    assert "verify <2>" in texts(svg)
    assert texts(svg).count("draft") == 1  # in the legend; the bar is too thin for its name


def test_bars_against_a_limit() -> None:
    svg = stacked_bars("memory", [("row", [("a", 1.0), ("b", 0.5)])], ("free", 1.25), "GB")
    assert {"1.50 GB", "1.25 GB free", "row"} <= {text.strip() for text in texts(svg)}
    a, b = paths(svg, "series-0")[0], paths(svg, "series-1")[0]
    widths = [max(x for x, _ in p) - min(x for x, _ in p) for p in (a, b)]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.05)


def test_the_same_chart_is_the_same_text_and_no_colour_is_left_fixed() -> None:
    def drawn(narrow: bool) -> str:
        return line_chart("again", *TEN, [Line("line", [(0, 0), (10, 10)])], [Mark(1, 1, "here")], narrow)

    assert drawn(False) == drawn(False)
    assert drawn(False) != drawn(True)
    assert re.findall(r"#[0-9a-f]{6}", drawn(False)) == []
    names = [set(re.findall(r' id="([^"]+)"', drawn(narrow))) for narrow in (False, True)]
    assert names[0]
    assert not names[0] & names[1]  # both stand in one page
    used = set(re.findall(r"var\((--[a-z]+-\d)\)", drawn(False)))
    assert used
    assert all(STYLE.count(f"{name}:") == 2 for name in used)  # light and dark


def test_a_file_of_its_own_has_its_colours() -> None:
    columns = [("0", 1.0, 0.9, 1.1), ("1", 1.4, 1.3, 1.5)]
    svg = standalone(columns_with_range("speed", Axis("gamma", -0.5, 1.5), Axis("speed-up", 0, 2), columns))
    ElementTree.fromstring(svg)
    assert svg.startswith("<svg")
    assert "prefers-color-scheme:dark" in svg
    heights = [max(y for _, y in p) - min(y for _, y in p) for i in (0, 2) for p in paths(svg, f"series-{i}")]
    assert heights[1] == pytest.approx(1.4 * heights[0], abs=0.05)
    assert {"1.00", "1.40"} <= set(texts(svg))
