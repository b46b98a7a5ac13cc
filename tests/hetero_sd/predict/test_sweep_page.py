from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from page_check import looked_at

from hetero_sd.predict.sweep_page import sweep_page, verdict_runs

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CONTEXTS = (128, 512, 2048, 4096)


def row(
    alpha: float, context: int, board: str = "rk3588", pays_from: float = 0.6, kv: str = "float32"
) -> dict[str, Any]:
    """A point at which drafting pays from an acceptance on, later in long contexts."""
    drafts = alpha >= pays_from + (0.2 if context > 1000 else 0.0)
    return {
        "target": "Llama <b>3B", "draft": "Llama-1B", "board": board, "alpha": alpha, "context": context, "kv": kv,
        "mode": "sequential" if drafts else "target-only", "gamma": round(10 * alpha) - 4 if drafts else 0,
        "target_format": "int4", "target_on": "a76 x4", "draft_on": "a76 x4" if drafts else "",
        "tokens_per_s": 1234.5 * (1 + alpha * drafts), "low": 1.0, "high": 2.0, "against_same": 1.0,
        "against_best": 1 + alpha * drafts, "memory_gb": 1.0, "problem": "",
    }  # fmt: skip


def rows(**changes: Any) -> list[dict[str, Any]]:
    return [row(alpha, context, **changes) for context in CONTEXTS for alpha in ALPHAS]


def test_a_run_ends_where_the_verdict_changes() -> None:
    """Draft lengths may differ in it."""
    short = [r for r in reversed(rows()) if r["context"] == 128]
    assert [[r["alpha"] for r in run] for run in verdict_runs(short)] == [[0.3, 0.4, 0.5], [0.6, 0.7, 0.8, 0.9]]
    assert len(verdict_runs([r for r in rows(pays_from=2.0) if r["context"] == 128])) == 1


def test_what_the_page_says() -> None:
    page = sweep_page(rows())
    assert "2 verdicts; drafting pays from an acceptance of 0.6 on, at the earliest." in page
    assert "Llama &lt;b&gt;3B int4 on a76 x4, Llama-1B on a76 x4 drafts" in page
    assert "<b>3B" not in page
    assert ">0.6 to 0.9<" in page
    assert ">2 to 5<" in page
    same = sweep_page(rows(pays_from=2.0))
    assert "The same everywhere: Llama &lt;b&gt;3B int4 on a76 x4 alone." in same
    wide = page.split('<figure class="wide">')[1].split("</figure>")[0]
    # a line between 0.5 and 0.6 in two rows, between 0.7 and 0.8 in two more, and below the two cells that differ
    assert wide.count("stroke-width: 2.5") == 6
    assert "stroke-width: 2.5" not in same
    stated = sweep_page([r | {"target": "Llama-3B int4"} for r in rows()])
    assert "Llama-3B int4 on a76 x4" in stated
    assert "int4 int4" not in stated
    nothing = [r | {"problem": "fits no memory"} for r in rows(board="rk3566")]
    assert sweep_page(rows() + nothing).count("fits no memory") == 1
    assert "KV cache in" not in page
    both = sweep_page(rows() + rows(kv="float16", pays_from=2.0))
    assert "Llama-1B on rk3588, KV cache in float16</h2>" in both
    assert both.count("The same everywhere") == 1
    assert both.count("2 verdicts;") == 1


@pytest.mark.parametrize(
    ("width", "dark"),
    [
        (400, True),
        (1300, False),
        *(pytest.param(*seen, marks=pytest.mark.deep) for seen in ((400, False), (1300, True))),
    ],
)
def test_as_a_reader_sees_it(browser: str, tmp_path: Path, width: int, dark: bool) -> None:
    """Two boards: one with drafting everywhere, and many points, whose cells have no numbers."""
    many = [row(0.02 * i, context, "imx95", 0.1) for context in CONTEXTS for i in range(50)]
    seen = looked_at(browser, sweep_page([*rows(), *many]), tmp_path, width, dark)
    assert seen["found"] == []
    assert (seen["width"], seen["dark"], seen["charts"]) == (width, dark, 2)
    assert seen["texts"] > 60
