"""What a pair will cost on a board, before anything is exported or compiled: a question, and its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from costmodel.batch_cores import BatchDraft, batch_cores, batch_on
from costmodel.batch_text import Drafting
from costmodel.batch_throughput import Requests, Throughput
from costmodel.processor import GpuSlice
from costmodel.question import NGRAM, Decision, Question, Variant, rank
from costmodel.schema.plan import SEQUENTIAL
from costmodel.search import Search
from costmodel.speculative import Acceptance, acceptance_rate, break_even_alpha
from costmodel.ties import settle_ties
from costmodel.uncertainty import Interval, Intervals, alpha_bounds
from costmodel.unmeasured_gpu import beside, deciding, gpu_waits, uses_gpu
from hetero_sd.predict.answer_time import AnswerTime, answer_time, chunk_widths, reading_place
from hetero_sd.predict.assumed import assumptions, compile_command
from hetero_sd.predict.changes import MOST, Change, what_a_gpu_must_reach, what_would_change
from hetero_sd.predict.compilable import bundle_question, compilable, why_not_planned
from hetero_sd.predict.inputs import AlphaFile, read_alpha_file, read_factors
from hetero_sd.predict.like import baseline_note, like
from hetero_sd.predict.request import PredictRequest, check, question_of
from hetero_sd.predict.slots_asked import DEFAULT_BRANCH
from targets.boards import load_board


@dataclass(frozen=True)
class Sharing:
    """What a beginning in common saves.

    Attributes:
        prompt_tokens: of all prompts.
        read_tokens: of them, those that are read.
        apart: what the requests get where each reads its whole prompt.
    """

    prompt_tokens: int
    read_tokens: int
    apart: Throughput


@dataclass(frozen=True)
class Prediction:
    """The answer and how sure it is.

    Attributes:
        search: prices further variants of the same question.
        decision: the ranked variants, of those that this version can run.
        intervals: of each leading variant.
        alpha_source: where the acceptance comes from.
        pays_from: the smallest acceptance from which the best speculative variant gains on the baseline, or None.
        potential: what would be faster than the best and is not planned, fastest first: it cannot be run yet, was
            measured by nobody, or the texts decide.
        potential_intervals: of each of those.
        decided_by: the search that chose without a GPU that waits for a measurement, where there is one.
        from_text: the fastest way that drafts from the text, where that was asked for, and its interval.
        alphas: the bounds of the acceptance.
        time: of a whole answer; this and what follows only where a request was answered.
        together: what several requests at a time get, where they were asked for.
        requests: so many.
        sharing: what a beginning that their prompts have in common saves, where there is one.
        changes: the inputs with the most leverage, and the value of each at which the verdict flips.
        assumed: what the request left open, and what was taken.
        command: what compiles the best variant.
        like_note: why the published ratio of the configuration that was asked for is what it is.
    """

    search: Search
    decision: Decision
    intervals: tuple[Interval, ...]
    alpha_source: str
    pays_from: float | None
    potential: tuple[Variant, ...] = ()
    potential_intervals: tuple[Interval, ...] = ()
    decided_by: Search | None = None
    from_text: tuple[Variant, Interval] | None = None
    alphas: tuple[Acceptance, Acceptance] | None = None
    time: AnswerTime | None = None
    together: Throughput | None = None
    requests: int = 1
    sharing: Sharing | None = None
    changes: tuple[Change, ...] = ()
    assumed: tuple[str, ...] = ()
    command: str = ""
    like_note: str = ""

    @property
    def question(self) -> Question:
        """What was asked."""
        return self.search.question

    @property
    def speculative(self) -> Variant | None:
        """The best variant that drafts with a model; beside a target alone the best of those that take turns."""
        drafting = [v for v in self.decision.leading if v.gamma and v.draft is not None]
        turns = [v for v in drafting if v.mode == SEQUENTIAL] if not self.decision.best.gamma else []
        return next(iter(turns or drafting), None)

    @property
    def on_waiting_gpu(self) -> list[tuple[Variant, Interval]]:
        """Ways with a GPU that waits for a measurement, the fastest first, each with its interval."""
        if self.decided_by is None:
            return []
        variants, intervals = (*self.potential, *self.decision.leading), (*self.potential_intervals, *self.intervals)
        found = [(v, i) for v, i in zip(variants, intervals, strict=True) if uses_gpu(v) and compilable(v)]
        return sorted(found, key=lambda pair: rank(pair[0]))


def answer(request: PredictRequest) -> Prediction:
    """Read what the request names, and predict.

    Raises:
        UserError: a file cannot be used, numbers contradict each other, or the question has no answer.
    """
    stated = request.alpha is not None
    request = check(request)
    assert request.board is not None
    measured = None if request.alpha_file is None else read_alpha_file(request.alpha_file, request.sampled)
    board = load_board(request.board)
    question = question_of(request, board, read_factors(request.factors, board), measured)
    if question.slots > 1 and question.cores is None:
        question = replace(question, cores=batch_cores(question))
    question.check()
    prediction = predict(question, measured, stated)
    best, (prompt, new, _) = prediction.decision.best, request.lengths
    asked = Requests(request.requests, prompt, new, request.shared_prefix or 0)
    together, sharing = _together(prediction, asked, request)
    found = replace(
        prediction,
        time=answer_time(prediction.search, best, prompt, new, threads_given=request.threads is not None),
        together=together,
        requests=request.requests,
        sharing=sharing,
        changes=_changes(prediction),
        assumed=tuple(assumptions(request, prediction.search, best)),
    )
    command = compile_command(request, best, question)
    if request.like is not None:
        note = baseline_note(like(request.like), found.search, found.decision, fastest_alone(question))
        found = replace(found, like_note=note)
    return replace(found, command=command)


def predict(question: Question, measured: AlphaFile | None = None, alpha_given: bool = False) -> Prediction:
    """Decide among what can be run, and say how sure it is; what could be faster is kept beside it.

    A GPU that waits for a measurement decides nothing (costmodel/unmeasured_gpu.py).

    Args:
        question: what to decide.
        measured: an acceptance that was measured.
        alpha_given: the acceptance is the user's.

    Raises:
        UserError: the question has no answer.
    """
    search = Search(bundle_question(question))
    kind = "given" if alpha_given else "assumed"
    alphas = alpha_bounds(question.alpha, kind) if measured is None else (measured.low, measured.high)
    interval_of = Intervals(search, alphas)
    waits = gpu_waits(question)
    by = Search(deciding(search.question)) if waits else search
    decision = settle_ties(by.decide(), interval_of)
    potential: tuple[Variant, ...] = ()
    if waits:
        decision, potential = beside(decision, search.decide())
    everything, best = Search(question), decision.best
    free = question.cores is None and question.target_place is None and question.draft_place is None
    others: list[Variant] = []
    if not question.one_process and question.cores is None and (free or question.ngram_alpha is not None):
        others = [v for v in everything.decide().leading if not compilable(v) and (free or v.mode == NGRAM)]
        more = (v for v in others if v.tokens_per_s > best.tokens_per_s)
        potential += tuple(replace(v, reason=why_not_planned(v, best)) for v in more)
    potential = tuple(sorted(potential, key=rank))
    intervals, beyond = tuple(map(interval_of, decision.leading)), Intervals(everything, alphas)
    prediction = Prediction(
        *(search, decision, intervals, _source_of(question, kind, measured), None),
        potential=potential,
        potential_intervals=tuple(map(beyond, potential)),
        decided_by=by if waits else None,
        from_text=next(((v, beyond(v)) for v in others if v.mode == NGRAM), None),
        alphas=alphas,
    )
    other = prediction.speculative
    if other is None:
        return prediction
    return replace(prediction, pays_from=break_even_alpha(gain_of(search, other, decision.baseline)))


def _source_of(question: Question, kind: str, measured: AlphaFile | None) -> str:
    if measured is not None:
        return measured.source
    return f"{question.alpha:g}, {kind}" if isinstance(question.alpha, float) else "by position"


def _changes(p: Prediction) -> tuple[Change, ...]:
    """What would change the verdict; of a GPU that waits first what it must reach, then what decides without it."""
    if p.decided_by is None:
        return what_would_change(p.search, p.decision, p.alphas)
    reach = what_a_gpu_must_reach(p.search, p.decision, [v for v, _ in p.on_waiting_gpu])
    without = replace(p.decision, leading=tuple(v for v in p.decision.leading if not uses_gpu(v)))
    others = what_would_change(p.decided_by, without, p.alphas)
    return others if reach is None else (reach, *others[: MOST - 1])


def _together(p: Prediction, asked: Requests, request: PredictRequest) -> tuple[Throughput | None, Sharing | None]:
    """What requests that come together get of the target and the drafter that a bundle has; None of a single one."""
    if asked.count == 1 and request.slots is None:
        return None, None
    best, question, draft = p.decision.best, p.question, None
    alpha, beta = request.ngram_alpha, DEFAULT_BRANCH if request.branch is None else request.branch
    drafting = None if alpha is None else Drafting(alpha, request.ngram_match, beta=beta)
    beside = best if best.draft is not None else p.speculative
    if beside is not None and beside.draft is not None and beside.draft_placement is not None:
        accepted = acceptance_rate(question.alpha, beside.gamma)
        draft = BatchDraft(beside.draft, beside.draft_placement, accepted, beta)
    reading = reading_place(p.search, best.target, best.target_placement, request.threads is not None)
    chunks = chunk_widths(p.search, best.target, reading)

    how = drafting, draft, chunks, reading, question.slots

    def of(requests: Requests) -> Throughput:
        return batch_on(question, best.target, best.target_placement, requests, *how)

    apart = replace(asked, shared_tokens=0)
    if not asked.shared_tokens:
        return of(asked), None
    if any(isinstance(s.processor, GpuSlice) for s in best.target_placement.segments):
        asked = apart  # every slot has rows of its own there
    return of(asked), Sharing(apart.read_tokens, asked.read_tokens, of(apart))


def fastest_alone(question: Question) -> Variant:
    """The target alone where it is fastest of what may decide, whatever cores and places the question names."""
    alone = replace(question, cores=None, target_place=None, draft_place=None, gamma=None, drafts=())
    return Search(deciding(bundle_question(alone))).decide().best


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
