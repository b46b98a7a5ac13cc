"""Matrix multiplications with quantised weights on this machine, beside onnxruntime's MatMulNBits at accuracy level 4.

    python benchmarks/kernels.py [--repeats 9] [--threads 2] [--shapes 2048x2048] [--json]

Weights in blocks of 32 with float16 scales (onnxruntime's: float32, which its kernels for CPUs take), in so many copies
that no cache holds them, each with numbers of its own. A call makes the int8 codes of its rows and multiplies.
One process, taken in turn, with the bandwidth read beside each: quote ratios of one run, the machine is shared. A round
takes the least of a few walks, the table the median of rounds; with one thread its processor time is taken.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
ROWS = (1, 2, 4, 8, 32, 128)
BLOCK = 32
HUGE = 2 << 20
PAUSE_S = 0.1  # onnxruntime's threads spin for a while after a run
Call = Callable[[], None]


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description="quantised matrix multiplications beside onnxruntime's, in turn")
    parser.add_argument("--repeats", type=int, default=9, help="alternating rounds (default 9)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--shapes", default="2048x2048,2048x8192,576x1536", help="KxN, separated by commas")
    parser.add_argument("--formats", default="int4,int8", help="separated by commas")
    parser.add_argument("--megabytes", type=int, default=96, help="of weights in all copies (default 96)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    from decode import bandwidth_reader
    from steps import clock_of

    from targets.boards import load_board

    read = bandwidth_reader(load_board("host", measure=False), clock_of(options.threads))
    table = []
    for shape in options.shapes.split(","):
        k, columns = map(int, shape.split("x"))
        for bits in (int(name.removeprefix("int")) for name in options.formats.split(",")):
            with tempfile.TemporaryDirectory() as scratch:
                table += measured(k, columns, bits, options, read, Path(scratch))
    print(json.dumps({"threads": options.threads, "table": table}, indent=1) if options.json else text(table, options))


def measured(
    k: int, columns: int, bits: int, options: argparse.Namespace, read: Callable[[], float], folder: Path
) -> list[dict[str, Any]]:
    """A line of the table for each number of rows."""
    from steps import clock_of, samples

    clock = clock_of(options.threads)
    stored = columns * k * bits // 8 + columns * k // BLOCK * 2
    copies = max(2, -(-(options.megabytes << 20) // stored))
    ours = our_calls(k, columns, bits, copies, options.threads, folder)
    peer = peer_calls(k, columns, bits, copies, options.threads, folder)
    lines: list[dict[str, Any]] = []
    for n in ROWS:
        rounds = []
        for _ in range(options.repeats):
            before = read()
            one = min(samples(clock, ours[n])) / copies
            bandwidth = statistics.mean((before, read()))
            other = min(samples(clock, peer[n])) / copies
            time.sleep(PAUSE_S)
            rounds.append((one, other, bandwidth))
        middle = statistics.median
        first = lines[0]["us"] if lines else 1e6 * middle(r[0] for r in rounds)
        lines.append(
            {
                **{"k": k, "columns": columns, "format": f"int{bits}", "n": n},
                "us": 1e6 * middle(r[0] for r in rounds),
                "over_one_row": 1e6 * middle(r[0] for r in rounds) / first,
                "over_onnxruntime": middle(r[1] / r[0] for r in rounds),
                "share_of_bandwidth": middle(stored / r[0] / 1e9 / r[2] for r in rounds),
                "bandwidth_gb_per_s": middle(r[2] for r in rounds),
                "gop_per_s": 2e-9 * n * k * columns / middle(r[0] for r in rounds),
            }
        )
    return lines


def on_huge_pages(shape: tuple[int, ...], dtype: type) -> Any:
    """An array for weights; runs of a bundle may keep theirs so, too (run.py --huge-pages)."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, -(-size // HUGE) * HUGE)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype, count=int(np.prod(shape))).reshape(shape)


def our_calls(k: int, columns: int, bits: int, copies: int, threads: int, folder: Path) -> dict[int, Call]:
    """Rows -> a walk over all copies, on our thread pool."""
    import tvm

    from hetero_sd.runtime.model.thread_pool import ThreadPool
    from targets.boards import load_board
    from targets.cpu import pool
    from targets.cpu.dot import DOTS, dot_of
    from targets.cpu.kernels.linear_int import linear_int, quantise_rows
    from targets.cpu.linker import host_isa, link_function
    from targets.cpu.target import tvm_target
    from targets.cpu.tile import cpu_tile

    core = load_board("host", measure=False).clusters[0].core
    tile, make = cpu_tile(core), tvm.runtime.tensor
    functions = {}
    for n in ROWS:
        dtype = DOTS[dot_of(tile.dot, n)].activations[bits]
        functions[f"quantise_{n}"] = quantise_rows(tile, n, k, dtype)
        functions[f"linear_{n}"] = linear_int(tile, n, k, columns, bits, BLOCK, "float16", False)
    named = tvm.IRModule({name: func.with_attr("global_symbol", name) for name, func in functions.items()})
    library = folder / "kernels.so"
    tvm.compile(named, target=tvm_target(core)).export_library(str(library), fcompile=link_function(core))
    loaded = tvm.runtime.load_module(str(library))
    opened = ThreadPool(pool.ensure(host_isa()), [], threads)
    opened.attach(library)

    rng, panels = np.random.default_rng(0), -(-columns // tile.panel)
    weights = []
    for _ in range(copies):
        q = on_huge_pages((panels, k * bits // 32, tile.panel), np.uint32)
        q[:] = rng.integers(0, 1 << 32, q.shape, np.uint32)
        scale = rng.random((panels, k // BLOCK, tile.panel)).astype(np.float16)
        weights.append((tvm.runtime.from_dlpack(q), make(scale)))
    none = make(np.zeros((1, 1, 1), np.uint8))

    def walk(n: int) -> Call:
        dtype, steps = DOTS[dot_of(tile.dot, n)].activations[bits], k // 32
        x = make(rng.standard_normal((1, n, k)).astype(np.float32))
        codes, scale = make(np.zeros((1, n, k), dtype)), make(np.zeros((1, n, steps), np.float32))
        total, y = make(np.zeros((1, n, steps), np.int32)), make(np.zeros((1, n, columns), np.float32))
        quantise, linear = loaded[f"quantise_{n}"], loaded[f"linear_{n}"]

        def call() -> None:
            for q, s in weights:
                quantise(x, codes, scale, total)
                linear(codes, scale, total, q, s, none, y)

        call.opened = opened  # type: ignore[attr-defined]  # the pool lives as long as what uses it
        return call

    return {n: walk(n) for n in ROWS}


def peer_calls(k: int, columns: int, bits: int, copies: int, threads: int, folder: Path) -> dict[int, Call]:
    """The same by onnxruntime: one graph with a MatMulNBits for each copy, all of one input."""
    import onnxruntime

    rng, nodes, tensors, outputs = np.random.default_rng(1), [], [], []
    facts = {"K": k, "N": columns, "bits": bits, "block_size": BLOCK, "accuracy_level": 4}
    for i in range(copies):
        q = rng.integers(0, 256, (columns, k // BLOCK, BLOCK * bits // 8), np.uint8)
        scale = rng.random(columns * k // BLOCK).astype(np.float32)
        tensors += [onnx.numpy_helper.from_array(q, f"q{i}"), onnx.numpy_helper.from_array(scale, f"s{i}")]
        nodes.append(
            helper.make_node("MatMulNBits", ["x", f"q{i}", f"s{i}"], [f"y{i}"], domain="com.microsoft", **facts)
        )
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["n", columns]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", k])]
    graph = helper.make_graph(nodes, "products", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    path = folder / "products.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def walk(n: int) -> Call:
        binding, make = session.io_binding(), onnxruntime.OrtValue
        x = np.random.default_rng(2).standard_normal((n, k)).astype(np.float32)
        binding.bind_ortvalue_input("x", make.ortvalue_from_numpy(x))
        for i in range(copies):
            binding.bind_ortvalue_output(f"y{i}", make.ortvalue_from_shape_and_type([n, columns], np.float32))
        return lambda: session.run_with_iobinding(binding)

    return {n: walk(n) for n in ROWS}


def text(table: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The table for people."""
    lines = [
        f"{options.threads} threads, medians of the least of {options.repeats} rounds in turn; onnxruntime at level 4"
    ]
    lines.append(
        f"{'matrix':>12} {'format':>6} {'n':>4} {'us':>8} {'T(n)/T(1)':>9} {'ORT/ours':>8} {'share':>6} {'GOP/s':>6}"
    )
    for r in table:
        lines.append(
            f"{r['k']:>6}x{r['columns']:<5} {r['format']:>6} {r['n']:>4} {r['us']:>8.1f} {r['over_one_row']:>9.2f} "
            f"{r['over_onnxruntime']:>8.2f} {r['share_of_bandwidth']:>6.0%} {r['gop_per_s']:>6.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
