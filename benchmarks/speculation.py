"""Every way to draft, predicted beside measured, in one table: medians over alternating runs.

    python benchmarks/speculation.py [--quick] [--chat FOLDER] [--repeats 7] [--only TEXT] [--texts N] [--gammas 1,2,4]
                                     [--keep FOLDER] [--json]

Pairs: the example pair, and one of 146 M and 17 M parameters in float16 and int8, which is the example pair widened, so
its drafts are accepted as the trained pair's are (benchmarks/widened_pair.py). Where: the target on one core and the
drafter on the other; the drafter on PoCL, pinned to the other core. Beside them both cores for each model in turn ("in
turn"). With --chat, the folder that examples/chat/export.py wrote: n-grams on texts that repeat and on free ones
(benchmarks/texts), and the first 10 layers as a drafter. --quick takes small models, the made pair with random weights
of which the target's first layer drafts, and few texts: the whole table in some minutes. Draft lengths one by one:
benchmarks/draft_lengths.py.

With --keep, models, bundles, each turn's records and each case's result stay in that folder: a run that was cut off
goes on after the last whole turn, each start with one turn more to warm up. --texts and --gammas take fewer texts of
each case and other draft lengths.

The text is checked to be the same for all ways of a case. "off" is the prediction over what was measured; simulated are
overlapped rounds, event by event, with the durations of that run's own steps. "auto" is what the run decides, which
"best" compares with the fastest fixed way.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from speculation_cases import Case, cases  # noqa: E402

from targets.files import write_text  # noqa: E402

WORKER = ROOT / "benchmarks" / "speculation_worker.py"


def compile_case(case: Case, out: Path) -> dict[str, Any]:
    """Its bundle; what the plan decided."""
    from hetero_sd.compile.compile import compile_bundle
    from hetero_sd.progress import Progress

    plan = compile_bundle(case.request(out), Progress(quiet=True)).plan
    planned = {"mode": plan.mode, "gamma": plan.gamma, "tokens_per_s": plan.prediction.tokens_per_s}
    return {**planned, "overlapped_tokens_per_s": None if plan.overlap is None else plan.overlap.tokens_per_s}


def compiled(case: Case, folder: Path) -> dict[str, Any]:
    """Its bundle in that folder, compiled unless it is there; what the plan decided."""
    decided = folder / "plan.json"
    if decided.is_file():
        return dict(json.loads(decided.read_text("utf-8")))
    shutil.rmtree(folder / "bundle", ignore_errors=True)
    plan = compile_case(case, folder / "bundle")
    write_text(decided, json.dumps(plan))
    return plan


def measure(case: Case, folder: Path, repeats: int) -> dict[str, Any]:
    """The plan, and all repeats of all processes in turn: name of the way -> one record a repeat."""
    plan, prompts = compiled(case, folder), folder / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, case.prompts)), "utf-8")
    env = {**os.environ, "POCL_CACHE_DIR": str(folder / "pocl"), "PYTHONPATH": str(ROOT)}
    given = ["--prompts", str(prompts), "--gammas", ",".join(map(str, case.gammas)), "--new", str(case.new)]
    given += [] if case.threads is None else ["--threads", str(case.threads)]
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder / "bundle"), "--how", how, *given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        for how in case.hows
    ]
    turns = folder / "turns.json"
    found: dict[str, list[dict[str, Any]]] = json.loads(turns.read_text("utf-8")) if turns.is_file() else {}
    done = min((len(records) for records in found.values()), default=0)
    try:
        for turn in range(max(0, repeats - done) + 1):
            for how, worker in zip(case.hows, workers, strict=True):
                assert worker.stdin is not None
                assert worker.stdout is not None
                worker.stdin.write("go\n")
                worker.stdin.flush()
                line = worker.stdout.readline()
                if not line:
                    raise SystemExit(f"{case.name}: the process for {how} ended with {worker.wait()}")
                for way, record in json.loads(line).items() if turn else ():  # the first turn warms up
                    found.setdefault(way if how == case.hows[0] else f"{way}, in turn", []).append(record)
            if turn:
                write_text(turns, json.dumps(found))
    finally:
        for worker in workers:
            if worker.stdin is not None:
                worker.stdin.close()
            worker.wait()
    texts = [record["texts"] for records in found.values() for record in records]
    if any(text != texts[0] for text in texts):
        raise SystemExit(f"{case.name}: the texts differ between the ways")
    return {"case": case.name, "plan": plan, "ways": rows(found)}


def rows(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each way: medians over the repeats, ratios within each."""

    def ratio(way: str, other: str) -> float | None:
        pairs = zip(found[way], found.get(other, ()), strict=False)
        return statistics.median([a["speed"] / b["speed"] for a, b in pairs]) if other in found else None

    fixed = [way for way in found if not way.startswith(("auto", "ngram"))]
    best = max(fixed, key=lambda way: statistics.median(r["speed"] for r in found[way]))
    table = []
    for way, records in found.items():
        words = way.replace(",", "").split()
        suffix = ", in turn" if way.endswith("in turn") else ""
        guesses, events = (
            [r[name] / r["speed"] for r in records if r[name] is not None] for name in ("predicted", "simulated")
        )
        table.append(
            {
                "way": way,
                "speed": statistics.median(r["speed"] for r in records),
                "predicted": statistics.median(guesses) if guesses else None,
                "simulated": statistics.median(events) if events else None,
                "over alone": ratio(way, "alone"),
                "over sequential": ratio(way, f"sequential {words[1]}{suffix}") if words[0] == "overlapped" else None,
                "over best": ratio(way, best) if way not in fixed else None,
                "best": way == best,
                "accepted": records[0]["accepted"],
            }
        )
    return table


def as_text(result: dict[str, Any]) -> str:
    """A case's part of the table."""
    plan = result["plan"]
    beside = plan["overlapped_tokens_per_s"]
    more = "" if beside is None else f", overlapped {beside:.0f}"
    lines = [
        f"\n{result['case']}; plan: {plan['mode']}, {plan['gamma']} drafts, {plan['tokens_per_s']:.0f} tokens/s{more}",
        "| way | tokens/s | predicted, off | simulated, off | over alone | over sequential | over best | accepted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["ways"]:
        cells = [f"{row['way']}{' (best)' if row['best'] else ''}", f"{row['speed']:.0f}"]
        for off in (row["predicted"], row["simulated"]):
            cells.append("" if off is None else f"{off * row['speed']:.0f}, {100 * (off - 1):+.0f} %")
        names = ("over alone", "over sequential", "over best", "accepted")
        cells += ["" if row[name] is None else f"{row[name]:.2f}" for name in names]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(
        description="every way to draft, predicted beside measured",
        epilog="--quick takes some minutes; the large pair 10 s a turn of a case for three texts and one draft length "
        "on two idle cores, and a minute to make and compile: give --keep, and go on where it was cut off",
    )
    parser.add_argument("--repeats", type=int, help="turns over all ways of a case (default 7, quick 3)")
    parser.add_argument("--quick", action="store_true", help="small models, few texts")
    parser.add_argument("--chat", type=Path, metavar="FOLDER", help="what examples/chat/export.py wrote")
    parser.add_argument("--only", metavar="TEXT", default="", help="cases whose names have this text")
    parser.add_argument("--texts", type=int, metavar="N", help="only the first N texts of a case")
    parser.add_argument("--gammas", metavar="N,...", help="fixed draft lengths (default 1,2,4; quick 2,4)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="go on where an earlier run with it ended")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    repeats = options.repeats or (3 if options.quick else 7)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) if options.keep is None else options.keep / ("quick" if options.quick else "full")
        kept.mkdir(parents=True, exist_ok=True)
        lengths = tuple(map(int, options.gammas.split(","))) if options.gammas else ()
        asked = "".join(
            f" {name} {value}" for name, value in (("texts", options.texts), ("g", options.gammas)) if value
        )
        for case in cases(kept, options.quick, options.chat, options.texts, lengths):
            if options.only not in case.name:
                continue
            folder = kept / re.sub(r"[^a-z0-9]+", "-", (case.name + asked).lower())
            folder.mkdir(exist_ok=True)
            found = folder / f"result-{repeats}.json"
            if not found.is_file():
                write_text(found, json.dumps(measure(case, folder, repeats)))
            results.append(json.loads(found.read_text("utf-8")))
            if not options.json:
                print(as_text(results[-1]), flush=True)
    if options.json:
        print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
