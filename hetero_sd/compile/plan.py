"""What is decided before anything is compiled: mode, draft length, where each model runs, threads, entry points.

The cost model's search decides (costmodel/search.py), the same that `hetero-sd predict` asks, restricted to what the
runtime can run; what the user gives is kept, and the plan says what it costs. A plan is plain JSON and the same for the
same inputs: it is arithmetic over the board as it is described, so board `host` is not measured for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from costmodel.batch_cores import DRAFT_WIDTHS, batch_cores
from costmodel.decoder import DecoderSpec
from costmodel.memory import Memory, available_bytes
from costmodel.phase_threads import prompt_placement
from costmodel.placement import Placement
from costmodel.processor import CpuSlice, GpuSlice
from costmodel.question import Question, Variant
from costmodel.schema.plan import Plan, PlanMemory
from costmodel.search import Search
from costmodel.unmeasured_gpu import deciding
from hetero_sd.compile.place import place_models
from hetero_sd.compile.plan_chunks import plan_chunks
from hetero_sd.compile.plan_overlap import plan_overlap
from hetero_sd.compile.plan_prediction import plan_prediction
from hetero_sd.compile.reasons import places_of, reasons_of
from hetero_sd.compile.verdict import plan_verdict, rounded
from hetero_sd.predict.inputs import AlphaFile, read_factors
from hetero_sd.predict.predict import Prediction, predict
from hetero_sd.predict.request import DEFAULT_ALPHA
from hetero_sd.predict.variants import planned_variant
from targets.device import Board, Cluster
from targets.errors import UserError

_SHORT_WIDTHS = (1, 2, 4, 8)  # serve short prompts, and shorter rounds near the end
_LIVE_ALPHAS = (0.6, 0.9)  # acceptances whose best draft lengths are compiled, too, for the run to choose from
_MOST_LIVE = 8
_ASSUMED_TOKENS, _GIVEN_TOKENS, _MEASURED_TOKENS = 4.0, 8.0, 32.0  # of `Overrides.alpha_tokens`


@dataclass(frozen=True)
class Overrides:
    """What the user gives in place of the plan's own decisions; None decides.

    Attributes:
        gamma: drafted tokens a round.
        place: a rule of hetero_sd/compile/place.py.
        alpha: acceptance of a drafted token.
        alpha_file: what `hetero-sd acceptance` measured, read.
        factors: a file of factors, in place of the board's.
        widths: more entry points of the target.
        slots: sequences that the KV caches of each model hold.
        compiled: the target's only entry points, where they are compiled already; drafts are as long as they allow.
        chunks: widths of prompt chunks, ascending; empty decides.
    """

    gamma: int | None = None
    place: str | None = None
    alpha: float | None = None
    alpha_file: AlphaFile | None = None
    factors: Path | None = None
    widths: tuple[int, ...] = ()
    compiled: tuple[int, ...] = ()
    slots: int = 1
    chunks: tuple[int, ...] = ()

    @property
    def alpha_tokens(self) -> float:
        """Judged tokens of a run that the acceptance counts for: few where it is assumed."""
        if self.alpha_file is not None:
            return _MEASURED_TOKENS
        return _ASSUMED_TOKENS if self.alpha is None else _GIVEN_TOKENS


def make_plan(
    board: Board, specs: Mapping[str, DecoderSpec], context: int, overrides: Overrides | None = None
) -> tuple[Plan, Prediction]:
    """Decide for a board, and return the plan with the prediction that led to it.

    Args:
        board: the hardware.
        specs: the target and, where there is one, the drafter, by role.
        context: rows of the KV caches (see `whole_context`); steps are priced at half of it.
        overrides: what the user gives.

    Raises:
        UserError: a rule cannot be followed, a number is out of range, or the memory is too small, with the numbers.
    """
    overrides = overrides or Overrides()
    target, draft = specs["target"], specs.get("draft")
    early = draft is not None and draft.whole is not None
    placed = place_models(overrides.place, board, draft is not None, early) if overrides.place is not None else {}
    measured = overrides.alpha_file
    free_question = Question(
        board=board,
        targets=(target,),
        drafts=() if draft is None else (draft,),
        alpha=measured.alpha if measured else DEFAULT_ALPHA if overrides.alpha is None else overrides.alpha,
        context=max(1, context // 2),
        factors=read_factors(overrides.factors, board),
        cache_rows=context,
        one_process=True,
        one_tokenizer=True,
        widths=overrides.compiled,
        slots=overrides.slots,
    )
    if overrides.slots > 1:
        free_question = replace(free_question, cores=batch_cores(free_question))
    if placed:
        question = replace(free_question, target_place=placed["target"], draft_place=placed.get("draft"))
    else:
        question = free_question
    if overrides.gamma is not None:
        drafts = question.drafts if overrides.gamma else ()
        question = replace(question, gamma=overrides.gamma if drafts else None, drafts=drafts)
    stated = overrides.alpha is not None
    free = predict(free_question, measured, stated)
    asked = free if question == free_question else predict(question, measured, stated)
    return _plan(asked, free, specs, overrides, context), free


def _plan(
    asked: Prediction, free: Prediction, specs: Mapping[str, DecoderSpec], overrides: Overrides, context: int
) -> Plan:
    best, board = asked.decision.best, asked.question.board
    placements = {"target": best.target_placement}
    drafter = _drafter_beside(free, best, specs, overrides)
    if drafter is not None:
        placements["draft"] = drafter
    cluster, threads = _cores(placements, board)
    widths = _target_widths(asked.search, best, specs.get("draft"), drafter, overrides)
    draft_bytes = (
        asked.search.model_memory(specs["draft"], drafter, best.mode, overrides.slots).total_bytes
        if drafter is not None
        else 0
    )
    chunks = plan_chunks(asked.search, best, [specs[role] for role in placements], context, overrides.chunks)
    used = best.memory + Memory(activation_bytes=chunks.activation_bytes)
    memory = PlanMemory(
        **asdict(used),
        total_bytes=used.total_bytes,
        free_bytes=available_bytes(board),
        drafter_bytes=draft_bytes,
    )
    reading = {
        role: prompt_placement(asked.search.costs(specs[role]), place, chunks.narrow)
        for role, place in placements.items()
    }
    sizes = widths, DRAFT_WIDTHS, chunks.narrow, overrides.alpha_tokens, context, chunks.long
    prediction = plan_prediction(*(asked, specs, placements, reading, *sizes))
    overlap = plan_overlap(asked.search, best, specs, placements)
    pairs = list(zip(free.decision.leading, free.intervals, strict=True))
    variants = [planned_variant(v, sure) for v, sure in pairs]
    variants += [planned_variant(v, None) for v in free.decision.not_fitting]
    reasons = reasons_of(asked, specs, placements, cluster, threads, overrides.gamma, overlap)
    given = [name for name, value in (("gamma", overrides.gamma), ("place", overrides.place)) if value is not None]
    return Plan(
        board=board.name,
        mode=best.mode,
        gamma=best.gamma,
        places=places_of(asked, specs, placements, overrides.place),
        cluster=cluster.name,
        threads=threads,
        cpu_ids=cluster.cpu_ids,
        context=context,
        target_widths=widths,
        draft_widths=DRAFT_WIDTHS,
        prefill_width=chunks.narrow,
        given=tuple(given),
        verdict=plan_verdict(asked, free, given, "draft" in specs, draft_bytes),
        reasons=(*reasons, *chunks.reasons),
        variants=tuple(rounded(v) for v in variants),
        memory=memory,
        prediction=rounded(prediction),
        overlap=None if overlap is None else rounded(overlap),
        slots=overrides.slots,
        long_prefill_width=chunks.long,
        prompt_threads=_cores(reading, board)[1],
    )


def _drafter_beside(
    free: Prediction, best: Variant, specs: Mapping[str, DecoderSpec], overrides: Overrides
) -> Placement | None:
    """Where the drafter runs; beside a target that runs alone too, where it fits, because the run decides anew."""
    if best.draft_placement is not None or "draft" not in specs:
        return best.draft_placement
    cores = next((s.processor for s in best.target_placement.segments if isinstance(s.processor, CpuSlice)), None)
    allowed = free.question if overrides.place is not None else deciding(free.question)
    question = replace(allowed, target_place=best.target_placement.place(best.target), cores=cores)
    if overrides.place is not None and specs["draft"].whole is None:
        question = replace(question, draft_place=place_models(overrides.place, question.board, True)["draft"])
    leading = Search(question).decide().leading
    return next((v.draft_placement for v in leading if v.draft_placement is not None), None)


def _cores(placements: Mapping[str, Placement], board: Board) -> tuple[Cluster, int]:
    """The cluster and its threads; all of them where it only launches the GPU's kernels."""
    processors = [s.processor for p in placements.values() for s in p.segments]
    for processor in processors:
        if isinstance(processor, CpuSlice):
            return processor.parts[0]
    hosts = [p.host for p in processors if isinstance(p, GpuSlice)]
    return hosts[0], hosts[0].count


def _target_widths(
    search: Search, best: Variant, draft: DecoderSpec | None, drafter: Placement | None, overrides: Overrides
) -> tuple[int, ...]:
    """Those of the plan, and those that the run may come to prefer when it accepts less or more than was expected."""
    if overrides.compiled:
        return overrides.compiled
    widths = {*_SHORT_WIDTHS, best.gamma + 1, *overrides.widths}
    if draft is not None and drafter is not None and overrides.gamma is None:
        for alpha in _LIVE_ALPHAS:
            rounds = [
                search.price("sequential", best.target, best.target_placement, draft, drafter, g, alpha)
                for g in range(1, _MOST_LIVE + 1)
            ]
            widths.add(max(rounds, key=lambda v: v.tokens_per_s).gamma + 1)
    return tuple(sorted(widths))


def check_gamma(gamma: int | None, most: int) -> None:
    """Refuse a draft length that is out of range.

    Raises:
        UserError: with the range.
    """
    if gamma is not None and not 0 <= gamma <= most:
        raise UserError(f"--gamma {gamma}: must be 0 to {most} drafted tokens, or auto")
