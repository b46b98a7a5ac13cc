"""What a pair will cost on a board, before anything is exported or compiled: a question, and its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from costmodel.question import NGRAM, OVERLAPPED, Decision, Question, Variant
from costmodel.roofline import CpuSlice
from costmodel.schema.plan import SEQUENTIAL, TARGET_ONLY
from costmodel.search import Search
from costmodel.speculative import Acceptance, break_even_alpha
from costmodel.ties import settle_ties
from costmodel.uncertainty import Interval, Intervals
from hetero_sd.predict.inputs import AlphaFile, check_formats, load_specs, read_alpha_file, read_factors
from targets.boards import load_board
from targets.errors import UserError

DEFAULT_ALPHA = 0.8
DEFAULT_NGRAM_MATCH = 0.5  # assumed: on code and on corrections of a text more, on free text less
DEFAULT_CONTEXT = 512
LARGEST_CONTEXT = 1 << 20


@dataclass(frozen=True)
class PredictRequest:
    """What the user asks.

    Attributes:
        target: an ONNX file, or a Hugging Face config.json.
        board: name or path of a board file.
        draft: the same of a smaller model, or None.
        alpha: acceptance of a drafted token; None assumes DEFAULT_ALPHA.
        alpha_file: what `hetero-sd acceptance` wrote, in place of `alpha`.
        ngram_alpha: consider drafting from the text, with this acceptance.
        ngram_match: share of rounds in which the text has something to draft from.
        context: tokens in the KV cache.
        weights: formats that the weights of a config.json are considered in.
        sampled: tokens are sampled, not the best ones.
        factors: factors of a calibration, in place of the board's.
    """

    target: Path
    board: str | Path
    draft: Path | None = None
    alpha: float | None = None
    alpha_file: Path | None = None
    ngram_alpha: float | None = None
    ngram_match: float = DEFAULT_NGRAM_MATCH
    context: int = DEFAULT_CONTEXT
    weights: tuple[str, ...] = ("float16",)
    sampled: bool = False
    factors: Path | None = None


@dataclass(frozen=True)
class Prediction:
    """The answer and how sure it is.

    Attributes:
        search: prices further variants of the same question.
        decision: the ranked variants, of those that this version can run.
        intervals: of each leading variant.
        alpha_source: where the acceptance comes from.
        pays_from: the smallest acceptance from which the best speculative variant gains on the baseline, or None.
        potential: what would be faster than the best and cannot be run yet, fastest first.
    """

    search: Search
    decision: Decision
    intervals: tuple[Interval, ...]
    alpha_source: str
    pays_from: float | None
    potential: tuple[Variant, ...] = ()

    @property
    def question(self) -> Question:
        """What was asked."""
        return self.search.question

    @property
    def speculative(self) -> Variant | None:
        """The best variant that drafts with a model."""
        return next((v for v in self.decision.leading if v.gamma and v.draft is not None), None)


def answer(request: PredictRequest) -> Prediction:
    """Read what the request names, and predict.

    Raises:
        UserError: a file cannot be used, numbers contradict each other, or the question has no answer.
    """
    if request.alpha is not None and request.alpha_file is not None:
        raise UserError("--alpha and --alpha-file contradict each other: leave one out")
    if not 1 <= request.context <= LARGEST_CONTEXT:
        raise UserError(f"--context {request.context}: must be from 1 to {LARGEST_CONTEXT} tokens")
    measured = None if request.alpha_file is None else read_alpha_file(request.alpha_file, request.sampled)
    alpha: Acceptance = DEFAULT_ALPHA if request.alpha is None else request.alpha
    check_formats(request.weights)
    board, drafts = load_board(request.board), request.draft
    question = Question(
        board=board,
        targets=load_specs(request.target, request.weights, request.context),
        drafts=() if drafts is None else load_specs(drafts, request.weights, request.context),
        alpha=alpha if measured is None else measured.alpha,
        context=request.context,
        factors=read_factors(request.factors, board),
        ngram_alpha=request.ngram_alpha,
        ngram_match=request.ngram_match,
        sampled=request.sampled,
    )
    question.check()
    return predict(question, measured)


def predict(question: Question, measured: AlphaFile | None = None) -> Prediction:
    """Decide among what can be run, and say how sure it is; what could be faster is kept beside it.

    Raises:
        UserError: the question has no answer.
    """
    search = Search(bundle_question(question))
    interval_of = Intervals(search, None if measured is None else (measured.low, measured.high))
    decision = settle_ties(search.decide(), interval_of)
    potential: tuple[Variant, ...] = ()
    if not question.one_process:
        more = (v for v in Search(question).decide().leading if not compilable(v))
        faster = (v for v in more if v.tokens_per_s > decision.best.tokens_per_s)
        potential = tuple(replace(v, reason=_why_not_yet(v, decision.best)) for v in faster)
    intervals = tuple(map(interval_of, decision.leading))
    source = f"{question.alpha:g}, given or assumed" if isinstance(question.alpha, float) else "by position"
    source = source if measured is None else measured.source
    prediction = Prediction(search, decision, intervals, source, None, potential)
    best = prediction.speculative
    if best is None:
        return prediction
    return replace(prediction, pays_from=break_even_alpha(gain_of(search, best, decision.baseline)))


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


def compilable(variant: Variant) -> bool:
    """Whether a bundle can run it: target only or sequential, everything on the CPU with one slice of one cluster."""
    placements = [p for p in (variant.target_placement, variant.draft_placement) if p is not None]
    cores = {s.processor.name for p in placements for s in p.segments if isinstance(s.processor, CpuSlice)}
    return variant.mode in (TARGET_ONLY, SEQUENTIAL) and len(cores) <= 1 and not any("+" in name for name in cores)


def _why_not_yet(variant: Variant, best: Variant) -> str:
    """What the variant would gain, and what of it cannot be run."""
    lacks = {OVERLAPPED: "drafting while the target verifies", NGRAM: "drafting from the text"}
    missing = lacks.get(variant.mode, "threads of several clusters, or others for the drafter than for the target")
    return f"{variant.tokens_per_s / best.tokens_per_s:.2f} x the chosen one; not in this version: {missing}"


def bundle_question(question: Question) -> Question:
    """The same question for what a bundle can run."""
    return replace(question, one_process=True, ngram_alpha=None, overlapped=False)
