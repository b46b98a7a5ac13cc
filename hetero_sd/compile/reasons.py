"""Why a plan is what it is: one sentence for each decision, with the numbers that it was made on."""

from __future__ import annotations

from collections.abc import Mapping

from costmodel.decoder import DecoderSpec
from costmodel.place import ReasonedPlace
from costmodel.placement import Placement
from costmodel.processor import CpuSlice, GpuSlice
from costmodel.schema.plan import OVERLAPPED, TARGET_ONLY, PlannedOverlap
from costmodel.search import Search
from hetero_sd.compile.place import place_text
from hetero_sd.predict.predict import Prediction
from targets.device import Cluster


def places_of(
    asked: Prediction, specs: Mapping[str, DecoderSpec], placements: Mapping[str, Placement], rule: str | None
) -> dict[str, ReasonedPlace]:
    """Where each model runs, and why, by role; `rule` is the user's --place."""
    board, best = asked.question.board, asked.decision.best
    places = {}
    for role, placement in placements.items():
        place = placement.place(specs[role])
        where = place_text(place, board.gpu.model if board.gpu else "")
        if rule is not None:
            why = f"as given with --place {rule}"
        else:
            why = _why_there(asked.search, specs[role], placement, best.gamma + 1 if role == "target" else 1)
        places[role] = ReasonedPlace(place, f"{role} on {where}: {why}")
    return places


def reasons_of(
    asked: Prediction,
    specs: Mapping[str, DecoderSpec],
    placements: Mapping[str, Placement],
    cluster: Cluster,
    threads: int,
    given_gamma: int | None,
    overlap: PlannedOverlap | None = None,
) -> list[str]:
    """One sentence for each decision besides the places; `given_gamma` is the user's --gamma."""
    best = asked.decision.best
    reasons = [_why_threads(asked.search, specs["target"], placements["target"], cluster, threads, best.gamma + 1)]
    if "draft" not in specs:
        reasons.append("target only: no draft model was given")
    elif given_gamma is not None:
        reasons.append(f"gamma {best.gamma}: as given with --gamma {given_gamma}")
    else:
        others = [v for v in asked.decision.leading[1:] if (v.mode == TARGET_ONLY) != (best.mode == TARGET_ONLY)]
        against = (
            f"; the best {others[0].mode} variant is predicted to reach {others[0].tokens_per_s:.2f}" if others else ""
        )
        tied = asked.decision.tied
        why = "the fastest" if tied is None else f"surer than {tied.mode} at {tied.tokens_per_s:.2f}, a tie"
        reasons.append(f"gamma {best.gamma}: predicted to be {why}, {best.tokens_per_s:.2f} tokens/s{against}")
    if overlap is not None:
        reasons.append(_why_overlapped(overlap, placements, best.mode == OVERLAPPED))
    question = asked.question
    if question.slots > 1:
        one = specs["target"].kv_bytes(question.cache_rows or question.context)
        reasons.append(
            f"{question.slots} requests at a time with --serve, as given with --slots: the target's KV caches may take "
            f"{question.slots} x {one / 1e6:.3g} MB, as far as texts fill them; CPU cores are those that are the "
            "fastest for so many together"
        )
    return reasons


def _why_overlapped(overlap: PlannedOverlap, placements: Mapping[str, Placement], chosen: bool) -> str:
    """What drafting meanwhile is predicted to do, and who has which CPUs."""
    found = []
    for role, cpus in (("target", overlap.target_cpus), ("drafter", overlap.draft_cpus)):
        processor = placements["target" if role == "target" else "draft"].segments[0].processor
        does = "enqueued from" if isinstance(processor, GpuSlice) else "on"
        found.append(f"the {role} {does} CPU{'s' if len(cpus) > 1 else ''} {', '.join(map(str, cpus))}")
    waits = "waits for no draft" if not overlap.least else f"waits for {overlap.least} of {overlap.gamma} drafts"
    return (
        f"overlapped{'' if chosen else ' (the run may choose it)'}: {' and '.join(found)}; the target {waits}; beside "
        f"each other a step of the target is predicted to take {overlap.target_slowdown:.2f} times as long, one of the "
        f"drafter {overlap.draft_slowdown:.2f} times"
    )


def _why_there(search: Search, spec: DecoderSpec, placement: Placement, n: int) -> str:
    """The step's time here and whole on the other processor."""
    costs, board = search.costs(spec), search.question.board
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
    search: Search, spec: DecoderSpec, placement: Placement, cluster: Cluster, threads: int, n: int
) -> str:
    """The cluster with the step's time there, and the next best choice where the target runs on the CPU."""
    title = f"CPU cluster {cluster.name} with {threads} of {cluster.count} cores ({cluster.core.name})"
    if not any(isinstance(s.processor, CpuSlice) for s in placement.segments):
        return f"{title}: it launches the GPU's kernels"
    costs, place = search.costs(spec), placement.place(spec)
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
