"""Predicted beside measured, term by term, on this machine: steps of several models, and rounds of speculation.

    python benchmarks/prediction.py [--seconds 60] [--folder DIR] [--threads 1,2] [--json]

Fitted on two models and some widths, judged on other models and other widths (`judged` below), so no row of the table
was seen by the fit. Each step is measured by `run.py --calibrate`: all points in turn, bandwidth beside each, unstable
points listed but not counted. Beside the error stands that of a plain roofline: bytes over the bandwidth measured, the
same for every n. Rounds of speculation are really run, but which drafts are accepted is scripted, with the acceptance
named in the row. Keep the machine idle: it takes about (models + pairs) x threads x seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONTEXT = 544  # so that every width fits behind 512 tokens
WIDTHS = (1, 2, 3, 4, 5, 6, 8)
FITTED = {"12M fp32", "100M fp32"}
FITTED_N = {1, 2, 5, 8}
MODELS: dict[str, dict[str, Any]] = {
    "1M fp32": dict(layers=4, hidden=128, heads=4, kv_heads=2, ffn=384, vocab=2048),
    "12M fp32": dict(layers=6, hidden=256, heads=4, kv_heads=2, ffn=768, vocab=12000),
    "40M fp16": dict(layers=8, hidden=512, heads=8, kv_heads=4, ffn=1536, vocab=16000),
    "100M fp32": dict(layers=12, hidden=768, heads=12, kv_heads=4, ffn=2048, vocab=16000),
    "250M fp16": dict(layers=16, hidden=1024, heads=16, kv_heads=8, ffn=2816, vocab=32000),
}
PAIRS = (("40M fp16", "250M fp16"), ("12M fp32", "100M fp32"), ("12M fp32", "40M fp16"))
GAMMAS = (1, 2, 3, 5, 7)
ALPHAS = (0.4, 0.8, 0.95)


def build(name: str, folder: Path) -> None:
    """A bundle of one synthetic model."""
    from hetero_sd.build import build_for_cpu
    from hetero_sd.runtime.manifest import write_manifest
    from passes.import_onnx import canonicalise
    from passes.synthetic import LlamaShape, write_llama
    from targets.boards import load_board
    from targets.cortex_a.tile import cpu_tile

    source, bundle = folder / "source", folder / "bundle"
    source.mkdir(parents=True, exist_ok=True)
    bundle.mkdir(exist_ok=True)
    write_llama(source / "model.onnx", LlamaShape(**MODELS[name]), "float16" if name.endswith("fp16") else "float32")
    core = load_board("host", measure=False).clusters[0].core
    decoder = canonicalise(source / "model.onnx", CONTEXT)
    built = build_for_cpu("target", decoder, core, cpu_tile(core), CONTEXT, WIDTHS, 32, bundle, lambda *_: None)
    contents = {"models": {"target": built.manifest}, "plan": {"threads": 1}, "tokenizer": {"eos_ids": [0]}}
    write_manifest(bundle, contents)


def measure(bundle: Path, threads: int, seconds: int, out: Path) -> dict[str, Any]:
    """Run `run.py --calibrate` in a process of its own: TVM takes its threads when it is imported."""
    code = "import sys; from hetero_sd.runtime.run import main; sys.exit(main(sys.argv[1], sys.argv[2:]))"
    options = ["--calibrate", str(out), "--calibrate-seconds", str(seconds), "--threads", str(threads)]
    subprocess.run([sys.executable, "-c", code, str(bundle), *options], cwd=ROOT, check=True)
    return dict(json.loads(out.read_text()))


def run_rounds(draft: Path, target: Path, threads: int, seconds: float) -> list[dict[str, Any]]:
    """Time rounds with scripted acceptance, every (gamma, alpha) in turn, gamma 0 beside each."""
    from hetero_sd.runtime.calibrate import BandwidthReader
    from hetero_sd.runtime.manifest import Bundle
    from hetero_sd.runtime.model import CompiledModel
    from hetero_sd.runtime.threads import prepare_environment

    prepare_environment(threads)
    big, small = CompiledModel("target", Bundle(target)), CompiledModel("target", Bundle(draft))
    read, rng = BandwidthReader(threads), random.Random(0)
    for model in (big, small):
        model.extend([1] * 256, 0)

    def rate(gamma: int, alpha: float, rounds: int = 6) -> float:
        tokens, start, two = 0, time.perf_counter(), False
        for _ in range(rounds):
            for i in range(gamma):
                small.argmax([1, 1] if two and i == 0 else [1], 256 + i)
            big.argmax([1] * (gamma + 1), 256)
            accepted = 0
            while accepted < gamma and rng.random() < alpha:
                accepted += 1
            tokens, two = tokens + accepted + 1, accepted == gamma
        return tokens / (time.perf_counter() - start)

    points = [(g, a) for g in GAMMAS for a in ALPHAS]
    found: dict[tuple[int, float], list[tuple[float, float]]] = {p: [] for p in points}
    start = time.monotonic()
    while time.monotonic() - start < seconds or len(found[points[0]]) < 5:
        for gamma, alpha in points:
            alone, fast, bandwidth = rate(0, 0.0), rate(gamma, alpha), read()
            found[gamma, alpha].append((fast / alone, bandwidth))
    return [
        {"gamma": g, "alpha": a, "speedup": median(s for s, _ in v), "bandwidth_gb_per_s": median(b for _, b in v)}
        for (g, a), v in found.items()
    ]


def flat_s(point: Any) -> float:
    """A plain roofline with flat T(n): weights and KV rows over the bandwidth measured beside the point."""
    from costmodel.roofline import dram_bytes
    from costmodel.work import step_units

    return float(dram_bytes(step_units(point.shape, 1, point.past)) / (point.bandwidth_gb_per_s * 1e9))


def step_table(fitted: Any) -> list[dict[str, Any]]:
    """A row for every judged point."""
    rows = []
    for r in fitted.residuals:
        if not r.held_out:
            continue
        p = r.point
        row = {"model": p.shape.name, "threads": p.threads, "n": p.n, "past": p.past, "stable": p.stable}
        flat = flat_s(p) / p.seconds - 1
        rows.append(
            {**row, "measured_s": p.seconds, "predicted_s": r.predicted_s, "error": r.error, "flat_error": flat}
        )
    return rows


def speedups(board: Any, factors: Any, shapes: dict[str, Any], pair: tuple[str, str], threads: int, runs: Any) -> Any:
    """Predicted speed-ups beside the measured ones."""
    from costmodel.calibrate import Point, predict_point
    from costmodel.speculative import RoundCosts, sequential_round

    rows = []
    for run in runs:

        def step(name: str, n: int, run: Any = run) -> float:
            width = next(w for w in WIDTHS if w >= n)
            point = Point(shapes[name], board.clusters[0].name, threads, width, 256, 1.0, run["bandwidth_gb_per_s"])
            return predict_point(board, factors, point)

        costs = RoundCosts(step(pair[0], 1), step(pair[0], 2), lambda n: step(pair[1], n))
        fast, alone = (sequential_round(run["alpha"], g, costs).tokens_per_s for g in (run["gamma"], 0))
        row = {"draft": pair[0], "target": pair[1], "threads": threads, **run, "predicted": fast / alone}
        rows.append({**row, "error": row["predicted"] / run["speedup"] - 1})
    return rows


def main() -> int:
    """Build, measure, fit, print."""
    parser = argparse.ArgumentParser(description="predicted beside measured on this machine")
    parser.add_argument("--seconds", type=int, default=60, help="for each model and thread count (default 60)")
    parser.add_argument("--threads", default="1,2", help="thread counts (default 1,2)")
    parser.add_argument("--folder", type=Path, help="keep bundles and measurements here")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", nargs=4, help=argparse.SUPPRESS)  # draft, target, threads, seconds: a worker
    options = parser.parse_args()
    if options.rounds:
        draft, target, threads, seconds = options.rounds
        print(json.dumps(run_rounds(Path(draft), Path(target), int(threads), float(seconds))))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        result = evaluate(
            options.folder or Path(scratch), [int(t) for t in options.threads.split(",")], options.seconds
        )
    print(json.dumps(result, indent=1) if options.json else text(result))
    return 0


def evaluate(folder: Path, threads: list[int], seconds: int) -> dict[str, Any]:
    """The whole comparison."""
    from costmodel.calibrate import fit
    from hetero_sd.calibrate import points_of
    from passes.count_work import count_work
    from passes.import_onnx import canonicalise
    from targets.boards import load_board

    board, points, shapes = load_board("host"), [], {}
    for name in MODELS:
        home = folder / name.replace(" ", "-")
        if not (home / "bundle" / "manifest.json").is_file():
            build(name, home)
        shapes[name] = count_work(canonicalise(home / "source" / "model.onnx", CONTEXT), name)
        for t in threads:
            data = measure(home / "bundle", t, seconds, home / f"measured-{t}.json")
            points += points_of(data, home, {"target": shapes[name]}, board.clusters[0].name)
    fitted = fit(board, points, lambda p: p.shape.name not in FITTED or p.n not in FITTED_N)
    rounds = []
    for pair in PAIRS:
        for t in threads:
            bundles = [str(folder / name.replace(" ", "-") / "bundle") for name in pair]
            command = [sys.executable, __file__, "--rounds", *bundles, str(t), str(seconds)]
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            rounds += speedups(board, fitted.factors, shapes, pair, t, json.loads(done.stdout.splitlines()[-1]))
    return {"factors": fitted.factors.to_json(), "steps": step_table(fitted), "speculation": rounds}


def text(result: dict[str, Any]) -> str:
    """The table and its summary."""
    lines = [
        f"{'model':12}{'threads':>8}{'n':>4}{'past':>6}{'measured':>12}{'predicted':>12}{'error':>9}{'flat T(n)':>11}"
    ]
    for r in result["steps"]:
        times = f"{1e3 * r['measured_s']:>9.3f} ms{1e3 * r['predicted_s']:>9.3f} ms"
        mark = "" if r["stable"] else "  unstable"
        errors = f"{100 * r['error']:>+8.1f} %{100 * r['flat_error']:>+9.1f} %"
        lines.append(f"{r['model']:12}{r['threads']:>8}{r['n']:>4}{r['past']:>6}{times}{errors}{mark}")
    for term, widths in (("decode", (1,)), ("verify", (2, 3, 4, 5, 6, 8))):
        kept = [r for r in result["steps"] if r["stable"] and r["n"] in widths]
        if kept:
            ours, flat = ([abs(r[k]) for r in kept] for k in ("error", "flat_error"))
            lines.append(
                f"{term}: {len(kept)} judged points, error {100 * median(ours):.1f} % median, {100 * max(ours):.1f} % "
                f"worst; a roofline with flat T(n) {100 * median(flat):.1f} % and {100 * max(flat):.1f} %"
            )
    lines.append("")
    lines.append(
        f"{'rounds, scripted acceptance':36}{'threads':>8}{'gamma':>7}{'alpha':>7}{'measured':>10}{'predicted':>10}"
    )
    for r in result["speculation"]:
        pair = f"{r['draft']} drafts for {r['target']}"
        lines.append(
            f"{pair:36}{r['threads']:>8}{r['gamma']:>7}{r['alpha']:>7.2f}{r['speedup']:>8.2f} x{r['predicted']:>8.2f} x"
            f"{100 * r['error']:>+8.1f} %"
        )
    wrong = [
        r
        for r in result["speculation"]
        if (r["speedup"] > 1.03) != (r["predicted"] > 1.03) and abs(r["speedup"] - 1) > 0.03
    ]
    lines.append(f"decision to speculate wrong at {len(wrong)} of {len(result['speculation'])} points")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
