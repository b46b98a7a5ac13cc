"""The story of `hetero-sd predict`: what a pair will cost on a board, before anything is exported or compiled."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from costmodel.decoder import DecoderSpec
from costmodel.factors import Factors
from costmodel.roofline import CpuSlice
from costmodel.search import Search
from costmodel.speculative import MOST_GAMMA, Acceptance, break_even_alpha
from costmodel.uncertainty import Interval, interval
from costmodel.variants import SEQUENTIAL, TARGET_ONLY, Decision, Question, Variant, factors_of
from hetero_sd.model_config import FORMAT_NAMES, shapes_from_config
from targets.boards import board_names, load_board
from targets.device import Board
from targets.errors import UserError

DEFAULT_ALPHA = 0.8
DEFAULT_CONTEXT = 512
LARGEST_CONTEXT = 1 << 20

EXAMPLE = """\
example:
  hetero-sd predict Llama-3.2-3B/config.json --draft Llama-3.2-1B/config.json --board imx95 --alpha 0.8

TARGET and the drafter are ONNX files, whose weights are counted as they are stored, or a Hugging Face config.json.
Predictions for the GPU rest on the board's numbers: its kernels were not measured on a board yet.
"""


@dataclass(frozen=True)
class AlphaFile:
    """What `hetero-sd acceptance` measured.

    Attributes:
        alpha: acceptance by position.
        low, high: its 95 % bounds, by position.
        source: the file.
    """

    alpha: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    source: str


@dataclass(frozen=True)
class Prediction:
    """The answer and how sure it is.

    Attributes:
        search: prices further variants of the same question.
        decision: the ranked variants.
        intervals: of each leading variant.
        alpha_source: where the acceptance comes from.
        pays_from: the smallest acceptance from which the best speculative variant gains on the baseline, or None.
    """

    search: Search
    decision: Decision
    intervals: tuple[Interval, ...]
    alpha_source: str
    pays_from: float | None

    @property
    def question(self) -> Question:
        """What was asked."""
        return self.search.question

    @property
    def speculative(self) -> Variant | None:
        """The best variant that drafts with a model."""
        return next((v for v in self.decision.leading if v.gamma and v.draft is not None), None)


def add_options(p: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    p.add_argument("target", metavar="TARGET", type=Path, help="model.onnx or config.json")
    p.add_argument("--draft", metavar="DRAFT", type=Path, help="model.onnx or config.json of a smaller model")
    p.add_argument("--board", metavar="NAME|PATH.toml", required=True, help=f"{', '.join(board_names())}, or a file")
    p.add_argument("--alpha", metavar="P", type=float, help=f"acceptance of a drafted token (default {DEFAULT_ALPHA})")
    p.add_argument("--alpha-file", metavar="FILE", type=Path, help="what `hetero-sd acceptance` wrote")
    p.add_argument(
        "--ngram-alpha", metavar="P", type=float, help="consider drafting from the text, with this acceptance"
    )
    p.add_argument(
        "--context", metavar="N", type=int, default=DEFAULT_CONTEXT, help="tokens in the KV cache (default 512)"
    )
    p.add_argument(
        "--weights",
        metavar="F[,F]",
        default="float16",
        help=f"formats of a config.json's weights: {', '.join(FORMAT_NAMES)} (default float16)",
    )
    p.add_argument("--sampled", action="store_true", help="tokens are sampled, not the best ones")
    p.add_argument("--factors", metavar="FILE", type=Path, help="factors of a calibration, in place of the board's")
    p.add_argument("--json", action="store_true", help="print the prediction as JSON")
    p.add_argument("--trace", metavar="FILE", type=Path, help="write a round as a Chrome trace (Perfetto)")
    p.add_argument("--report", metavar="FILE", type=Path, help="write the report as one HTML file")


def run(options: argparse.Namespace) -> int:
    """The subcommand."""
    from hetero_sd.predict_report import predict_json, predict_text
    from hetero_sd.round_trace import round_trace

    writes: list[tuple[Path, Callable[[Prediction], str]]] = []
    if options.trace is not None:
        writes.append((options.trace, lambda p: json.dumps(round_trace(p), indent=1) + "\n"))
    if options.report is not None:
        from hetero_sd.html_report import html_report

        writes.append((options.report, html_report))
    for path, _ in writes:
        if not path.absolute().parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.absolute().parent}")
    prediction = predict(question_of(options), alpha_file_of(options))
    for path, make in writes:
        write_text(path, make(prediction))
    print(predict_json(prediction) if options.json else predict_text(prediction))
    return 0


def question_of(options: argparse.Namespace) -> Question:
    """The question that the options ask.

    Raises:
        UserError: a file cannot be used, or numbers contradict each other.
    """
    if options.alpha is not None and options.alpha_file is not None:
        raise UserError("--alpha and --alpha-file contradict each other: leave one out")
    if not 1 <= options.context <= LARGEST_CONTEXT:
        raise UserError(f"--context {options.context}: must be from 1 to {LARGEST_CONTEXT} tokens")
    measured = alpha_file_of(options)
    alpha: Acceptance = DEFAULT_ALPHA if options.alpha is None else options.alpha
    formats = options.weights.split(",")
    for name in formats:
        if name not in FORMAT_NAMES:
            raise UserError(f"--weights {name!r} is not a format; formats: {', '.join(FORMAT_NAMES)}")
    board = load_board(options.board)
    question = Question(
        board=board,
        targets=load_shapes(options.target, formats, options.context),
        drafts=() if options.draft is None else load_shapes(options.draft, formats, options.context),
        alpha=measured.alpha if measured is not None else alpha,
        context=options.context,
        factors=read_factors(options.factors, board),
        ngram_alpha=options.ngram_alpha,
        sampled=options.sampled,
    )
    question.check()
    return question


def predict(question: Question, measured: AlphaFile | None = None) -> Prediction:
    """Decide, and say how sure it is.

    Raises:
        UserError: the question has no answer.
    """
    search = Search(question)
    decision = search.decide()
    bounds = None if measured is None else (measured.low, measured.high)
    intervals = tuple(interval(search, v, bounds) for v in decision.leading)
    source = f"{question.alpha:g}, given or assumed" if isinstance(question.alpha, float) else "by position"
    prediction = Prediction(search, decision, intervals, source if measured is None else measured.source, None)
    best = prediction.speculative
    if best is None:
        return prediction
    gain = gain_of(search, best, decision.baseline)
    return Prediction(search, decision, intervals, prediction.alpha_source, break_even_alpha(gain))


def gain_of(search: Search, variant: Variant, baseline: Variant) -> Callable[[float], float]:
    """Acceptance -> speed of a variant over the baseline's, placement and draft length kept."""

    def gain(alpha: float) -> float:
        priced = search.price(
            *(variant.mode, variant.target, variant.target_placement, variant.draft, variant.draft_placement),
            variant.gamma,
            alpha,
        )
        return priced.tokens_per_s / baseline.tokens_per_s

    return gain


def load_shapes(path: Path, formats: Sequence[str], context: int) -> tuple[DecoderSpec, ...]:
    """The decoder of an ONNX file, or of a config.json in each format.

    Raises:
        UserError: no such file, or not a decoder of a kind we know.
    """
    if not path.is_file():
        raise UserError(f"model {path}: there is no such file")
    if path.suffix == ".json":
        return shapes_from_config(path, formats)
    from passes.count_work import count_work
    from passes.import_onnx import canonicalise

    return (count_work(canonicalise(path, max(2, context)), path.absolute().parent.name + "/" + path.name),)


def alpha_file_of(options: argparse.Namespace) -> AlphaFile | None:
    """The file of --alpha-file, read; None without one."""
    return None if options.alpha_file is None else read_alpha_file(options.alpha_file, options.sampled)


def read_alpha_file(path: Path, sampled: bool = False) -> AlphaFile:
    """What `hetero-sd acceptance` wrote, for greedy or sampled decoding.

    Raises:
        UserError: unreadable, or a probability outside [0, 1].
    """
    data = _read_json(path, "an acceptance file")
    mode = "sampled" if sampled else "greedy"
    data = data.get(mode, data)
    if not isinstance(data, dict):
        raise UserError(f"{path}: nothing was measured for {mode} decoding; measure it with `hetero-sd acceptance`")
    alpha = data.get("alpha_by_position")
    bounds = data.get("interval_by_position")
    if not isinstance(alpha, list) or not 1 <= len(alpha) <= MOST_GAMMA or not isinstance(bounds, list):
        raise UserError(
            f"{path}: alpha_by_position or interval_by_position is missing; write it with `hetero-sd acceptance`"
        )
    if len(bounds) != len(alpha) or not all(isinstance(b, list) and len(b) == 2 for b in bounds):
        raise UserError(f"{path}: interval_by_position must hold a pair for each of {len(alpha)} positions")
    for value in [*alpha, *(x for b in bounds for x in b)]:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise UserError(f"{path}: {str(value)[:40]} is not a probability; it must lie between 0 and 1")
    low, high = ([float(b[i]) for b in bounds] for i in (0, 1))
    return AlphaFile(tuple(map(float, alpha)), tuple(low), tuple(high), f"measured, {path.name}")


def read_factors(path: Path | None, board: Board) -> Factors:
    """The factors of a file, else those of the board.

    Raises:
        UserError: unreadable, or an unknown factor.
    """
    if path is None:
        return factors_of(board)
    return Factors.from_json(_read_json(path, "a calibration").get("factors"), str(path))


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > 1 << 20:
            raise UserError(f"{path}: larger than 1 MB, so this is not {what}")
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not valid JSON, so this is not {what}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a JSON object, so this is not {what}")
    return data


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, "utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def compilable(variant: Variant) -> bool:
    """Whether a bundle can run it: target only or sequential, everything on the CPU with one slice of one cluster."""
    placements = [p for p in (variant.target_placement, variant.draft_placement) if p is not None]
    cores = {s.processor.name for p in placements for s in p.segments if isinstance(s.processor, CpuSlice)}
    return variant.mode in (TARGET_ONLY, SEQUENTIAL) and len(cores) <= 1 and not any("+" in name for name in cores)


def bundle_question(question: Question) -> Question:
    """The same question for what a bundle can run."""
    return replace(question, one_process=True, ngram_alpha=None, overlapped=False)
