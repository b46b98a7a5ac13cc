"""The processes that benchmarks/prediction.py starts: each measures all models on one processor, or one pair.

    python benchmarks/prediction_worker.py steps PROCESSOR PART FOLDER REPEATS
    python benchmarks/prediction_worker.py rounds INDEX PART FOLDER REPEATS

Processors: "1" and "2" are CPU threads; "cpu0" is one thread pinned to core 0; "gpu" is PoCL with its one worker thread
pinned to core 1. Everything with one thread is pinned.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from prediction_cases import (  # noqa: E402
    CASES,
    CHUNK,
    FITTED_GAMMAS,
    GAMMAS,
    PAIRS,
    PASTS,
    PREFILL,
    PREFILL_PASTS,
    bundle_folder,
)

NEW_TOKENS = 48
PROMPT = 40


def prepare(processors: list[str]) -> None:
    """Pin this process and choose its threads, before TVM is imported."""
    from hetero_sd.runtime.model.threads import prepare_environment

    prepare_environment(2 if "2" in processors else 1)
    os.environ["POCL_MAX_PTHREAD_COUNT"] = "1"
    if "2" not in processors:
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


def measure_steps(processor: str, part: str, folder: Path, repeats: int) -> None:
    """Steps and prompts of all models on one processor, all in turn; saved after every pass."""
    prepare([processor])
    from hetero_sd.runtime.calibrate.measure import take_turns

    read, steps = reader([processor]), []
    for name, case in CASES.items():
        if case.steps and (case.gpu or processor != "gpu"):
            steps += steps_of(name, load(name, processor, folder))
    out = folder / "measured" / f"steps-{processor}-{part}.json"

    def more(passes: int) -> bool:
        if passes:
            points = [{"step": step.facts.to_json(), "samples": step.samples} for step in steps]
            save(out, {"processor": processor, "passes": passes, "points": points})
        return passes < repeats

    take_turns(steps, read, more)


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


def measure_rounds(index: int, part: str, folder: Path, repeats: int) -> None:
    """Real generation with every gamma in turn, on another prompt each time; saved after every pass."""
    pair = PAIRS[index]
    processors = [pair.draft_on, pair.target_on]
    prepare(processors)
    from hetero_sd.runtime.decode.drafters.model import ModelDrafter
    from hetero_sd.runtime.decode.generate import Request, generate
    from hetero_sd.runtime.decode.policy import FixedGamma
    from hetero_sd.runtime.decode.speculate import speculate
    from hetero_sd.runtime.decode.trace import Trace

    target, draft = load(pair.target, pair.target_on, folder), load(pair.draft, pair.draft_on, folder)
    read, rng = reader(processors), random.Random(int(part))
    request = Request(NEW_TOKENS)
    runs: list[dict[str, Any]] = []
    rates: list[float] = []
    out = folder / "measured" / f"rounds-{pair.name}-{part}.json"
    for turn in range(repeats + 1):
        prompt = [rng.randrange(1, target.vocab) for _ in range(PROMPT)]
        texts, before = set(), read()
        for gamma in FITTED_GAMMAS if pair.fitted else GAMMAS:
            trace = Trace()
            stream = (
                speculate(
                    target,
                    ModelDrafter(draft, target.vocab, request.sampling),
                    prompt,
                    request,
                    FixedGamma(gamma),
                    trace,
                )
                if gamma
                else generate(target, prompt, request, trace)
            )
            texts.add(tuple(stream))
            whole = [r for r in trace.rounds if r.drafted == gamma][2:]  # the first ones warm the caches
            if turn:
                runs.append(
                    {
                        "gamma": gamma,
                        "turn": turn,
                        "accepted": [r.accepted for r in whole],
                        "total_s": [r.total_s for r in whole],
                        "draft_s": [r.draft_s for r in whole],
                        "verify_s": [r.verify_s for r in whole],
                    }
                )
        if len(texts) > 1:
            raise SystemExit(f"{pair.name}: the texts differ between draft lengths")
        rates += [before, read()]
        if turn:
            save(out, {"pair": index, "passes": turn, "bandwidth_gb_per_s": rates, "runs": runs})


def save(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({**data, "date": time.strftime("%Y-%m-%d %H:%M")}) + "\n", "utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "steps":
        measure_steps(rest[0], rest[1], Path(rest[2]), int(rest[3]))
    else:
        measure_rounds(int(rest[0]), rest[1], Path(rest[2]), int(rest[3]))
