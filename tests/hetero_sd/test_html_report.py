from __future__ import annotations

import json
import re
import struct
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from requirements import need_program

from hetero_sd.cli import main
from hetero_sd.svg import Axis, Line, Mark, bars, heat_map, line_chart, timeline

LLAMA_1B = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
    "num_key_value_heads": 8, "num_hidden_layers": 16, "vocab_size": 128256, "tie_word_embeddings": True,
    "head_dim": 64, "_name_or_path": "Llama <b>1B</b>",
}  # fmt: skip
LLAMA_3B = LLAMA_1B | {"hidden_size": 3072, "num_attention_heads": 24, "num_hidden_layers": 28, "head_dim": 128}
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
        self.external += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    for name, config in (("target", LLAMA_3B), ("draft", LLAMA_1B)):
        (folder / f"{name}.json").write_text(json.dumps(config))
    models = [str(folder / "target.json"), "--draft", str(folder / "draft.json")]
    path = folder / "report.html"
    assert main(["predict", *models, "--board", "rk3588", "--weights", "int4", "--report", str(path)]) == 0
    return path


def test_one_file_that_loads_nothing(report: Path) -> None:
    page = Balanced()
    page.feed(report.read_text("utf-8"))
    assert page.open == []
    assert page.external == []
    assert "url(" not in report.read_text("utf-8")
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
    assert report.read_text("utf-8").count("<svg") == 6
    assert "GPU Mali-G610" in page.text
    assert "predicted" in page.text


def test_names_from_files_are_escaped(report: Path) -> None:
    assert "<b>1B" not in report.read_text("utf-8")


def test_no_coordinate_is_undefined(report: Path) -> None:
    drawn = re.findall(r'(?:points|[xy]|cx|cy|x1|y1|width|height|d)="([^"]*)"', report.read_text("utf-8"))
    assert len(drawn) > 1000
    assert not [value for value in drawn if "nan" in value or "inf" in value]


def test_axes() -> None:
    assert Axis("", 0, 16).ticks() == [0, 5, 10, 15]
    assert Axis("", 0.1, 200, log=True).ticks() == [0.1, 1, 10, 100]
    assert Axis("", 0.1, 10, log=True).place(1.0) == pytest.approx(0.5)
    assert Axis("", 0, 10).place(20) == 1.0


def test_charts_place_points_where_they_belong() -> None:
    chart = line_chart(
        Axis("x", 0, 10), Axis("y", 0, 10), [Line("a & b", [(0, 0), (10, 10)])], [Mark(5, 5, "here")], (186, 156)
    )
    assert 'points="56.0,114.0 56.0,14.0"' in chart  # a chart without width puts both ends at the left edge
    assert "a &amp; b" in chart
    assert heat_map(Axis("x", 0, 1), Axis("y", 0, 1), lambda x, y: 1.0, [], cells=2).count("#ffffff") == 5
    assert timeline([("CPU", "verify", 0.0, 1.0, "why"), ("GPU", "draft", 0.5, 0.5, "why")]).count("<rect") == 2
    assert "1.50 GB free" in bars([("row", [("a", 1.0)])], 1.5, "GB")


def test_looked_at_in_a_browser(report: Path, tmp_path: Path) -> None:
    browser = need_program("chromium", "chromium-browser", "google-chrome", "chrome")
    picture = tmp_path / "report.png"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command = [browser, *flags, "--window-size=1000,3600", f"--screenshot={picture}", report.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert picture.is_file(), done.stderr
    content = picture.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    assert (width, height) == (1000, 3600)
    assert len(content) > 100_000  # a blank page has a few kilobytes
    dump = subprocess.run([browser, *flags, "--dump-dom", report.as_uri()], capture_output=True, text=True, timeout=120)
    assert dump.stdout.count("<svg") == 6
