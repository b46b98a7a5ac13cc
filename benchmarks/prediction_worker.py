"""The processes that benchmarks/prediction.py starts: each measures all models on one processor, or one pair.

    python benchmarks/prediction_worker.py steps PROCESSOR PART FOLDER REPEATS SECONDS
    python benchmarks/prediction_worker.py rounds INDEX PART FOLDER REPEATS SECONDS

Processors: "1" and "2" are CPU threads; "cpu0" and "cpu1" are one thread pinned to that core; "gpu" is PoCL with its
one worker thread pinned to core 1. Everything with one thread is pinned. After REPEATS passes, those points go on that
are not stable yet, at most until SECONDS are over or each has thrice as many samples. A process that was stopped goes
on where its file ends.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from prediction_cases import (  # noqa: E402
    CASES,
    CHUNK,
    FITTED_GAMMAS,
    GAMMAS,
    NGRAM,
    NOISE,
    OVERLAPPED,
    PAIRS,
    PASTS,
    PREFILL,
    PREFILL_PASTS,
    Pair,
    bundle_folder,
)

NEW_TOKENS = 48
PROMPT = 40
MOST = 3  # times as many passes where points are not stable


def prepare(processors: list[str], pinned: bool = True) -> None:
    """Pin this process, unless its models have a core each, and choose its threads, before TVM is imported."""
    from hetero_sd.runtime.model.threads import prepare_environment

    prepare_environment(2 if "2" in processors else 1)
    os.environ["POCL_MAX_PTHREAD_COUNT"] = "1"
    if "2" not in processors and pinned:
        os.sched_setaffinity(0, {1} if processors == ["1"] or processors == ["1", "1"] else {0})


def load(name: str, processor: str, folder: Path) -> Any:
    """A model; PoCL's worker thread is pinned to core 1."""
    from hetero_sd.runtime.manifest import Bundle
    from hetero_sd.runtime.model.model import CompiledModel

    on_gpu = processor == "gpu"
    before = set(os.listdir("/proc/self/task"))
    model = CompiledModel("target", Bundle(bundle_folder(name, "gpu" if on_gpu else "cpu", folder)))
    if on_gpu:
        for task in set(os.listdir("/proc/self/task")) - before:
            os.sched_setaffinity(int(task), {1})
    return model


def reader(processors: list[str]) -> Any:
    from targets.host.bandwidth import BandwidthReader

    if "2" in processors:
        return BandwidthReader(2, (0, 1))
    return BandwidthReader(1, (1,) if "gpu" in processors or "1" in processors else (0,))


def measure_steps(processor: str, part: str, folder: Path, repeats: int, seconds: float) -> None:
    """Steps and prompts of all models on one processor, all in turn; saved after every pass."""
    prepare([processor])
    from hetero_sd.runtime.calibrate.measure import take_turns

    read, steps, begin = reader([processor]), [], time.monotonic()
    for name, case in CASES.items():
        if case.steps and (case.gpu or processor != "gpu"):
            steps += steps_of(name, load(name, processor, folder))
    out = folder / "measured" / f"steps-{processor}-{part}.json"
    before = _before(out)
    known = {json.dumps(p["step"], sort_keys=True): p["samples"] for p in before.get("points", [])}
    for step in steps:
        step.samples += [tuple(s) for s in known.get(json.dumps(step.facts.to_json(), sort_keys=True), [])]
    passes = int(before.get("passes", 0))
    while passes < MOST * repeats:
        left = steps if passes < repeats else [s for s in steps if not s.samples or not s.point(repeats).stable]
        late = passes >= repeats and time.monotonic() - begin > seconds
        if not left or late:
            break
        take_turns(left, read, lambda done: done < 1)
        passes += 1
        save(out, {**_steps_json(processor, passes, steps), "finished": False})
    save(out, {**_steps_json(processor, passes, steps), "finished": True})


def _steps_json(processor: str, passes: int, steps: list[Any]) -> dict[str, Any]:
    points = [{"step": step.facts.to_json(), "samples": step.samples} for step in steps]
    return {"processor": processor, "passes": passes, "points": points}


def _before(path: Path) -> dict[str, Any]:
    """What a process that was stopped has measured; nothing where another version wrote it."""
    from prediction_table import OldFileError, read_steps

    try:
        if path.is_file() and (not path.name.startswith("steps-") or read_steps(path)):
            found: dict[str, Any] = json.loads(path.read_text("utf-8"))
            return found
    except (OldFileError, ValueError):
        pass
    return {}


def steps_of(name: str, model: Any) -> list[Any]:
    """The points of one model."""
    from costmodel.schema.measured import MeasuredStep
    from hetero_sd.runtime.calibrate.measure import Step

    case, found = CASES[name], []
    model.extend([1 + i % 900 for i in range(max(PASTS) + 8)], 0)
    length = CHUNK if case.fitted else PREFILL
    for past in PASTS:
        for n in case.step_widths:
            ids = [7] * n
            facts = MeasuredStep(name, model.processor, n, past, 0)
            found.append(Step(facts, lambda ids=ids, past=past: model.argmax(ids, past)))
    for past in PREFILL_PASTS:
        facts = MeasuredStep(name, model.processor, length, past, CHUNK)
        found.append(Step(facts, lambda past=past: model.extend([7] * length, past)))
    return found


def measure_rounds(index: int, part: str, folder: Path, repeats: int, seconds: float) -> None:
    """Real generation with every gamma in turn, on another prompt each time; saved after every pass."""
    pair, begin = PAIRS[index], time.monotonic()
    prepare([pair.draft_on, pair.target_on], pinned=pair.mode != OVERLAPPED)
    out = folder / "measured" / f"rounds-{pair.name}-{part}.json"
    before = _before(out)
    runs: list[dict[str, Any]] = before.get("runs", [])
    rates: list[float] = before.get("bandwidth_gb_per_s", [])
    turn, stable = int(before.get("passes", 0)), False
    gammas = FITTED_GAMMAS if pair.fitted else GAMMAS
    from prediction_rounds import MeasuredPair

    with ExitStack() as resources:
        ways = Ways(pair, folder, resources)
        rng = random.Random(f"{part} {turn}")
        ways.take(0, _prompt(rng, ways.target.vocab))  # brings code and weights into the caches
        while turn < MOST * repeats and not (turn >= repeats and (stable or time.monotonic() - begin > seconds)):
            prompt, texts, rate = _prompt(rng, ways.target.vocab), set(), ways.read()
            turn += 1
            for gamma in gammas:
                text, run = ways.take(gamma, prompt)
                texts.add(text)
                runs.append({"gamma": gamma, "turn": turn, **run})
            if len(texts) > 1:
                raise SystemExit(f"{pair.name}: the texts differ between draft lengths")
            rates += [rate, ways.read()]
            found = {"pair": index, "passes": turn, "bandwidth_gb_per_s": rates, "runs": runs, "turns": ways.turns()}
            save(out, {**found, "finished": False})
            stable = all(MeasuredPair(pair, [out]).stable(gamma, repeats) for gamma in gammas)
        save(out, {**found, "finished": True})


def _prompt(rng: random.Random, vocab: int) -> list[int]:
    return [rng.randrange(1, vocab) for _ in range(PROMPT)]


class Ways:
    """The models of a pair, and a text with any draft length in the pair's mode."""

    def __init__(self, pair: Pair, folder: Path, resources: ExitStack) -> None:
        """Load them, each on its processor."""
        from hetero_sd.runtime.calibrate.turns import TurnCosts
        from hetero_sd.runtime.decode.generate import Request
        from hetero_sd.runtime.decode.overlapped.overlapping import overlapping
        from hetero_sd.runtime.model.protocol import Models

        self.pair, self.request, self._answer = pair, Request(NEW_TOKENS), ()
        self.target = load(pair.target, pair.target_on, folder)
        self.draft = None if pair.mode == NGRAM else load(pair.draft, pair.draft_on, folder)
        self.read, models = reader([pair.draft_on, pair.target_on]), Models(self.target, self.draft)
        self._turns = TurnCosts(models, 0.0, time.perf_counter) if pair.fitted else None
        if pair.mode == OVERLAPPED:
            usable = sorted(os.sched_getaffinity(0))
            self.overlap = resources.enter_context(overlapping(models, None, usable, 1, 1, print))

    def turns(self) -> dict[str, Any] | None:
        """What turns add to steps alone, of a pair that the fit may see; one more block of it."""
        from hetero_sd.runtime.calibrate.budget import Budget

        if self._turns is None:
            return None
        self._turns.take(Budget(math.inf))
        found = self._turns.result()
        return None if found is None else found.to_json()

    def take(self, gamma: int, prompt: list[int]) -> tuple[tuple[int, ...], dict[str, Any]]:
        """A text, and its rounds without the first ones, which warm the caches."""
        from hetero_sd.runtime.decode.trace import Trace

        trace = Trace()
        text = tuple(self._stream(gamma, prompt, trace))
        self._answer = self._answer if gamma else text
        whole = trace.rounds if self.pair.mode == NGRAM else [r for r in trace.rounds if r.drafted == gamma]
        names = ("drafted", "accepted", "total_s", "draft_s", "verify_s")
        return text, {name: [getattr(r, name) for r in whole[2:]] for name in names}

    def _stream(self, gamma: int, prompt: list[int], trace: Any) -> Iterator[int]:
        from hetero_sd.runtime.decode.drafters.model import ModelDrafter
        from hetero_sd.runtime.decode.drafters.ngram import NgramDrafter
        from hetero_sd.runtime.decode.drafters.ngram_pool import NgramPool
        from hetero_sd.runtime.decode.generate import generate
        from hetero_sd.runtime.decode.overlapped.target_side import speculate_overlapped
        from hetero_sd.runtime.decode.policy import FixedGamma
        from hetero_sd.runtime.decode.speculate import speculate

        target, request = self.target, self.request
        if not gamma:
            return generate(target, prompt, request, trace)
        if self.draft is None:
            pool = NgramPool()
            pool.begin()
            for i, token in enumerate(self._answer, 1):
                pool.add(token if i % NOISE else (token + 1) % target.vocab)
            grams = NgramDrafter(pool, target.vocab, request.sampling)
            return speculate(target, grams, prompt, request, FixedGamma(gamma), trace)
        drafter = ModelDrafter(self.draft, target.vocab, request.sampling)
        if self.pair.mode == OVERLAPPED:
            beside = replace(self.overlap, gamma=gamma, least=gamma)
            return speculate_overlapped(target, drafter, prompt, request, beside, trace)
        return speculate(target, drafter, prompt, request, FixedGamma(gamma), trace)


def save(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({**data, "date": time.strftime("%Y-%m-%d %H:%M")}) + "\n", "utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "steps":
        measure_steps(rest[0], rest[1], Path(rest[2]), int(rest[3]), float(rest[4]))
    else:
        measure_rounds(int(rest[0]), rest[1], Path(rest[2]), int(rest[3]), float(rest[4]))
