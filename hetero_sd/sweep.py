"""`hetero-sd sweep`: predictions for many pairs, boards, acceptances and contexts, as CSV."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from costmodel.decoder import DecoderSpec
from costmodel.search import Search
from costmodel.uncertainty import interval
from costmodel.variants import Question, factors_of
from hetero_sd.model_config import FORMAT_NAMES
from hetero_sd.predict import DEFAULT_ALPHA, DEFAULT_CONTEXT, LARGEST_CONTEXT, load_shapes, write_text
from targets.boards import board_names, load_board
from targets.errors import UserError

COLUMNS = (
    *("target", "draft", "board", "alpha", "context", "mode", "gamma", "target_format", "target_on", "draft_on"),
    *("tokens_per_s", "low", "high", "against_same", "against_best", "memory_gb", "problem"),
)
MOST_POINTS = 100_000

EXAMPLE = """\
example:
  hetero-sd sweep --pair 3b/config.json,1b/config.json --board imx95,rk3588 --alpha 0.6,0.7,0.8 --out sweep.csv
"""


def add_options(p: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    p.add_argument(
        "--pair",
        metavar="TARGET[,DRAFT]",
        action="append",
        required=True,
        help="model.onnx or config.json of each (repeatable)",
    )
    p.add_argument("--board", metavar="B[,B]", required=True, help=f"{', '.join(board_names())}, or board files")
    p.add_argument("--alpha", metavar="P[,P]", default=str(DEFAULT_ALPHA), help="acceptances (default 0.8)")
    p.add_argument("--context", metavar="N[,N]", default=str(DEFAULT_CONTEXT), help="contexts (default 512)")
    p.add_argument("--weights", metavar="F[,F]", default="float16", help="formats of a config.json's weights")
    p.add_argument("--out", metavar="FILE.csv", type=Path, required=True, help="the table")
    p.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """The subcommand."""
    from rich.console import Console
    from rich.progress import track

    alphas = _numbers(options.alpha, "--alpha", 0.0, 1.0)
    contexts = [int(c) for c in _numbers(options.context, "--context", 1, LARGEST_CONTEXT, whole=True)]
    formats = options.weights.split(",")
    for name in formats:
        if name not in FORMAT_NAMES:
            raise UserError(f"--weights {name!r} is not a format; formats: {', '.join(FORMAT_NAMES)}")
    boards = [load_board(name) for name in options.board.split(",")]
    pairs = [_pair(text, formats, max(contexts)) for text in options.pair]
    points = [(pair, b, a, c) for pair in pairs for b in boards for c in contexts for a in alphas]
    if len(points) > MOST_POINTS:
        raise UserError(f"{len(points)} points are more than {MOST_POINTS}; give fewer values")
    console = Console(stderr=True, quiet=options.quiet)
    rows = [
        sweep_point(targets, drafts, board, alpha, context)
        for (targets, drafts), board, alpha, context in track(points, "  predict", console=console, transient=True)
    ]
    write_text(options.out, to_csv(rows))
    print(f"{len(rows)} points in {options.out}")
    return 0


def sweep_point(
    targets: tuple[DecoderSpec, ...], drafts: tuple[DecoderSpec, ...], board: Any, alpha: float, context: int
) -> dict[str, Any]:
    """One row; where nothing fits, the row says so under `problem`."""
    row: dict[str, Any] = {
        "target": targets[0].name,
        "draft": drafts[0].name if drafts else "",
        "board": board.name,
        "alpha": alpha,
        "context": context,
    }
    try:
        search = Search(Question(board, targets, drafts, alpha, context, factors_of(board)))
        best = search.decide().best
    except UserError as error:
        return {**row, "problem": str(error)}
    sure, drafter = interval(search, best), best.draft_placement
    return {
        **row,
        "mode": best.mode,
        "gamma": best.gamma,
        "target_format": best.target.main_dtype,
        "target_on": best.target_placement.text(best.target),
        "draft_on": drafter.text(best.draft) if drafter is not None and best.draft is not None else "",
        "tokens_per_s": round(best.tokens_per_s, 4),
        "low": round(sure.low, 4),
        "high": round(sure.high, 4),
        "against_same": round(best.against_same, 4),
        "against_best": round(best.against_best, 4),
        "memory_gb": round(best.memory.total_bytes / 1e9, 3),
        "problem": "",
    }


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _pair(text: str, formats: Sequence[str], context: int) -> tuple[tuple[DecoderSpec, ...], tuple[DecoderSpec, ...]]:
    paths = [Path(part) for part in text.split(",")]
    if not 1 <= len(paths) <= 2:
        raise UserError(f"--pair {text!r}: give TARGET or TARGET,DRAFT")
    shapes = [load_shapes(path, formats, context) for path in paths]
    return shapes[0], shapes[1] if len(shapes) > 1 else ()


def _numbers(text: str, option: str, low: float, high: float, whole: bool = False) -> list[float]:
    values = []
    for part in text.split(","):
        try:
            value = float(int(part)) if whole else float(part)
        except ValueError:
            raise UserError(f"{option} {part!r} is not a {'whole ' if whole else ''}number") from None
        if not low <= value <= high:
            raise UserError(f"{option} {part} must lie between {low:g} and {high:g}")
        values.append(value)
    return values
