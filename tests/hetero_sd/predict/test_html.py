from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from page_check import looked_at

from hetero_sd.cli import main

LLAMA_1B = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
    "num_key_value_heads": 8, "num_hidden_layers": 16, "vocab_size": 128256, "tie_word_embeddings": True,
    "head_dim": 64, "_name_or_path": "Llama <b>1B",
}  # fmt: skip
LLAMA_3B = LLAMA_1B | {"hidden_size": 3072, "num_attention_heads": 24, "num_hidden_layers": 28, "head_dim": 128}
CHARTS = 6
PLACED = ["--activations", "float", "--place", "target=cpu,draft=gpu"]  # the GPU is part of the answer
_VOID = {"meta", "br", "link", "img"}


class Balanced(HTMLParser):
    """Tags open and close in order; collects what would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.external: list[str] = []
        self.titles: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self.open.append(tag)
        if tag in ("script", "link", "img", "iframe"):
            self.external.append(tag)
        self.external += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href") and not str(v).startswith("#")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += f" {data}"
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    for name, config in (("target", LLAMA_3B), ("draft", LLAMA_1B)):
        (folder / f"{name}.json").write_text(json.dumps(config))
    models = [str(folder / "target.json"), "--draft", str(folder / "draft.json")]
    models += PLACED
    path = folder / "report.html"
    assert main(["predict", *models, "--board", "rk3588", "--weights", "int4", "--report", str(path)]) == 0
    return path


@pytest.mark.slow
def test_one_file_that_loads_nothing(report: Path) -> None:
    page = Balanced()
    page.feed(report.read_text("utf-8"))
    assert page.open == []
    assert page.external == []
    assert not re.findall(r"url\((?!#)|@import", report.read_text("utf-8"))
    assert [p.name for p in report.parent.iterdir() if p.suffix == ".html"] == ["report.html"]


def test_it_has_every_chart(report: Path) -> None:
    page = Balanced()
    page.feed(report.read_text("utf-8"))
    for title in (
        "Leading variants",
        "Speed-up over",
        "Where speculation pays",
        "T(n) of",
        "Roofline",
        "One round",
        "Memory",
    ):
        assert any(t.startswith(title) for t in page.titles), title
    assert report.read_text("utf-8").count("<svg") == 2 * CHARTS  # wide and narrow
    assert "GPU Mali-G610" in page.text
    assert "predicted" in page.text


def test_few_numbers_come_first_and_the_rest_is_folded(report: Path) -> None:
    text = report.read_text("utf-8")
    first, rest = text.split("<details>", 1)
    top = Balanced()
    top.feed(first.split("<body>", 1)[1])
    for said in (
        "tokens a second",
        "first token after",
        "whole answer after",
        "hetero-sd compile",
        "What would change",
    ):
        assert said in top.text, said
    assert len(re.findall(r"\d[\d.]*", first.split("<dl", 1)[1].split("</dl>")[0])) < 15
    assert "<svg" not in first
    assert "<table" not in first
    assert "<details open" not in text
    for folded in (
        "Leading variants",
        "Roofline",
        "Numbers it rests on",
        "Factors",
    ):
        assert folded in rest, folded
    assert re.search(r"<td[^>]*><span>gpu_dispatch</span></td>", rest)  # a factor a row


@pytest.mark.slow
def test_names_from_files_are_escaped(report: Path) -> None:
    text = report.read_text("utf-8")
    assert "Llama &lt;b&gt;1B" in text
    assert "<b>1B" not in text


def test_no_coordinate_is_undefined(report: Path) -> None:
    drawn = re.findall(r' (?:x|y|width|height|d|transform)="([^"]*)"', report.read_text("utf-8"))
    assert len(drawn) > 500
    assert not [value for value in drawn if "nan" in value or "inf" in value]


def test_numbers_have_units_and_no_powers_of_ten(report: Path) -> None:
    page = Balanced()
    page.feed(report.read_text("utf-8"))
    assert re.findall(r"\d(?:\.\d+)?e[-+]?\d+", page.text) == []
    assert re.findall(r"\d{7,}", page.text) == []
    assert "8.59 GB" in page.text  # dram.capacity_bytes
    assert re.search(r"launch_overhead_s\s*60 us", page.text)


@pytest.mark.slow
def test_the_same_report_every_time(report: Path, tmp_path: Path) -> None:
    models = [str(report.parent / "target.json"), "--draft", str(report.parent / "draft.json")]
    asked = [*models, *PLACED, "--board", "rk3588", "--weights", "int4"]
    again = [sys.executable, "-m", "hetero_sd", "predict", *asked]
    environment = os.environ | {"PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1"}
    subprocess.run([*again, "--report", str(tmp_path / "r.html")], check=True, capture_output=True, env=environment)
    assert (tmp_path / "r.html").read_bytes() == report.read_bytes()


def test_the_libraries_of_the_report_are_imported_for_it_only(report: Path) -> None:
    code = (
        "import sys; from hetero_sd.cli import main\n"
        f"main(['predict', {str(report.parent / 'draft.json')!r}, '--board', 'rpi5'])\n"
        "assert 'hetero_sd.predict.text' in sys.modules\n"
        "assert not {'matplotlib', 'jinja2'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1300])
def test_as_a_reader_sees_it(browser: str, report: Path, tmp_path: Path, width: int, dark: bool) -> None:
    seen = looked_at(browser, report.read_text("utf-8"), tmp_path, width, dark)
    assert seen["found"] == []
    assert (seen["width"], seen["dark"]) == (width, dark)
    assert seen["ground"] == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
    assert seen["charts"] == CHARTS
    assert seen["texts"] > 200


def test_each_defect_is_found(browser: str, tmp_path: Path) -> None:
    """The negative control: a page with one of each, and beside each the same without the defect."""
    svg = '<svg width="300" height="40" viewBox="0 0 {0} 40"><text x="{1}" y="20" font-size="12">{2}</text></svg>'
    page = f"""<!doctype html><html><body style="background:#fff;color:#000;margin:8px">
    <div style="width:700px">wide box</div><div style="width:300px">narrow box</div>
    <p style="margin:0 0 -12px">upper line</p><p style="margin:0">lower line</p><p>line apart</p>
    <div style="width:30px;overflow:hidden;white-space:nowrap">a long text cut off</div>
    <div style="width:30px;overflow:visible;font-size:11px">short</div>
    {svg.format(300, 260, "over the edge")}{svg.format(300, 20, "inside")}{svg.format(600, 20, "half size")}
    <p style="color:#bbb">pale</p><p style="color:#333">strong</p>
    </body></html>"""
    found = looked_at(browser, page, tmp_path, 400, False)["found"]
    assert sorted(found) == sorted(
        [
            "overflow: the page is 708 wide, the window 400",
            'overlap: "upper line" and "lower line"',
            'clipped: "a long text cut off" by <DIV>',
            'clipped: "over the edge" by <svg>',
            'small: "half size" has 6.0 pixels',
            'contrast: "pale" has 1.9',
        ]
    )
