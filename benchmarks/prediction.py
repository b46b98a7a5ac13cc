"""Predicted beside measured, term by term, on this machine: steps of several models, rounds and speed-ups of pairs.

    python benchmarks/prediction.py [--folder DIR] [--only build|measure|report] [--minutes 22]

The fit sees some models at some widths; the table judges other models at other widths (prediction_cases.py). Steps:
1 M to 270 M parameters, float32, float16, int8 and int4, contexts 16 to 512, one and two threads, and PoCL, which
stands in for a GPU, with its one worker pinned to a core. All points are taken in turn, the bandwidth beside each, in
`parts` processes of `repeats` passes; then those that are not stable are taken again, up to thrice as often, while the
time lasts. Points that stay unstable are in the table and are left out of the errors. Rounds are real speculative
generation by the bundle's runtime, in turn, overlapped and from n-grams, with the acceptance that the pairs have: a
drafter is the target's first layers and its head. Beside the error stands that of a plain roofline: bytes over the
bandwidth measured, the same for every n.

Writes benchmarks/prediction.md and prediction.json. Measuring takes about --minutes on an idle machine, which each
process has a share of; building the bundles takes as long again, the first time. What was measured stays in the folder:
measuring goes on where it stopped, within a process, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
sys.path[:0] = [str(ROOT), str(HERE)]

from prediction_cases import CASES, CONTEXT, PAIRS, build_all, write_models  # noqa: E402

from costmodel.format import INT8  # noqa: E402

STEPS_SHARE = 6  # times as much of the time as a pair has: all models are in one process


def jobs(parts: int) -> list[tuple[str, list[str]]]:
    """(file, arguments) of every process that measures, all of one part before the next."""
    found = []
    for part in map(str, range(parts)):
        found += [(f"steps-{p}-{part}.json", ["steps", p, part]) for p in ("1", "2", "gpu")]
        found += [(f"rounds-{pair.name}-{part}.json", ["rounds", str(i), part]) for i, pair in enumerate(PAIRS)]
    return found


def measure(folder: Path, parts: int, repeats: int, minutes: float) -> None:
    """Run every process whose file is not complete, or which another version wrote, with its share of the time."""
    todo = jobs(parts)
    share_s = 60 * minutes / sum(STEPS_SHARE if name.startswith("steps-") else 1 for name, _ in todo)
    for name, arguments in todo:
        if complete(folder / "measured" / name, repeats):
            continue
        start, seconds = time.monotonic(), share_s * (STEPS_SHARE if name.startswith("steps-") else 1)
        given = [*arguments, str(folder), str(repeats), f"{seconds:.0f}"]
        command = [sys.executable, str(HERE / "prediction_worker.py"), *given]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
        if done.returncode:
            print(done.stderr.strip()[-2000:], file=sys.stderr, flush=True)


def complete(path: Path, repeats: int) -> bool:
    """Whether a file holds so many passes, as this version reads them, and its process came to its end."""
    from prediction_table import OldFileError, read_steps

    if not path.is_file():
        return False
    found = json.loads(path.read_text("utf-8"))
    if found["passes"] < repeats or not found.get("finished", False):
        return False
    try:
        return not path.name.startswith("steps-") or bool(read_steps(path))
    except OldFileError:
        return False


def machine_facts() -> dict[str, str]:
    """What the numbers were measured on."""
    cpu = next(line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").open() if line.startswith("model name"))
    caches = []
    for index in range(1, 4):
        folder = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index if index > 1 else 0}")
        caches.append((folder / "size").read_text().strip())
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cpu": f"{cpu}, {os.cpu_count()} CPUs, caches {', '.join(caches)}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "tvm": metadata.version("apache-tvm"),
        "commit": commit.stdout.strip() or "unknown",
    }


def shapes_of(folder: Path) -> dict[str, Any]:
    """The counted shape of every model."""
    from passes.analysis.count_work import count_work
    from passes.onnx import canonicalise

    shapes = {name: count_work(canonicalise(write_models(name, folder), CONTEXT), name) for name in CASES}
    return {n: s.with_int8_activations() if CASES[n].activations == INT8 else s for n, s in shapes.items()}


def main() -> int:
    """Build, measure, fit, write."""
    parser = argparse.ArgumentParser(description="predicted beside measured on this machine")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "prediction", help="bundles and measurements")
    parser.add_argument("--only", choices=("build", "measure", "report"), help="one phase instead of all")
    parser.add_argument("--parts", type=int, default=2, help="processes for each kind of point (default 2)")
    parser.add_argument("--repeats", type=int, default=5, help="passes of each process, at least (default 5)")
    parser.add_argument(
        "--minutes", type=float, default=22, help="of measuring, about, on an idle machine (default 22)"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="where prediction.md and prediction.json go")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.only in (None, "build"):
        build_all(folder)
    if options.only in (None, "measure"):
        measure(folder, options.parts, options.repeats, options.minutes)
    if options.only in (None, "report"):
        from prediction_table import OldFileError, evaluate
        from prediction_text import text

        from targets.boards import load_board

        try:
            result = evaluate(folder / "measured", load_board("host", calibrated=False), shapes_of(folder))
        except OldFileError as error:
            print(f"prediction.py: error: {error}", file=sys.stderr)
            return 2
        result = {"machine": machine_facts(), **result}
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "prediction.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        (options.out / "prediction.md").write_text(text(result), "utf-8")
        print(text(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
