"""Predictions for many pairs, boards, types of KV cache, acceptances and contexts: a table, one row a point."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costmodel.decoder import DecoderSpec
from costmodel.question import Question, factors_of
from costmodel.search import Search
from costmodel.ties import settle_ties
from costmodel.uncertainty import Intervals
from costmodel.unmeasured_gpu import deciding
from hetero_sd.early_exit import EarlyExit
from hetero_sd.predict.compilable import bundle_question
from hetero_sd.predict.inputs import check_formats, load_specs
from targets.boards import load_board
from targets.errors import UserError
from targets.kv_format import DEFAULT_KV

COLUMNS = (
    *("target", "draft", "board", "alpha", "context", "kv", "mode", "gamma", "target_format", "target_on", "draft_on"),
    *("tokens_per_s", "low", "high", "against_same", "against_best", "memory_gb", "problem"),
)
MOST_POINTS = 100_000


Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class SweepRequest:
    """What the user asks: every pair on every board, with every KV cache, at every context and acceptance.

    Attributes:
        pairs: of each the target, an ONNX file or a config.json, and such a drafter, an early exit, or None.
        boards: names or paths of board files.
        alphas: acceptances of a drafted token.
        contexts: tokens in the KV cache.
        weights: formats that the weights of a config.json are considered in.
        kvs: types of the KV cache.
    """

    pairs: tuple[tuple[Path, Path | EarlyExit | None], ...]
    boards: tuple[str, ...]
    alphas: tuple[float, ...]
    contexts: tuple[int, ...]
    weights: tuple[str, ...]
    kvs: tuple[str, ...] = (DEFAULT_KV,)


def sweep(request: SweepRequest, track: Callable[[Sequence[Any]], Iterable[Any]] = iter) -> Rows:
    """A row for every point, the acceptance changing fastest; `track` sees the points go by.

    Raises:
        UserError: a file cannot be used, or there are too many points.
    """
    check_formats(request.weights)
    boards = [load_board(name) for name in request.boards]
    longest = max(request.contexts)
    pairs = [(kv, _specs(*pair, request.weights, longest, kv)) for pair in request.pairs for kv in request.kvs]
    points = [(pair, b, c, a) for pair in pairs for b in boards for c in request.contexts for a in request.alphas]
    if len(points) > MOST_POINTS:
        raise UserError(f"{len(points)} points are more than {MOST_POINTS}; give fewer values")
    return [
        {**sweep_point(targets, drafts, board, alpha, context), "kv": kv}
        for (kv, (targets, drafts)), board, context, alpha in track(points)
    ]


def sweep_point(
    targets: tuple[DecoderSpec, ...], drafts: tuple[DecoderSpec, ...], board: Any, alpha: float, context: int
) -> dict[str, Any]:
    """One row; where nothing fits, the row says so under `problem`."""
    row: dict[str, Any] = {
        "target": _name(targets),
        "draft": _name(drafts),
        "board": board.name,
        "alpha": alpha,
        "context": context,
    }
    try:
        search = Search(deciding(bundle_question(Question(board, targets, drafts, alpha, context, factors_of(board)))))
        interval_of = Intervals(search)
        best = settle_ties(search.decide(), interval_of).best
    except UserError as error:
        return {**row, "problem": str(error)}
    sure, drafter = interval_of(best), best.draft_placement
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


def _name(specs: Sequence[DecoderSpec]) -> str:
    """A model's name; that of a config.json ends with its format, which is left out where there are several."""
    if not specs:
        return ""
    name = specs[0].name
    return name if len(specs) == 1 or specs[0].whole is not None else name.rpartition(" ")[0]


def _specs(
    target: Path, draft: Path | EarlyExit | None, formats: Sequence[str], context: int, kv: str
) -> tuple[tuple[DecoderSpec, ...], tuple[DecoderSpec, ...]]:
    """The specs of target and drafter."""
    targets = load_specs(target, formats, context, kv=kv)
    if isinstance(draft, EarlyExit):
        return targets, tuple(draft.spec(spec) for spec in targets)
    return targets, () if draft is None else load_specs(draft, formats, context, kv=kv)
