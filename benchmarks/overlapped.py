"""Overlapped rounds of a compiled pair on this machine, predicted beside measured, each model on CPUs of its own.

    python benchmarks/overlapped.py BUNDLE --prompts FILE [--repeats 5] [--gammas 1,2,4] [--json]

All ways are taken in turn in one process with the same placement: the target alone, sequential rounds, and overlapped
rounds that wait for no draft or for all. Predicted are the means of the formulas (costmodel/speculative.py,
costmodel/early_verification.py) with the steps' times and the acceptance that the sequential rounds of the same repeat
measured, without contention; "beside" says how many times as long a step of the target took with the drafter beside it.
The text is checked to be the same for all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

NEW = 64


def run(session: Any, prompts: list[list[int]]) -> tuple[dict[str, Any], list[list[int]]]:
    """All prompts; the summary and the texts."""
    from hetero_sd.runtime.decode.stats import summarise
    from hetero_sd.runtime.decode.trace import Trace

    traces = [Trace() for _ in prompts]
    texts = [list(session.stream(ids, trace)) for ids, trace in zip(prompts, traces, strict=True)]
    return summarise(traces), texts


def predicted(gamma: int, least: int | None, stats: dict[str, Any], plain_s: float) -> float:
    """Tokens a second by the formulas, from what sequential rounds of that draft length measured."""
    from costmodel.contention import Load
    from costmodel.early_verification import early_round
    from costmodel.speculative import RoundCosts, sequential_round

    median, alpha = stats["median_s"], stats["acceptance_rate"]
    draft_s, verify_s = median["draft_step"], median["verify_step"][str(gamma + 1)]
    slope = (verify_s - plain_s) / gamma

    def step_s(n: int) -> float:
        return float(plain_s + slope * (n - 1))

    if least is None:
        return sequential_round(alpha, gamma, RoundCosts(draft_s, draft_s, step_s, median["dispatch"])).tokens_per_s
    draft = Load(draft_s, 0.0, 0.0)
    found = early_round(
        *(alpha, gamma, least, draft, lambda n: Load(step_s(n), 0.0, 0.0), median["dispatch"], 1e18, 5e-5)
    )
    return found.tokens_per_s


def main() -> int:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description="overlapped rounds beside sequential ones, predicted and measured")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompts", type=Path, required=True, help="texts, one a line")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gammas", default="1,2,4")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from hetero_sd.runtime.model.threads import prepare_environment, usable_cpus

    usable = usable_cpus()
    prepare_environment(max(1, len(usable) - 1))
    from hetero_sd.runtime.decode.generate import Request
    from hetero_sd.runtime.decode.overlapped.overlapping import overlapping
    from hetero_sd.runtime.decode.policy import FixedGamma
    from hetero_sd.runtime.load import load_text
    from hetero_sd.runtime.manifest import Bundle
    from hetero_sd.runtime.model.model import load_models
    from hetero_sd.runtime.session import Session

    bundle = Bundle(options.bundle)
    models, text = load_models(bundle), load_text(bundle)
    assert text is not None
    prompts = [text.encode_prompt(line) for line in options.prompts.read_text("utf-8").splitlines()]
    gammas = [int(gamma) for gamma in options.gammas.split(",")]
    ways = [(0, None), *((g, least) for g in gammas for least in (None, 0, g))]
    repeats, texts = [], None
    with overlapping(models, bundle.plan, usable, 1, 0, print) as overlap:
        for _ in range(options.repeats):
            found = {}
            for gamma, least in ways:
                more = {} if least is None else {"overlap": replace(overlap, gamma=gamma, least=least)}
                policy = FixedGamma(gamma) if gamma and least is None else None
                session = Session(models, None, Request(NEW, text.eos_ids), policy=policy, **more)
                found[gamma, least], got = run(session, prompts)
                if texts is not None and got != texts:
                    print("the texts differ between the ways", file=sys.stderr)
                    return 1
                texts = got
            repeats.append(found)
    table = [row(repeats, gamma, least) for gamma, least in ways]
    print(json.dumps(table, indent=1) if options.json else as_text(table, len(prompts), options.repeats))
    return 0


def row(repeats: list[dict[Any, dict[str, Any]]], gamma: int, least: int | None) -> dict[str, Any]:
    """Medians over the repeats; ratios within each."""
    offs, speeds, ratios, over_turns, beside = [], [], [], [], []
    for found in repeats:
        alone, own, turns = found[0, None], found[gamma, least], found[gamma, None]
        plain_s = alone["median_s"]["verify_step"]["1"]
        speeds.append(own["tokens_per_s"])
        ratios.append(own["tokens_per_s"] / alone["tokens_per_s"])
        over_turns.append(own["tokens_per_s"] / turns["tokens_per_s"])
        if gamma:
            offs.append(predicted(gamma, least, turns, plain_s))
            steps = own["median_s"]["verify_step"]
            beside.append(steps.get(str(gamma + 1), 0.0) / turns["median_s"]["verify_step"][str(gamma + 1)])
    return {
        "way": "alone" if not gamma else "sequential" if least is None else f"overlapped, least {least}",
        "drafts": gamma,
        "speed": statistics.median(speeds),
        "speed by the formula": statistics.median(offs) if offs else None,
        "over alone": statistics.median(ratios),
        "over sequential": statistics.median(over_turns),
        "beside": statistics.median(beside) if beside and least is not None else None,
        "accepted": repeats[0][gamma, least]["acceptance_rate"],
    }


def as_text(table: list[dict[str, Any]], prompts: int, repeats: int) -> str:
    """The table for people."""
    lines = [
        f"{prompts} prompts, {repeats} repeats in turn, the same text in all; each model on CPUs of its own",
        "| drafts | way | tokens/s | predicted | off | over alone | over sequential | beside | acceptance |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in table:
        by = r["speed by the formula"]
        off = "" if by is None else f"{100 * (by / r['speed'] - 1):+.0f} %"
        cells = (
            *(r["drafts"], r["way"], f"{r['speed']:.0f}", "" if by is None else f"{by:.0f}", off),
            *(f"{r['over alone']:.2f}", f"{r['over sequential']:.2f}"),
            *("" if r[name] is None else f"{r[name]:.2f}" for name in ("beside", "accepted")),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
