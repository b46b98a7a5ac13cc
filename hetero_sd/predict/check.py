"""`predict --check`: what others published of a board, beside what is predicted for it."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from costmodel.engine import ENGINES, GENERIC, KERNELS, OURS, kernels_of
from costmodel.processor import CpuSlice
from costmodel.prompt_chunks import CHUNK
from costmodel.question import Question, factors_of
from costmodel.schema.plan import TARGET_ONLY
from costmodel.search import Search
from costmodel.uncertainty import Interval, interval
from hetero_sd.predict.answer_time import prompt_s
from hetero_sd.predict.inputs import with_activations
from hetero_sd.predict.known_models import known_model
from hetero_sd.predict.published import Published, boards_with_measurements, contradictions_on, published_on
from targets.boards import load_board
from targets.device import Board
from targets.errors import UserError

_WIDTH = 118
_OUR_PROMPTS = (
    "prefill: no trial of the board, because kernels differ most there: other engines multiply row by row on a Pi 4, "
    "ours in tiles; what ours are predicted to do there, 70 % of the float32 peak for Qwen2.5-0.5B in float16, is more "
    "than Linpack's 38 to 48 % of the float64 peak (geerlingguy/top500-benchmark issues 49 and 33), so that it may be "
    "1.5 to 1.8 times too fast"
)
GOALS = (("with four threads", 0.15, lambda threads: threads == 4), ("with any number of threads", 0.20, bool))


@dataclass(frozen=True)
class Checked:
    """A published measurement and its prediction.

    Attributes:
        board: its name.
        published: the measurement.
        decode: predicted tokens/s and its range; None where none was published.
        prefill_tokens_per_s: predicted; None where none was published.
    """

    board: str
    published: Published
    decode: Interval | None
    decode_tokens_per_s: float | None
    prefill_tokens_per_s: float | None

    @property
    def decode_ratio(self) -> float | None:
        """Predicted over published."""
        return _ratio(self.decode_tokens_per_s, self.published.decode_tokens_per_s)

    @property
    def prefill_ratio(self) -> float | None:
        """Predicted over published."""
        return _ratio(self.prefill_tokens_per_s, self.published.prefill_tokens_per_s)

    @property
    def inside(self) -> bool | None:
        """Whether the published decode speed lies in the predicted range."""
        speed = self.published.decode_tokens_per_s
        return None if self.decode is None or speed is None else self.decode.low <= speed <= self.decode.high


def check_boards(names: Sequence[str], engine: str) -> list[Checked]:
    """Every published measurement of the boards; all that have some where no name is given.

    Raises:
        UserError: nothing is published of a board, or the engine is not known.
    """
    if engine not in ENGINES:
        raise UserError(f"--engine {engine}: known engines: {', '.join(ENGINES)}")
    known = boards_with_measurements()
    found = []
    for name in names or known:
        if name not in known:
            raise UserError(
                f"--check: nothing is published of board {name}; there are measurements of {', '.join(known)}"
            )
        board = load_board(name)
        found += [check_one(board, published, engine) for published in published_on(name)]
    return found


def check_one(board: Board, published: Published, engine: str) -> Checked:
    """One measurement: the target alone on those threads, in the middle of the generated text."""
    spec = with_activations(known_model(published.model, published.weights, published.head, published.kv), None)
    cluster = board.cluster(published.cluster)
    if published.threads > cluster.count:
        raise UserError(f"board {board.name}: {published.threads} threads on {cluster.count} cores of {cluster.name}")
    context = max(1, published.new_tokens // 2)
    question = Question(
        *(board, (spec,)),
        context=context,
        factors=factors_of(board),
        engine=engine,
        kernels=published.kernels,
        one_process=True,
    )
    search = Search(question)
    placement = search.costs(spec).whole(CpuSlice(((cluster, published.threads),)))
    variant = search.price(TARGET_ONLY, spec, placement)
    decode = None if published.decode_tokens_per_s is None else interval(search, variant)
    prefill = None
    if published.prefill_tokens_per_s is not None:
        tokens = published.prompt_tokens
        widths = (CHUNK if engine == OURS else GENERIC.chunk,)
        prefill = tokens / prompt_s(search, spec, placement, tokens, widths)
    return Checked(board.name, published, decode, None if decode is None else variant.tokens_per_s, prefill)


def check_text(rows: Sequence[Checked], engine: str) -> str:
    """A table for people: predicted, published, ratio; then the sources."""
    lines = textwrap.wrap(
        f"published measurements beside predictions; kernels of engine {engine}: {ENGINES[engine]}", _WIDTH
    )
    head = f"{'model':20}{'threads':>8}{'decode':>9}{'published':>11}{'ratio':>7}{'interval':>17}"
    lines += ["", f"{'board':8}{head}{'prefill':>9}{'published':>11}{'ratio':>7}  source"]
    sources = list(dict.fromkeys(row.published.source for row in rows))
    for row in rows:
        p = row.published
        lines.append(
            f"{row.board:8}{p.model + ' ' + p.weights:20}{p.threads:>8}"
            f"{_number(row.decode_tokens_per_s):>9}{_number(p.decode_tokens_per_s):>11}{_ratio_text(row.decode_ratio):>7}"
            f"{_range(row.decode):>17}"
            f"{_number(row.prefill_tokens_per_s):>9}{_number(p.prefill_tokens_per_s):>11}"
            f"{_ratio_text(row.prefill_ratio):>7}  [{1 + sources.index(p.source)}] {p.engine}"
        )
    for text in kinds(rows, engine):
        lines += ["", *textwrap.wrap(text, _WIDTH, subsequent_indent="  ")]
    lines += ["", *summary(rows), *goals(rows)]
    for text in [*missed(rows), *contradictions(rows)]:
        lines += textwrap.wrap(text, _WIDTH, subsequent_indent="  ")
    for i, source in enumerate(sources, 1):
        lines.append(f"[{i}] {source}")
        notes = dict.fromkeys(row.published.note for row in rows if row.published.source == source)
        for note in filter(None, notes):
            lines += textwrap.wrap(note, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def check_json(rows: Sequence[Checked], engine: str) -> dict[str, Any]:
    """The same for programs."""
    return {
        "engine": engine,
        "kernels": ENGINES[engine],
        "rows": [
            {
                **asdict(row.published),
                "board": row.board,
                "predicted_decode_tokens_per_s": row.decode_tokens_per_s,
                "predicted_interval": None if row.decode is None else [row.decode.low, row.decode.high],
                "predicted_prefill_tokens_per_s": row.prefill_tokens_per_s,
                "decode_ratio": row.decode_ratio,
                "prefill_ratio": row.prefill_ratio,
                "inside_interval": row.inside,
            }
            for row in rows
        ],
    }


def summary(rows: Sequence[Checked]) -> list[str]:
    """Median and worst error of decoding and of prefill, and how many speeds lie in their interval."""
    found = []
    for name in ("decode", "prefill"):
        ratios = [ratio for row in rows if (ratio := getattr(row, f"{name}_ratio")) is not None]
        if ratios:
            errors = [abs(ratio - 1) for ratio in ratios]
            middle, worst = 100 * statistics.median(errors), 100 * max(errors)
            found.append(f"{name}: median error {middle:.0f} %, worst {worst:.0f} %, {len(ratios)} rows")
    inside = [row.inside for row in rows if row.inside is not None]
    if inside:
        found.append(f"{sum(inside)} of {len(inside)} published decode speeds lie in the predicted interval")
    return found


def goals(rows: Sequence[Checked]) -> list[str]:
    """How near decoding is to be, and which rows are not."""
    lines = []
    for which, most, counts in GOALS:
        judged = [row for row in rows if row.decode_ratio is not None and counts(row.published.threads)]
        missed = [row for row in judged if abs((row.decode_ratio or 0) - 1) > most]
        if judged:
            met = f"{len(judged) - len(missed)} of {len(judged)} rows"
            lines.append(f"goal, decode within {100 * most:.0f} % {which}: {met}")
    return lines


def kinds(rows: Sequence[Checked], engine: str) -> list[str]:
    """What kernels the generic engine is taken to have on which rows; of ours what its prompts are worth."""
    if engine == OURS:
        return [_OUR_PROMPTS] if any(row.prefill_ratio is not None for row in rows) else []
    used: dict[str, dict[str, None]] = {}
    for row in rows:
        p = row.published
        kind = p.kernels or kernels_of(load_board(row.board).cluster(p.cluster).core)
        used.setdefault(kind, {})[f"{p.engine} on {row.board}"] = None
    return [f"{kind}: {KERNELS[kind].what}; taken for {', '.join(used[kind])}" for kind in KERNELS if kind in used]


def missed(rows: Sequence[Checked]) -> list[str]:
    """Each row that misses a goal, and why, where that is known."""
    off = [row for row in rows if row.decode_ratio is not None and _misses(row.decode_ratio, row.published.threads)]
    return [
        f"missed: {row.published.model} {row.published.weights} on {row.board} with {row.published.threads} threads "
        f"({row.published.engine}), predicted {row.decode_ratio:.2f} of what was published: "
        f"{row.published.reason or 'nobody knows why'}"
        for row in off
    ]


def contradictions(rows: Sequence[Checked]) -> list[str]:
    """What was published of these boards and contradicts itself."""
    boards = dict.fromkeys(row.board for row in rows)
    return [
        f"published of {board} and in contradiction: {text}" for board in boards for text in contradictions_on(board)
    ]


def _misses(ratio: float, threads: int) -> bool:
    return any(abs(ratio - 1) > most for _, most, counts in GOALS if counts(threads))


def _ratio(predicted: float | None, published: float | None) -> float | None:
    return None if predicted is None or published is None else predicted / published


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _ratio_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _range(sure: Interval | None) -> str:
    return "-" if sure is None else f"{sure.low:.3g} to {sure.high:.3g}"
