"""Each model has CPUs of its own while both run at the same time, and a run says where it cannot have them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from bundles import some_plan
from requirements import only_where

from costmodel.schema.plan import PlannedOverlap
from hetero_sd.runtime.model.protocol import Models
from hetero_sd.runtime.model.side_by_side import divide_cpus, side_by_side, why_not_apart


@pytest.mark.parametrize(
    ("usable", "cluster", "target_computes", "target", "draft"),
    [
        ([0, 1], [0, 1], True, [0], [1]),  # one cluster: the last core drafts
        ([0, 1, 2, 3], [0, 1, 2, 3], True, [0, 1, 2], [3]),
        ([0, 1, 2, 3], [0, 1, 2, 3], False, [3], [0, 1, 2]),  # the target's thread enqueues, the drafter computes
        (list(range(8)), [4, 5, 6, 7], True, [4, 5, 6, 7], [0, 1, 2, 3]),  # another cluster drafts
        (list(range(8)), [4, 5, 6, 7], False, [0, 1, 2, 3], [4, 5, 6, 7]),
        ([2, 5], [4, 5, 6, 7], True, [5], [2]),  # taskset
        ([0, 1], [], True, [0], [1]),  # no plan
        ([0, 1], [6, 7], True, [0], [1]),  # another machine than the plan's
        ([3], [3], True, [3], [3]),
        ([3], [], False, [3], [3]),
    ],
)
def test_cpus_are_divided(
    usable: list[int], cluster: list[int], target_computes: bool, target: list[int], draft: list[int]
) -> None:
    assert divide_cpus(usable, cluster, target_computes) == (target, draft)


class Fake:
    """What `side_by_side` needs of a compiled model."""

    def __init__(self, why_tvms_pool: str | None = None) -> None:
        self.processor, self.why_tvms_pool, self.cpus = "cpu", why_tvms_pool, list[int]()
        self.threads, self.on_fallback = 7, False

    def stay_on(self, cpus: list[int], threads: int = 0) -> None:
        self.cpus, self.threads = list(cpus), threads


def test_the_calling_thread_stays_there_until_the_end() -> None:
    usable = sorted(os.sched_getaffinity(0))
    only_where(len(usable) > 1, "one core: there is nothing to divide")
    target, draft, notes = Fake(), Fake(), list[str]()
    models: Any = Models(target, draft)  # type: ignore[arg-type]
    with side_by_side(models, None, usable, notes.append) as sides:
        assert sides.draft_cpus == draft.cpus == usable[-1:]
        assert target.cpus == sorted(os.sched_getaffinity(0)) == usable[:-1]
    assert sorted(os.sched_getaffinity(0)) == usable
    assert notes == []


def test_models_that_take_turns_have_all_cpus_and_threads_again() -> None:
    usable = sorted(os.sched_getaffinity(0))
    only_where(len(usable) > 1, "one core: there is nothing to divide")
    overlap = PlannedOverlap(3, 0, tuple(usable[1:]), (usable[0],), "cpu", 1.0, 1.0, 0.0, 0.0, 2.0, 9.0)
    target, draft = Fake(), Fake()
    models: Any = Models(target, draft)  # type: ignore[arg-type]
    plan = some_plan(mode="overlapped", overlap=overlap)
    with side_by_side(models, plan, usable, print) as sides:
        for _ in range(2):
            sides.together()
            assert target.cpus == draft.cpus == sorted(os.sched_getaffinity(0)) == usable
            assert (target.threads, draft.threads) == (7, 7)
            sides.apart()
            assert (target.cpus, draft.cpus) == (usable[1:], usable[:1])
            assert (target.threads, draft.threads) == (len(usable) - 1, 1)
            assert sorted(os.sched_getaffinity(0)) == usable[1:]
            moved, target.cpus = target.cpus, []
            sides.apart()
            assert target.cpus == []  # nothing is moved that is there
            target.cpus = moved
    assert target.cpus == draft.cpus == usable


def test_sharing_is_said_in_one_line() -> None:
    first, notes = min(os.sched_getaffinity(0)), list[str]()
    for models in (Models(Fake(), Fake()), Models(Fake(), Fake("HSD_THREAD_POOL=tvm"))):  # type: ignore[arg-type]
        with side_by_side(models, None, [first], notes.append):
            pass
    assert notes == [f"target and drafter share CPU {first}: one waits while the other computes there"] * 2
    usable = sorted(os.sched_getaffinity(0))
    only_where(len(usable) > 1, "one core: there is nothing to divide")
    with side_by_side(Models(Fake(), Fake("HSD_THREAD_POOL=tvm")), None, usable, notes.append):  # type: ignore[arg-type]
        pass
    assert notes[2:] == [
        "target and drafter share the CPUs, because TVM's thread pool serves both: HSD_THREAD_POOL=tvm"
    ]


def test_a_plan_says_which_cpus_and_how_many_threads() -> None:
    usable = sorted(os.sched_getaffinity(0))
    only_where(len(usable) > 1, "one core: there is nothing to divide")
    overlap = PlannedOverlap(3, 0, tuple(usable[1:]), (usable[0],), "cpu", 1.0, 1.0, 0.0, 0.0, 2.0, 9.0)
    plan = some_plan(mode="overlapped", overlap=overlap)
    target, draft, notes = Fake(), Fake(), list[str]()
    models: Any = Models(target, draft)  # type: ignore[arg-type]
    with side_by_side(models, plan, usable, notes.append) as sides:
        assert sides.draft_cpus == draft.cpus == [usable[0]]
        assert target.cpus == sorted(os.sched_getaffinity(0)) == usable[1:]
        assert (target.threads, draft.threads) == (len(usable) - 1, 1)
    assert notes == []
    assert why_not_apart(models, plan, usable) is None
    lacking = ", ".join(map(str, usable[1:]))
    assert why_not_apart(models, plan, usable[:1]) == f"this process may not use CPU {lacking} of those of the plan"
    pool = why_not_apart(Models(Fake(), Fake("why")), plan, usable)  # type: ignore[arg-type]
    assert pool == "TVM's thread pool serves both models: why"
    draft.on_fallback = True
    assert why_not_apart(models, plan, usable) == "the draft model runs on the CPU, for which the plan has no core"
    assert why_not_apart(models, some_plan(), usable) == "the plan does not say how"


@pytest.mark.slow
def test_a_compiled_pair_runs_on_cores_of_its_own(tiny_pair: Path, worker: Any) -> None:
    """The same text as the target alone; with TVM's pool, too, which is said."""
    only_where(len(os.sched_getaffinity(0)) > 1, "one core: there is nothing to divide")
    prompts = tiny_pair.parent / "side_by_side.jsonl"
    prompts.write_text('{"token_ids": [1, 5, 9]}\n{"token_ids": [2, 3, 4, 5, 6, 7, 8]}\n')
    question = ("--prompts", str(prompts), "--max-new-tokens", "40")
    alone = worker.run(tiny_pair, *question, "--mode", "target-only")
    for more in (["--gamma", "1"], ["--gamma", "3", "--least", "3"], ["--stats"]):
        found = worker.run(tiny_pair, *question, "--mode", "overlapped", *more)
        assert (found["code"], found["out"]) == (0, alone["out"]), found
        assert ("wait for drafts" in found["err"]) == ("--stats" in more)
        assert "note" not in found["err"]
