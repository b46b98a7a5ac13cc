"""What is decided before anything is compiled: mode, draft length, where each model runs, threads, entry points.

The cost model's search decides (costmodel/search.py), the same that `hetero-sd predict` asks, restricted to what the
runtime can run; what the user gives is kept, and the plan says what it costs. A plan is plain JSON and the same for the
same inputs: it is arithmetic over the board as it is described, so board `host` is not measured for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from costmodel.decoder import DecoderSpec
from costmodel.memory import available_bytes
from costmodel.place import Place
from costmodel.placement import Placement
from costmodel.question import TARGET_ONLY, Question, Variant
from costmodel.roofline import CpuSlice, GpuSlice
from costmodel.search import Search
from hetero_sd.compile.place import place_models, place_text
from hetero_sd.compile.plan_prediction import plan_prediction
from hetero_sd.compile.verdict import plan_verdict, rounded
from hetero_sd.predict.inputs import AlphaFile, read_factors
from hetero_sd.predict.predict import DEFAULT_ALPHA, Prediction, predict
from hetero_sd.predict.text import variant_json
from targets.backend import backend
from targets.cpu.tile import cpu_tile
from targets.device import Board, Cluster
from targets.errors import UserError

PREFILL_CHUNK = 32
DRAFT_WIDTHS = (1, 2)
_SHORT_WIDTHS = (1, 2, 4, 8)  # serve short prompts, and shorter rounds near the end
_LIVE_ALPHAS = (0.6, 0.9)  # acceptances whose best draft lengths are compiled, too, for the run to choose from
_MOST_LIVE = 8


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
    """

    gamma: int | None = None
    place: str | None = None
    alpha: float | None = None
    alpha_file: AlphaFile | None = None
    factors: Path | None = None
    widths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Decisions for one target and at most one drafter on one board.

    Attributes:
        board: its name.
        mode: "target-only" or "sequential" speculation.
        gamma: drafted tokens a round, 0 without.
        places: where each model of the bundle runs, by role: the text of a costmodel.place.Place.
        cluster: CPU cluster that both models use, and that launches the GPU's kernels.
        threads: of it.
        cpu_ids: the cores of the cluster.
        context: tokens that fit the KV caches.
        target_widths: entry points of the target, in new tokens; gamma + 1 is among them.
        draft_widths: entry points of the drafter; after full acceptance it is fed two tokens.
        prefill_width: tokens of a prompt chunk.
        given: what the user decided: "gamma", "place".
        verdict: the decision in one or two sentences, with its numbers.
        reasons: one sentence for each decision.
        variants: the leading ways to run the pair, fastest first, each with its reason; then those that do not fit.
        memory: bytes by use, what is free, and what the drafter needs of it.
        prediction: what `run.py --stats` compares with, and what live decisions start from.
    """

    board: str
    mode: str
    gamma: int
    places: dict[str, str]
    cluster: str
    threads: int
    cpu_ids: tuple[int, ...]
    context: int
    target_widths: tuple[int, ...]
    draft_widths: tuple[int, ...]
    prefill_width: int
    given: tuple[str, ...]
    verdict: str
    reasons: tuple[str, ...]
    variants: tuple[dict[str, Any], ...] = field(repr=False)
    memory: dict[str, int] = field(repr=False)
    prediction: dict[str, Any] = field(repr=False)

    @property
    def needs_gpu(self) -> bool:
        """Whether a model has a part there."""
        return any(backend(p).carries_runtime for text in self.places.values() for p in Place.parse(text).processors)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, as the bundle carries it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def make_plan(
    board: Board, shapes: Mapping[str, DecoderSpec], context: int, overrides: Overrides | None = None
) -> tuple[Plan, Prediction]:
    """Decide for a board, and return the plan with the prediction that led to it.

    Args:
        board: the hardware.
        shapes: the target and, where there is one, the drafter, by role.
        context: rows of the KV caches (see `whole_context`); steps are priced at half of it.
        overrides: what the user gives.

    Raises:
        UserError: a rule cannot be followed, a number is out of range, or the memory is too small, with the numbers.
    """
    overrides = overrides or Overrides()
    target, draft = shapes["target"], shapes.get("draft")
    placed = place_models(overrides.place, board, draft is not None) if overrides.place is not None else {}
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
        overlapped=False,
        one_tokenizer=True,
    )
    question = replace(free_question, target_place=placed.get("target"), draft_place=placed.get("draft"))
    if overrides.gamma is not None:
        drafts = question.drafts if overrides.gamma else ()
        question = replace(question, gamma=overrides.gamma if drafts else None, drafts=drafts)
    free = predict(free_question, measured)
    asked = free if question == free_question else predict(question, measured)
    return _plan(asked, free, shapes, overrides, context), free


def whole_context(board: Board, context: int) -> int:
    """Rows of KV cache for that many tokens: at least a prompt chunk, in whole tiles of every cluster's kernels."""
    lanes = max(cpu_tile(cluster.core).lanes for cluster in board.clusters)
    return -(-max(context, PREFILL_CHUNK) // lanes) * lanes


def rows_within(board: Board, positions: int) -> int:
    """The most rows of KV cache for a model with that many positions, in whole tiles; 0 where there are too few."""
    lanes = max(cpu_tile(cluster.core).lanes for cluster in board.clusters)
    rows = positions // lanes * lanes
    return rows if rows >= whole_context(board, 1) else 0


def _plan(
    asked: Prediction, free: Prediction, shapes: Mapping[str, DecoderSpec], overrides: Overrides, context: int
) -> Plan:
    best, board = asked.decision.best, asked.question.board
    placements = {"target": best.target_placement}
    drafter = _drafter_beside(free, best, shapes, overrides)
    if drafter is not None:
        placements["draft"] = drafter
    cluster, threads = _cores(placements, board)
    widths = _target_widths(asked.search, best, shapes.get("draft"), drafter, overrides)
    draft_bytes = asked.search.model_memory(shapes["draft"], drafter).total_bytes if drafter is not None else 0
    memory = {**asdict(best.memory), "total_bytes": best.memory.total_bytes}
    memory = {**memory, "free_bytes": available_bytes(board), "drafter_bytes": draft_bytes}
    prediction = plan_prediction(asked, shapes, placements, widths, DRAFT_WIDTHS, PREFILL_CHUNK)
    pairs = list(zip(free.decision.leading, free.intervals, strict=True))
    variants = [variant_json(v, sure) for v, sure in pairs]
    variants += [variant_json(v, None) for v in free.decision.not_fitting]
    given = [name for name, value in (("gamma", overrides.gamma), ("place", overrides.place)) if value is not None]
    return Plan(
        board=board.name,
        mode=best.mode,
        gamma=best.gamma,
        places={role: p.place(shapes[role]).text for role, p in placements.items()},
        cluster=cluster.name,
        threads=threads,
        cpu_ids=cluster.cpu_ids,
        context=context,
        target_widths=widths,
        draft_widths=DRAFT_WIDTHS,
        prefill_width=PREFILL_CHUNK,
        given=tuple(given),
        verdict=plan_verdict(asked, free, given, "draft" in shapes, draft_bytes),
        reasons=tuple(_reasons(asked, shapes, placements, cluster, threads, overrides)),
        variants=tuple(rounded(v) for v in variants),
        memory=memory,
        prediction=rounded(prediction),
    )


def _drafter_beside(
    free: Prediction, best: Variant, shapes: Mapping[str, DecoderSpec], overrides: Overrides
) -> Placement | None:
    """Where the drafter runs; beside a target that runs alone too, where it fits, because the run decides anew."""
    if best.draft_placement is not None or "draft" not in shapes:
        return best.draft_placement
    cores = next((s.processor for s in best.target_placement.segments if isinstance(s.processor, CpuSlice)), None)
    question = replace(free.question, target_place=best.target_placement.place(best.target), cores=cores)
    if overrides.place is not None:
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
    widths = {*_SHORT_WIDTHS, best.gamma + 1, *overrides.widths}
    if draft is not None and drafter is not None and overrides.gamma is None:
        for alpha in _LIVE_ALPHAS:
            rounds = [
                search.price("sequential", best.target, best.target_placement, draft, drafter, g, alpha)
                for g in range(1, _MOST_LIVE + 1)
            ]
            widths.add(max(rounds, key=lambda v: v.tokens_per_s).gamma + 1)
    return tuple(sorted(widths))


def _reasons(
    asked: Prediction,
    shapes: Mapping[str, DecoderSpec],
    placements: Mapping[str, Placement],
    cluster: Cluster,
    threads: int,
    overrides: Overrides,
) -> list[str]:
    """One sentence for each decision; those of the models begin with their role."""
    board, best = asked.question.board, asked.decision.best
    gpu = board.gpu.model if board.gpu else ""
    reasons = []
    for role, placement in placements.items():
        n = best.gamma + 1 if role == "target" else 1
        where = place_text(placement.place(shapes[role]), gpu)
        if overrides.place is not None:
            why = f"as given with --place {overrides.place}"
        else:
            why = _why_there(asked.search, shapes[role], placement, n)
        reasons.append(f"{role} on {where}: {why}")
    reasons.append(_why_threads(asked.search, shapes["target"], placements["target"], cluster, threads, best.gamma + 1))
    if "draft" not in shapes:
        reasons.append("target only: no draft model was given")
    elif overrides.gamma is not None:
        reasons.append(f"gamma {best.gamma}: as given with --gamma {overrides.gamma}")
    else:
        others = [v for v in asked.decision.leading[1:] if (v.mode == TARGET_ONLY) != (best.mode == TARGET_ONLY)]
        against = (
            f"; the best {others[0].mode} variant is predicted to reach {others[0].tokens_per_s:.2f}" if others else ""
        )
        reasons.append(f"gamma {best.gamma}: predicted to be the fastest, {best.tokens_per_s:.2f} tokens/s{against}")
    return reasons


def _why_there(search: Search, shape: DecoderSpec, placement: Placement, n: int) -> str:
    """The step's time here and whole on the other processor."""
    costs, board = search.costs(shape), search.question.board
    here = f"a step of {_tokens(n)} is predicted to take {1e3 * costs.step_s(placement, n):.3g} ms"
    if board.gpu is None:
        return f"board {board.name} has no GPU; {here}"
    used = [s.processor for s in placement.segments]
    cores = next((p for p in used if isinstance(p, CpuSlice)), None)
    others = []
    if any(isinstance(p, GpuSlice) for p in used):
        slices = [p for p in costs.slices if isinstance(p, CpuSlice)]
        fastest = cores or min(slices, key=lambda p: costs.step_s(costs.whole(p), n))
        others.append(("the CPU", costs.step_s(costs.whole(fastest), n)))
    if cores is not None:
        gpu = GpuSlice(board.gpu, cores.parts[0][0])
        others.append(("the GPU", costs.step_s(costs.whole(gpu), n)))
    return f"{here}; the whole model would take " + " and ".join(f"{1e3 * s:.3g} ms on {name}" for name, s in others)


def _why_threads(
    search: Search, shape: DecoderSpec, placement: Placement, cluster: Cluster, threads: int, n: int
) -> str:
    """The cluster with the step's time there, and the next best choice where the target runs on the CPU."""
    title = f"CPU cluster {cluster.name} with {threads} of {cluster.count} cores ({cluster.core.name})"
    if not any(isinstance(s.processor, CpuSlice) for s in placement.segments):
        return f"{title}: it launches the GPU's kernels"
    costs, place = search.costs(shape), placement.place(shape)
    times = []
    for cores in costs.slices:
        if isinstance(cores, CpuSlice):
            gpu = GpuSlice(search.question.board.gpu, cores.parts[0][0]) if search.question.board.gpu else None
            times.append((costs.step_s(costs.placed(place, cores, gpu), n), cores))
    here = next(s for s, cores in times if cores.parts == ((cluster, threads),))
    others = sorted(((s, cores.name) for s, cores in times if cores.parts != ((cluster, threads),)))
    beside = f"; on {others[0][1]}, the next best, it would take {1e3 * others[0][0]:.3g} ms" if others else ""
    return f"{title}: a step of the target of {_tokens(n)} is predicted to take {1e3 * here:.3g} ms{beside}"


def _tokens(n: int) -> str:
    return "1 token" if n == 1 else f"{n} tokens"


def check_gamma(gamma: int | None, most: int) -> None:
    """Refuse a draft length that is out of range.

    Raises:
        UserError: with the range.
    """
    if gamma is not None and not 0 <= gamma <= most:
        raise UserError(f"--gamma {gamma}: must be 0 to {most} drafted tokens, or auto")
