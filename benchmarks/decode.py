"""Decode speed of a Llama with random weights, or of a file, on this machine, beside its peers on the same weights.

    python benchmarks/decode.py [--shape 1b] [--format int4] [--repeats 9] [--model FILE.onnx] [--json]
    python benchmarks/decode.py --model FILE.onnx --gguf FILE.gguf --peer llama.cpp --peer onnxruntime-genai

Steps of 1, 4 and 8 tokens after 128, and prompts of 128 and 512, of which onnxruntime makes the logits of every row.
For llama.cpp the random weights are written as a GGUF file, by the package `gguf`: Q8_0, Q4_0, F16 or F32.

Taken in turn: memory bandwidth, ours, bandwidth, each peer (benchmarks/peers.py). Quote ratios of one run: the machine
is shared and absolute times drift; where others compute on it, the ratio of the least times says more than that of
medians. With one thread its processor time is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf_llama import write_gguf
from peers import NAMES, peers_of
from steps import CONTEXT, PAST, PROMPTS, ROWS, WIDTHS, Clock, clock_of, samples

CHUNKS = (32, 128)  # of prompts
PAUSE_S = 0.15  # threads of onnxruntime and of TVM spin for a while after a run and would disturb the next one


def bandwidth_reader(board: Any, clock: Clock, count: int = 64 << 20) -> Callable[[], float]:
    """A function that reads 256 MB with all threads and returns GB/s."""
    import tvm

    from targets.cpu.kernels.stream_read import stream_read
    from targets.cpu.target import tvm_target
    from targets.cpu.tile import cpu_tile

    core = board.clusters[0].core
    tile = cpu_tile(core)
    built = tvm.compile(stream_read(tile, count).with_attr("global_symbol", "main"), target=tvm_target(core))
    run = built.mod["main"]
    x, y = tvm.runtime.tensor(np.ones(count, np.float32)), tvm.runtime.tensor(np.zeros((64, tile.lanes), np.float32))

    def read() -> float:
        start = clock()
        run(x, y)
        read_s = clock() - start
        time.sleep(PAUSE_S)  # TVM's threads look for work for a while, on the cores of what is measured next
        return 4 * count / read_s / 1e9

    return read


def our_steps(model: Path, folder: Path, board: str) -> tuple[dict[str, Callable[[], Any]], int]:
    """Compile the file and return what ROWS names, and the bytes of weights that a step reads."""
    from costmodel.format import FLOAT, INT8
    from costmodel.place import Place, ReasonedPlace
    from hetero_sd.compile.build import ModelRequest, Sizes, build_model
    from hetero_sd.runtime.manifest import Bundle, write_manifest
    from hetero_sd.runtime.model.model import CompiledModel
    from passes.analysis.count_work import count_work
    from passes.onnx import canonicalise
    from targets.boards import load_board

    core, sizes = (
        load_board(board, measure=False).clusters[0].core,
        Sizes(CONTEXT, WIDTHS, CHUNKS[0], long_prefill=CHUNKS[1]),
    )
    decoder = canonicalise(model, CONTEXT)
    spec = count_work(decoder, model.name)
    activations = INT8 if decoder.facts.int8_activations else FLOAT
    place = ReasonedPlace(Place("cpu"))
    built = build_model(ModelRequest("target", decoder, core, place, sizes, activations=activations), folder)
    write_manifest(folder, {"target": built.facts})
    compiled = CompiledModel("target", Bundle(folder), huge_pages=True)
    for past in range(0, PAST, 8):  # what lies in a new cache need not be numbers
        compiled.argmax([1] * 8, past)
    steps = {str(n): (lambda n=n: compiled.argmax([1] * n, PAST)) for n in WIDTHS}
    prompts = {f"prompt {n}": (lambda n=n: compiled.extend([1] * n, 0)) for n in PROMPTS}
    return {**steps, **prompts}, sum(op.matrix_bytes for op in spec.operators if op.kind == "linear")


def main() -> None:
    """Run the benchmark and print the table."""
    from passes.synthetic import LLAMA_1B, LLAMA_100M, LLAMA_500M, write_llama

    shapes = {"100m": LLAMA_100M, "500m": LLAMA_500M, "1b": LLAMA_1B}
    parser = argparse.ArgumentParser(description="decode speed beside onnxruntime, genai and llama.cpp, in turn")
    parser.add_argument("--repeats", type=int, default=9, help="alternating rounds (default 9)")
    parser.add_argument("--model", type=Path, help="an ONNX decoder; default: random weights of --shape")
    parser.add_argument("--shape", choices=shapes, default="100m", help="parameters (default 100m)")
    formats = ("float32", "float16", "int8", "int4")
    parser.add_argument("--format", choices=formats, default="float32", help="of those weights")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--peer",
        action="append",
        help=f"{', '.join(NAMES)}, repeatable (default: those that can be had)",
    )
    parser.add_argument("--gguf", type=Path, help="the same model for llama.cpp")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    from targets.boards import load_board

    with tempfile.TemporaryDirectory() as scratch:
        model = options.model
        if model is None:
            model = Path(scratch) / f"llama{options.shape}.onnx"
            write_llama(model, shapes[options.shape], options.format)

        def gguf() -> Path | None:
            path: Path | None = options.gguf
            if path is None and options.model is None:
                path = Path(scratch) / "model.gguf"
                write_gguf(model, shapes[options.shape], path)
            return path

        peers, missing = peers_of(options.peer or NAMES, model, options.threads, Path(scratch) / "genai", gguf)
        print(*missing, sep="\n", file=sys.stderr)
        ours, weight_bytes = our_steps(model, Path(scratch) / "bundle", "host")
        clock = clock_of(options.threads)
        read_gb_per_s = bandwidth_reader(load_board("host", measure=False), clock)
        rounds = []
        for _ in range(options.repeats):
            for n in ROWS:
                before = read_gb_per_s()
                times = {"ours": samples(clock, ours[n])}
                bandwidth = statistics.mean((before, read_gb_per_s()))
                for peer in peers:
                    times[peer.name] = peer.times(n)
                    time.sleep(PAUSE_S)
                rounds.append({"n": n, "times_s": times, "gb_per_s": bandwidth})
    table = [summary(n, [r for r in rounds if r["n"] == n], weight_bytes) for n in ROWS]
    print(json.dumps({"rounds": rounds, "table": table}, indent=1) if options.json else text(table, options))


def summary(n: str, rounds: list[dict[str, Any]], weight_bytes: int) -> dict[str, Any]:
    """Medians over the rounds; ratios are a peer's time over ours: of the medians within a round, and of the least."""
    median = statistics.median
    middles = [{name: median(times) for name, times in r["times_s"].items()} for r in rounds]
    least = {name: min(min(r["times_s"][name]) for r in rounds) for name in middles[0]}
    return {
        "n": n,
        "ms": {name: 1e3 * median(m[name] for m in middles) for name in least},
        "ratio": {name: median(m[name] / m["ours"] for m in middles) for name in least},
        "least_ratio": {name: seconds / least["ours"] for name, seconds in least.items()},
        "gb_per_s": median(r["gb_per_s"] for r in rounds),
        "share_of_bandwidth": median(
            weight_bytes / m["ours"] / 1e9 / r["gb_per_s"] for m, r in zip(middles, rounds, strict=True)
        ),
    }


def text(table: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The table for people."""
    peers = [name for name in table[0]["ms"] if name != "ours"]
    lines = [
        f"{options.threads} threads, {options.repeats} rounds in turn; bandwidth read beside each sample",
        "of each peer: median, its ratio to ours, the ratio of the least times",
        f"{'n':>10} {'ours':>9} {'GB/s':>6} {'share':>6}" + "".join(f"{name:>25}" for name in peers),
    ]
    for r in table:
        line = f"{r['n']:>10} {r['ms']['ours']:>6.1f} ms {r['gb_per_s']:>6.1f} {r['share_of_bandwidth']:>6.0%}"
        for name in peers:
            line += f"{r['ms'][name]:>10.1f} ms {r['ratio'][name]:>5.2f} {r['least_ratio'][name]:>5.2f}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
