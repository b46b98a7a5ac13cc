"""The live policy beside the target alone and every fixed draft length: simulated pairs, then the example pair.

    python benchmarks/adaptive.py [--seeds 3] [--repeats 5] [--threads 1] [--simulated] [--json]

Simulated: scripted times and acceptance (benchmarks/simulated_pair.py), judged by time without noise after the first
200 tokens. Real: the example pair on this machine, all choices in turn in one process, whole answers with their
prompts, medians of ratios within a turn; with one thread CPU time, which other work on the machine changes less. Both
tables have the same columns: times over that of the target alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

FIXED = (1, 2, 3, 5, 7)


def simulated(seeds: int) -> list[dict[str, Any]]:
    """A row for each case."""
    from simulated_pair import BUSY_CASES, CASES, CONFIDENT_CASES, judge

    rows = []
    for case in [*CASES, *CONFIDENT_CASES, *BUSY_CASES]:
        judged = judge(case, range(seeds))
        row = {"case": case.name, "live": judged.live, "best": judged.best, "gamma": judged.best_gamma}
        rows.append({**row, "worst": judged.worst, "over_best": judged.over_best, "switches": judged.switches})
    return rows


def real(repeats: int, threads: int, scratch: Path) -> list[dict[str, Any]]:
    """Rows of the example pair: a policy that lasts over all turns, and one that is new in each."""
    from draft_lengths import PAIR, compile_pair

    bundle_folder = compile_pair(scratch, "host")
    from hetero_sd.runtime.model.threads import prepare_environment

    prepare_environment(threads)
    from hetero_sd.runtime.decode.choose_policy import choose_policy
    from hetero_sd.runtime.decode.live_gamma import LiveGamma
    from hetero_sd.runtime.decode.start_times import time_steps
    from hetero_sd.runtime.load import load_text
    from hetero_sd.runtime.manifest import Bundle
    from hetero_sd.runtime.model.model import load_models

    bundle = Bundle(bundle_folder)
    models, text = load_models(bundle), load_text(bundle)
    assert text is not None
    prompts = [text.encode_prompt(line) for line in (PAIR / "prompts.txt").read_text("utf-8").splitlines()]
    lasting = choose_policy("auto", None, bundle.plan)
    assert isinstance(lasting, LiveGamma)
    time_steps(models, lasting)
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {}
    switches, texts = 0, set()
    for _ in range(repeats):
        fresh = choose_policy("auto", None, bundle.plan)
        assert isinstance(fresh, LiveGamma)
        started = time_steps(models, fresh, clock)
        choices: dict[str, Any] = {"0": None, **{str(g): g for g in FIXED}, "live": lasting, "live, fresh": fresh}
        for name, choice in choices.items():
            took, found, traces = answer(models, prompts, text.eos_ids, choice, clock)
            seconds.setdefault(name, []).append(took + (started if name == "live, fresh" else 0.0))
            texts.add(found)
            switches += sum(len(trace.switches) for trace in traces) if name == "live" else 0
    if len(texts) > 1:
        raise SystemExit("the texts differ between choices")
    ratio = {
        name: statistics.median(a / b for a, b in zip(s, seconds["0"], strict=True)) for name, s in seconds.items()
    }
    fixed = {int(name): value for name, value in ratio.items() if name.isdecimal()}
    best = min(fixed, key=lambda g: fixed[g])
    rows = []
    for name in ("live", "live, fresh"):
        row = {"case": f"example pair, {threads} thread(s), {name}", "live": ratio[name], "best": fixed[best]}
        over = statistics.median(a / b for a, b in zip(seconds[name], seconds[str(best)], strict=True))
        rows.append({**row, "gamma": best, "worst": max(fixed.values()), "over_best": over, "switches": switches})
    return rows


def answer(
    models: Any, prompts: list[list[int]], eos: frozenset[int], choice: Any, clock: Any = time.perf_counter
) -> tuple[float, Any, list[Any]]:
    """Seconds for all answers, their tokens, and the traces; the choice is a policy, a draft length, or None."""
    from hetero_sd.runtime.decode.drafters.model import ModelDrafter
    from hetero_sd.runtime.decode.generate import Request, generate
    from hetero_sd.runtime.decode.policy import FixedGamma
    from hetero_sd.runtime.decode.speculate import speculate
    from hetero_sd.runtime.decode.trace import Trace

    request, found, traces = Request(90, eos), [], []
    policy = FixedGamma(choice) if isinstance(choice, int) else choice
    begin = clock()
    for ids in prompts:
        traces.append(Trace())
        drafter = ModelDrafter(models.draft, models.target.vocab, request.sampling)
        stream = (
            generate(models.target, ids, request, traces[-1])
            if policy is None
            else speculate(models.target, drafter, ids, request, policy, traces[-1])
        )
        found.append(tuple(stream))
    return clock() - begin, tuple(found), traces


def as_text(rows: list[dict[str, Any]]) -> str:
    """The table for people."""
    lines = [f"{'times over the target alone':44}  live  best fixed  worst  live/best  switches"]
    for row in rows:
        lines.append(
            f"{row['case']:44} {row['live']:5.3f} {row['best']:6.3f} (g={row['gamma']}) {row['worst']:6.2f} "
            f"{row['over_best']:10.3f} {row['switches']:9}"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark and print the tables."""
    parser = argparse.ArgumentParser(description="the live policy beside every fixed draft length")
    parser.add_argument("--seeds", type=int, default=3, help="texts of a simulated case (default 3)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of the example pair (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the example pair (default 1)")
    parser.add_argument("--simulated", action="store_true", help="leave the example pair out")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = simulated(options.seeds)
    if not options.simulated:
        with tempfile.TemporaryDirectory() as scratch:
            rows += real(options.repeats, options.threads, Path(scratch))
    print(json.dumps(rows, indent=1) if options.json else as_text(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
