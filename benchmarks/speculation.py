"""Speculative decoding of the example pair on this machine: speed-up over the target alone, for each draft length.

The row "live" is the length that the run decides itself (hetero_sd/runtime/live_gamma.py).

    python benchmarks/speculation.py [--repeats 7] [--threads 1] [--svg FILE] [--json]

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


def compile_pair(folder: Path, board: str) -> Path:
    """The example pair with an entry point for every width up to gamma + 1."""
    from hetero_sd.compile import CompileRequest, compile_bundle
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
    models: Any, prompts: list[list[int]], eos: frozenset[int], gamma: int | str, live: Any
) -> dict[str, Any]:
    """Translate all prompts with one draft length, or with the policy `live`."""
    from hetero_sd.runtime.generate import Request, generate
    from hetero_sd.runtime.policy import FixedGamma
    from hetero_sd.runtime.speculate import speculate
    from hetero_sd.runtime.stats import summarise
    from hetero_sd.runtime.trace import Trace

    request, traces, texts = Request(90, eos), [], []
    for ids in prompts:
        trace = Trace()
        policy = live if isinstance(gamma, str) else FixedGamma(gamma)
        stream = (
            speculate(models.target, models.draft, ids, request, policy, trace)
            if gamma
            else generate(models.target, ids, request, trace)
        )
        texts.append(list(stream))
        traces.append(trace)
    stats = summarise(traces)
    return {"gamma": gamma, "tokens": texts, **{k: stats[k] for k in ("tokens_per_s", "acceptance_rate", "gammas")}}


def main() -> int:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description="speculative decoding of the example pair, every draft length in turn")
    parser.add_argument("--repeats", type=int, default=7, help="rounds over all draft lengths (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1: the models are small)")
    parser.add_argument("--svg", type=Path, help="write the chart to this file")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from hetero_sd.runtime.threads import prepare_environment

    with tempfile.TemporaryDirectory() as scratch:
        bundle_folder = compile_pair(Path(scratch), "host")
        prepare_environment(options.threads)
        from hetero_sd.runtime.manifest import Bundle
        from hetero_sd.runtime.model import load_models
        from hetero_sd.runtime.policy import choose_policy
        from hetero_sd.runtime.run import load_text

        bundle = Bundle(bundle_folder)
        models, text = load_models(bundle), load_text(bundle)
        assert text is not None
        prompts = [text.encode_prompt(line) for line in (PAIR / "prompts.txt").read_text("utf-8").splitlines()]
        live, lengths = choose_policy("auto", None, bundle.plan), [*GAMMAS, LIVE]
        rounds = [[run_round(models, prompts, text.eos_ids, g, live) for g in lengths] for _ in range(options.repeats)]
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
        "gamma  tokens/s  speed-up  least to most   acceptance",
    ]
    for row in table:
        alpha = "-" if row["acceptance_rate"] is None else f"{row['acceptance_rate']:.3f}"
        lines.append(
            f"{row['gamma']:>5}  {row['tokens_per_s']:>8.0f}  {row['speedup']:>7.2f}x  "
            f"{row['least']:.2f} to {row['most']:.2f}    {alpha:>8}"
        )
    used = ", ".join(f"{gamma} in {count}" for gamma, count in table[-1]["rounds_by_length"].items())
    lines.append(f"live, last repeat: {used} rounds")
    return "\n".join(lines)


def chart(table: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Speed-up over draft length as SVG, with the spread of the rounds."""
    width, height, left, bottom, top = 560, 300, 60, 50, 40
    most = max(1.5, max(row["most"] for row in table)) * 1.05

    def x(gamma: int) -> float:
        return left + (gamma + 0.5) * (width - left - 20) / len(table)

    def y(value: float) -> float:
        return height - bottom - value / most * (height - bottom - top)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="20" font-size="14">Speed-up over the target alone, example pair, x86-64 host, '
        f"{options.threads} thread</text>",
    ]
    for tick in [t / 4 for t in range(int(most * 4) + 1)]:
        stroke = "#444" if tick == 1 else "#ddd"
        parts.append(f'<path d="M{left} {y(tick):.1f}H{width - 20}" stroke="{stroke}"/>')
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}x</text>')
    for row in table:
        cx, best = x(row["gamma"]), row["speedup"] == max(r["speedup"] for r in table)
        colour = "#1a7f37" if best else "#8bb8e8" if row["gamma"] else "#bbb"
        parts.append(
            f'<rect x="{cx - 16:.1f}" y="{y(row["speedup"]):.1f}" width="32" '
            f'height="{y(0) - y(row["speedup"]):.1f}" fill="{colour}"/>'
        )
        parts.append(f'<path d="M{cx:.1f} {y(row["least"]):.1f}V{y(row["most"]):.1f}" stroke="#333"/>')
        parts.append(f'<text x="{cx:.1f}" y="{y(0) - 6:.1f}" text-anchor="middle">{row["speedup"]:.2f}</text>')
        parts.append(f'<text x="{cx:.1f}" y="{height - 30}" text-anchor="middle">{row["gamma"]}</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 10}" text-anchor="middle">drafted tokens a round (gamma)</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
