"""Which CPUs each model has while both run at the same time, and staying on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from costmodel.schema.plan import Plan
from hetero_sd.runtime.model.protocol import Model, Models
from targets.backend import HOST


def divide_cpus(usable: Sequence[int], cluster: Sequence[int], target_computes: bool) -> tuple[list[int], list[int]]:
    """CPUs of the target and of the drafter; the same ones where there is only one.

    The plan's cluster goes to the model that computes on it, the other CPUs to the other one. Without another cluster
    the other one has the last CPU: a drafter's steps are short, and a processor that is no CPU needs a thread that
    enqueues its kernels.

    Args:
        usable: CPUs that this process may use.
        cluster: of the plan, or none.
        target_computes: the target runs on the CPU.
    """
    many = [cpu for cpu in usable if cpu in cluster]
    few = [cpu for cpu in usable if cpu not in cluster]
    if not many or not few:
        many, few = list(usable[:-1]), list(usable[-1:])
    if not many:
        return few, few
    return (many, few) if target_computes else (few, many)


def why_not_apart(models: Models, plan: Plan, usable: Sequence[int]) -> str | None:
    """Why a plan's models cannot have the CPUs that it gives each of them, in a few words; None where they can."""
    overlap = plan.overlap
    if overlap is None:
        return "the plan does not say how"
    if lacking := sorted({*overlap.target_cpus, *overlap.draft_cpus} - {*usable}):
        return f"this process may not use CPU {', '.join(map(str, lacking))} of those of the plan"
    for role, model in (("target", models.target), ("draft model", models.draft)):
        if getattr(model, "on_fallback", False):
            return f"the {role} runs on the CPU, for which the plan has no core"
        if (why := getattr(model, "why_tvms_pool", None)) is not None:
            return f"TVM's thread pool serves both models: {why}"
    return None


class Sides:
    """Where both models compute: on CPUs of their own while they work at once, on all of them while they take turns.

    Attributes:
        draft_cpus: the drafter's own; none where the models do not use CPUs of their own.
    """

    def __init__(self) -> None:
        """Nothing is moved."""
        self.draft_cpus: list[int] = []

    def apart(self) -> None:
        """Move the calling thread and both models to their own CPUs."""

    def together(self) -> None:
        """Move them to where they were loaded."""


class _TwoSides(Sides):
    def __init__(self, target: Any, draft: Any, cpus: tuple[list[int], list[int]], planned: bool) -> None:
        ours, self.draft_cpus = cpus
        own = [{"threads": len(some)} if planned else {} for some in cpus]
        self._all = sorted(os.sched_getaffinity(0))
        both = [(model, self._all, {"threads": model.threads}) for model in (target, draft)]
        self._moves = {True: [(target, ours, own[0]), (draft, self.draft_cpus, own[1])], False: both}
        self._callers, self._apart = {True: ours, False: self._all}, False

    def apart(self) -> None:
        self._move(True)

    def together(self) -> None:
        self._move(False)

    def _move(self, apart: bool) -> None:
        os.sched_setaffinity(0, self._callers[apart])
        if apart != self._apart:
            for model, cpus, more in self._moves[apart]:
                model.stay_on(cpus, **more)
        self._apart = apart


@contextmanager
def side_by_side(
    models: Models, plan: Plan | None, usable: Sequence[int], note: Callable[[str], None]
) -> Iterator[Sides]:
    """Keep the calling thread and the target on its CPUs, and the drafter's kernels on its own; all until the end.

    The thread that runs the drafter must stay on those, too.

    Args:
        models: both, as they were loaded.
        plan: of the bundle; where it says which CPUs each has, those, with a thread on each.
        usable: CPUs that this process may use.
        note: told, in one line, where both run on the same CPUs.
    """
    target, draft = _movable(models.target), _movable(models.draft)
    if target is None or draft is None or not hasattr(os, "sched_setaffinity"):
        yield Sides()
        return
    planned = plan is not None and plan.overlap is not None and why_not_apart(models, plan, usable) is None
    if planned and plan is not None and plan.overlap is not None:
        ours, drafters = list(plan.overlap.target_cpus), list(plan.overlap.draft_cpus)
    else:
        ours, drafters = divide_cpus(usable, () if plan is None else plan.cpu_ids, target.processor == HOST)
    sides = _TwoSides(target, draft, (ours, drafters), planned)
    try:
        sides.apart()
        if ours == drafters:
            note(f"target and drafter share CPU {ours[0]}: one waits while the other computes there")
        elif why := next((m.why_tvms_pool for m in (target, draft) if m.why_tvms_pool is not None), None):
            note(f"target and drafter share the CPUs, because TVM's thread pool serves both: {why}")
        yield sides
    finally:
        sides.together()


def _movable(model: Model | None) -> Any:
    return model if hasattr(model, "stay_on") else None
