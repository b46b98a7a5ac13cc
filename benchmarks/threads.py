"""What a parallel region costs, and decoding one token with TVM's thread pool, with ours and with onnxruntime.

    python benchmarks/threads.py [--repeats 9] [--threads 2] [--only example] [--json]

Everything in one process, taken in turn, first beside nothing and then beside a process on every CPU that computes
without end: that is what a busy machine does to each. Figures are medians over the rounds, with the slowest tenth.
On a shared machine the first half is only as quiet as its neighbours are; the load average is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
EXAMPLE = ROOT / "examples" / "translation" / "target" / "model.onnx"
CONTEXT, PAST, STEPS = 256, 64, 9
PAUSE_S = 0.02  # a pool's threads, and onnxruntime's, look for work for a while after a step
Step = Callable[[], Any]


def main() -> None:
    """Run the benchmark and print the tables."""
    parser = argparse.ArgumentParser(description="regions and decoding with TVM's thread pool, ours and onnxruntime's")
    parser.add_argument("--repeats", type=int, default=9, help="rounds of each half (default 9)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", choices=("example", "100m"), help="one of the two models")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    found: dict[str, Any] = {"threads": options.threads, "load": os.getloadavg()[0], "regions_us": regions(options)}
    with tempfile.TemporaryDirectory() as scratch:
        for name in [options.only] if options.only else ["example", "100m"]:
            steps = steps_of(model_file(name, Path(scratch)), Path(scratch) / name, options.threads)
            found[name] = {"quiet": in_turn(steps, options.repeats)}
            with busy_cpus():
                found[name]["busy"] = in_turn(steps, options.repeats)
            del steps
    print(json.dumps(found, indent=1) if options.json else text(found))


def regions(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """(best tenth, median) of what a region adds to 20 us of work, in us, by threads."""
    from hetero_sd.runtime.model.thread_pool import ThreadPool
    from targets.cpu import pool
    from targets.cpu.linker import host_isa

    costs = {}
    for threads in sorted({1, 2, options.threads}):
        opened = ThreadPool(pool.ensure(host_isa()), [], threads)
        opened.region_cost_s(rounds=200)
        best, middle = (1e6 * opened.region_cost_s(rounds=5001, quantile=q) for q in (0.1, 0.5))
        costs[str(threads)] = best, middle
        opened.close()
    return costs


def model_file(name: str, scratch: Path) -> Path:
    """The example target, or a Llama of 100 M parameters with random weights."""
    from passes.synthetic import LLAMA_100M, write_llama

    if name == "example":
        return EXAMPLE
    write_llama(scratch / "llama100m.onnx", LLAMA_100M)
    return scratch / "llama100m.onnx"


def steps_of(model: Path, folder: Path, threads: int) -> dict[str, Step]:
    """A decoding step of each way to run the model; each of ours has a library of its own, as pools lie under one."""
    from peers import OrtDecoder

    from costmodel.place import Place, ReasonedPlace
    from hetero_sd.compile.build import ModelRequest, Sizes, build_model
    from hetero_sd.runtime.manifest import Bundle, write_manifest
    from hetero_sd.runtime.model.model import CompiledModel
    from passes.onnx import canonicalise
    from targets.boards import load_board

    core = load_board("host", measure=False).clusters[0].core
    sizes = Sizes(CONTEXT, (1,), 32)
    decoder = canonicalise(model, CONTEXT)
    built = build_model(ModelRequest("target", decoder, core, ReasonedPlace(Place("cpu")), sizes), folder / "tvm")
    write_manifest(folder / "tvm", {"target": built.facts})

    def load(name: str, pool: str, count: int, tasks: int) -> Step:
        if name != "tvm":
            shutil.copytree(folder / "tvm", folder / name, copy_function=os.link)
            library = folder / name / "lib" / "target_cpu.so"
            library.unlink()
            shutil.copyfile(folder / "tvm" / "lib" / "target_cpu.so", library)
        os.environ["HSD_THREAD_POOL"] = pool
        compiled = CompiledModel("target", Bundle(folder / name))
        if compiled.pool is not None:
            compiled.pool.set(count, tasks)
        return lambda: compiled.argmax([1], PAST)

    steps = {
        "one thread": load("one", "", 1, 1),
        "TVM's pool": load("tvm", "tvm", threads, 0),
        "ours": load("ours", "", threads, 0),
        "ours, 1 task": load("ours1", "", threads, 1),
        "ours, 4 tasks": load("ours4", "", threads, 4),
    }
    try:
        for spinning in (True, False):
            name = f"onnxruntime, {'' if spinning else 'not '}spinning"
            steps[name] = OrtDecoder(model, threads, spinning).bind(1, PAST)
    except Exception as error:  # a model that onnxruntime runs with other inputs
        print(f"no onnxruntime beside it: {str(error).splitlines()[0]}", file=sys.stderr)
    return steps


@contextmanager
def busy_cpus() -> Iterator[None]:
    """A process on every CPU that this one may use, each computing without end."""
    cpus = sorted(os.sched_getaffinity(0))
    code = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
    others = [subprocess.Popen([sys.executable, "-c", code, str(cpu)]) for cpu in cpus]
    try:
        time.sleep(1.0)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def in_turn(steps: dict[str, Step], repeats: int) -> dict[str, tuple[float, float]]:
    """(median, 90th percentile) in ms of every step; some of each way in each round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            step()
            for _ in range(STEPS):
                start = time.perf_counter()
                step()
                times[name].append(1e3 * (time.perf_counter() - start))
            time.sleep(PAUSE_S)
    return {name: (statistics.median(t), sorted(t)[int(0.9 * len(t))]) for name, t in times.items()}


def text(found: dict[str, Any]) -> str:
    """The tables for people."""
    lines = [f"{found['threads']} threads, load average {found['load']:.1f} before; median / 90th percentile"]
    for threads, (best, middle) in found["regions_us"].items():
        lines.append(f"region of {threads} threads: {middle:.2f} us, best tenth {best:.2f} us")
    for name in ("example", "100m"):
        if name not in found:
            continue
        quiet, busy = found[name]["quiet"], found[name]["busy"]
        lines.append(f"\n{name}, decode of one token{'quiet':>20}{'every CPU busy':>22}{'over one thread':>18}")
        for way in quiet:
            numbers = "".join(f"{half[way][0]:>14.2f} /{half[way][1]:>6.2f}" for half in (quiet, busy))
            lines.append(f"{way:<28}{numbers} ms{busy[way][0] / busy['one thread'][0]:>12.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
