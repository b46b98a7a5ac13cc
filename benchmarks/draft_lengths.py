"""Speculative decoding of the example pair on this machine: speed-up over the target alone, for each draft length.

The row "live" is the length that the run decides itself (hetero_sd/runtime/decode/live_gamma.py). The rows below it
draft from n-grams, live too: "ngram, new" with an empty pool for each repeat, "ngram, again" with one that has read and
generated the same sentences before, "both, again" beside the draft model.

    python benchmarks/draft_lengths.py [--repeats 7] [--threads 1] [--svg FILE] [--json]

All draft lengths are taken in turn in one process and compared within a round, because the machine is shared and
absolute times drift. The text is checked to be the same for all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAIR = ROOT / "examples" / "translation"
GAMMAS = range(9)  # 0: the target alone
LIVE = (
    "live"  # the length is decided while it runs; what was learned stays from one repeat to the next, as in a session
)
NGRAM = {"ngram, new": "ngram", "ngram, again": "ngram", "both, again": "model+ngram"}


def compile_pair(folder: Path, board: str) -> Path:
    """The example pair with an entry point for every width up to gamma + 1."""
    from hetero_sd.compile.compile import compile_bundle
    from hetero_sd.compile.request import CompileRequest
    from hetero_sd.progress import Progress

    request = CompileRequest(
        target=PAIR / "target" / "model.onnx",
        draft=PAIR / "draft" / "model.onnx",
        tokenizer=PAIR,
        board=board,
        out=folder / "bundle",
        context=128,
        target_widths=tuple(g + 1 for g in GAMMAS),
    )
    compile_bundle(request, Progress())
    return folder / "bundle"


def run_round(
    models: Any, prompts: list[list[int]], eos: frozenset[int], choice: int | str, policy: Any, pool: Any
) -> dict[str, Any]:
    """Translate all prompts with one draft length, or with a live policy."""
    from hetero_sd.runtime.decode.generate import Request
    from hetero_sd.runtime.decode.policy import FixedGamma
    from hetero_sd.runtime.decode.stats import summarise
    from hetero_sd.runtime.decode.trace import Trace
    from hetero_sd.runtime.decode.way import Way

    if isinstance(choice, int):
        policy = FixedGamma(choice) if choice else None
    way = Way(models, Request(90, eos), policy, NGRAM.get(str(choice), "model"), pool)
    traces, texts = [], []
    for ids in prompts:
        traces.append(Trace())
        texts.append(list(way.stream(ids, traces[-1])))
    stats = summarise(traces)
    return {"gamma": choice, "tokens": texts, **{k: stats[k] for k in ("tokens_per_s", "acceptance_rate", "gammas")}}


def main() -> int:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description="speculative decoding of the example pair, every draft length in turn")
    parser.add_argument("--repeats", type=int, default=7, help="rounds over all draft lengths (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1: the models are small)")
    parser.add_argument("--svg", type=Path, help="write the chart to this file")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from hetero_sd.runtime.model.threads import prepare_environment

    with tempfile.TemporaryDirectory() as scratch:
        bundle_folder = compile_pair(Path(scratch), "host")
        prepare_environment(options.threads)
        from hetero_sd.runtime.decode.choose_policy import choose_policy
        from hetero_sd.runtime.load import load_text
        from hetero_sd.runtime.manifest import Bundle
        from hetero_sd.runtime.model.model import load_models

        bundle = Bundle(bundle_folder)
        models, text = load_models(bundle), load_text(bundle)
        assert text is not None
        prompts = [text.encode_prompt(line) for line in (PAIR / "prompts.txt").read_text("utf-8").splitlines()]
        from hetero_sd.runtime.decode.drafters.ngram_pool import NgramPool
        from hetero_sd.runtime.decode.live_gamma import LiveGamma
        from hetero_sd.runtime.decode.start_times import time_steps

        lengths: list[int | str] = [*GAMMAS, LIVE, *NGRAM]
        policies = {name: choose_policy("auto", None, bundle.plan, NGRAM.get(name, "model")) for name in (LIVE, *NGRAM)}
        pools = {name: NgramPool() for name in NGRAM}
        for name, policy in policies.items():
            assert isinstance(policy, LiveGamma)
            time_steps(models, policy)
            if name in NGRAM:
                run_round(models, prompts, text.eos_ids, name, policy, pools[name])  # what "again" has seen
        rounds = []
        for _ in range(options.repeats):
            pools["ngram, new"] = NgramPool()
            rounds.append(
                [
                    run_round(models, prompts, text.eos_ids, g, policies.get(str(g)), pools.get(str(g), NgramPool()))
                    for g in lengths
                ]
            )
    if any(run["tokens"] != rounds[0][0]["tokens"] for one in rounds for run in one):
        print("the texts differ between draft lengths", file=sys.stderr)
        return 1
    table = []
    for i, gamma in enumerate(lengths):
        ratios = sorted(one[i]["tokens_per_s"] / one[0]["tokens_per_s"] for one in rounds)
        table.append(
            {
                "gamma": gamma,
                "tokens_per_s": statistics.median(one[i]["tokens_per_s"] for one in rounds),
                "speedup": statistics.median(ratios),
                "least": ratios[0],
                "most": ratios[-1],
                "acceptance_rate": rounds[0][i]["acceptance_rate"],
                "rounds_by_length": rounds[-1][i]["gammas"],
            }
        )
    if options.svg:
        options.svg.write_text(chart(table[: len(GAMMAS)], options), "utf-8")
    print(json.dumps(table, indent=1) if options.json else as_text(table, options, len(prompts)))
    return 0


def as_text(table: list[dict[str, Any]], options: argparse.Namespace, sentences: int) -> str:
    """The table for people."""
    lines = [
        f"{sentences} sentences, {options.threads} thread(s), {options.repeats} rounds in turn, the same text in all",
        "       gamma  tokens/s  speed-up  least to most   acceptance",
    ]
    for row in table:
        alpha = "-" if row["acceptance_rate"] is None else f"{row['acceptance_rate']:.3f}"
        lines.append(
            f"{row['gamma']:>12}  {row['tokens_per_s']:>8.0f}  {row['speedup']:>7.2f}x  "
            f"{row['least']:.2f} to {row['most']:.2f}    {alpha:>8}"
        )
    for row in table[len(GAMMAS) :]:
        used = ", ".join(f"{gamma} in {count}" for gamma, count in row["rounds_by_length"].items())
        lines.append(f"{row['gamma']}, last repeat: {used} rounds")
    return "\n".join(lines)


def chart(table: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Speed-up over draft length as SVG, with the spread of the rounds."""
    from hetero_sd.predict.axes import Axis
    from hetero_sd.predict.charts import columns_with_range
    from hetero_sd.predict.figure import standalone

    threads = f"{options.threads} thread{'s' if options.threads > 1 else ''}"
    most = max(1.5, *(row["most"] for row in table))
    title = f"speed-up over the target alone, example pair, x86-64 host, {threads}"
    axes = Axis("drafted tokens a round (gamma)", -0.6, len(table) - 0.4), Axis(title, 0.0, 1.05 * most)
    columns = [(str(row["gamma"]), row["speedup"], row["least"], row["most"]) for row in table]
    return standalone(columns_with_range("speed-up over draft length", *axes, columns))


if __name__ == "__main__":
    sys.exit(main())
