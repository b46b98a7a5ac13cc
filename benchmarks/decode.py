"""Decode speed of a 100M-parameter Llama on this machine, beside onnxruntime's CPU provider on the same file.

    python benchmarks/decode.py [--format int4] [--repeats 9] [--model FILE.onnx] [--json]

Steps of 1, 4 and 8 tokens after 128, and a prompt of 128 tokens, of which onnxruntime makes the logits of every row.

One process, taken in turn: memory bandwidth, ours, bandwidth, onnxruntime with and without spinning threads. Quote
ratios of one run: the machine is shared and absolute times drift. onnxruntime runs with all graph optimisations and IO
binding, past and present sharing one buffer, the best it offers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

WIDTHS = (1, 4, 8)
CONTEXT = 256
PAST = 128
PROMPT = 128
ROWS = {**{str(n): (n, PAST) for n in WIDTHS}, f"prompt {PROMPT}": (PROMPT, 0)}  # name -> (tokens, past)
STEPS = 5
PAUSE_S = 0.15  # threads of onnxruntime and of TVM spin for a while after a run and would disturb the next one


def measure(step: Callable[[], Any]) -> float:
    """Median seconds of one step, after one that is not counted."""
    step()
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def bandwidth_reader(board: Any, count: int = 64 << 20) -> Callable[[], float]:
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
        start = time.perf_counter()
        run(x, y)
        read_s = time.perf_counter() - start
        time.sleep(PAUSE_S)  # TVM's threads look for work for a while, on the cores of what is measured next
        return 4 * count / read_s / 1e9

    return read


class OrtDecoder:
    """The ONNX file in onnxruntime, all graph optimisations on, everything bound once."""

    def __init__(self, path: Path, threads: int, spinning: bool) -> None:
        """Open the session; caches are shared between past and present where the graph's attention allows it."""
        import onnxruntime as ort

        self._ort = ort
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(path, load_external_data=False).graph
        self.shared = any(node.op_type == "GroupQueryAttention" for node in graph.node)

    def bind(self, n: int, past_rows: int) -> Callable[[], Any]:
        """A step of n tokens after `past_rows` tokens."""
        make = self._ort.OrtValue.ortvalue_from_numpy
        binding = self.session.io_binding()
        feeds = {
            "input_ids": np.ones((1, n), np.int64),
            "attention_mask": np.ones((1, past_rows + n), np.int64),
            "position_ids": np.arange(past_rows, past_rows + n, dtype=np.int64)[None],
        }
        caches = {}
        for value in self.session.get_inputs():
            if value.name.startswith("past"):
                rows = CONTEXT if self.shared else past_rows
                dtype = np.float16 if value.type == "tensor(float16)" else np.float32
                caches[value.name] = make(np.zeros((1, value.shape[1], rows, value.shape[3]), dtype))
                binding.bind_ortvalue_input(value.name, caches[value.name])
            else:
                binding.bind_ortvalue_input(value.name, make(feeds[value.name]))
        for value in self.session.get_outputs():
            past = caches.get(value.name.replace("present", "past_key_values"))
            if past is not None and self.shared:
                out = past
            else:
                rows = past_rows + n if past is not None else n
                dims = [1, value.shape[1], rows, value.shape[3]] if past is not None else [1, rows, value.shape[2]]
                dtype = np.float16 if value.type == "tensor(float16)" else np.float32
                out = self._ort.OrtValue.ortvalue_from_shape_and_type(dims, dtype)
            binding.bind_ortvalue_output(value.name, out)
        return lambda: self.session.run_with_iobinding(binding)


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

    core, sizes = load_board(board, measure=False).clusters[0].core, Sizes(CONTEXT, WIDTHS, 32)
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
    prompt = {f"prompt {PROMPT}": lambda: compiled.extend([1] * PROMPT, 0)}
    return {**steps, **prompt}, sum(op.matrix_bytes for op in spec.operators if op.kind == "linear")


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description="decode speed beside onnxruntime's CPU provider, same file, in turn")
    parser.add_argument("--repeats", type=int, default=9, help="alternating rounds (default 9)")
    parser.add_argument("--model", type=Path, help="an ONNX decoder; default: 100M parameters, random")
    parser.add_argument("--format", choices=("float32", "int8", "int4"), default="float32", help="of those weights")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    from passes.synthetic import LLAMA_100M, write_llama
    from targets.boards import load_board

    with tempfile.TemporaryDirectory() as scratch:
        model = options.model
        if model is None:
            model = Path(scratch) / "llama100m.onnx"
            write_llama(model, LLAMA_100M, options.format)
        ours, weight_bytes = our_steps(model, Path(scratch) / "bundle", "host")
        peers = {"spinning": OrtDecoder(model, options.threads, True), "not": OrtDecoder(model, options.threads, False)}
        bound = {name: {row: peer.bind(*what) for row, what in ROWS.items()} for name, peer in peers.items()}
        read_gb_per_s = bandwidth_reader(load_board("host", measure=False))
        rounds = []
        for _ in range(options.repeats):
            for n in ROWS:
                before = read_gb_per_s()
                row = {"n": n, "ours_s": measure(ours[n])}
                row["gb_per_s"] = statistics.mean((before, read_gb_per_s()))
                for name in peers:
                    row[f"ort_{name}_s"] = measure(bound[name][n])
                    time.sleep(PAUSE_S)
                rounds.append(row)
    table = [summary(n, [r for r in rounds if r["n"] == n], weight_bytes) for n in ROWS]
    print(json.dumps({"rounds": rounds, "table": table}, indent=1) if options.json else text(table, options))


def summary(n: str, rounds: list[dict[str, Any]], weight_bytes: int) -> dict[str, Any]:
    """Medians over the rounds; ratios are formed within a round."""
    median = statistics.median
    return {
        "n": n,
        "ours_ms": 1e3 * median(r["ours_s"] for r in rounds),
        "ort_spinning_ms": 1e3 * median(r["ort_spinning_s"] for r in rounds),
        "ort_not_spinning_ms": 1e3 * median(r["ort_not_s"] for r in rounds),
        "ratio_spinning": median(r["ort_spinning_s"] / r["ours_s"] for r in rounds),
        "ratio_not_spinning": median(r["ort_not_s"] / r["ours_s"] for r in rounds),
        "gb_per_s": median(r["gb_per_s"] for r in rounds),
        "share_of_bandwidth": median(weight_bytes / r["ours_s"] / 1e9 / r["gb_per_s"] for r in rounds),
        "ort_share_of_bandwidth": median(weight_bytes / r["ort_spinning_s"] / 1e9 / r["gb_per_s"] for r in rounds),
    }


def text(table: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The table for people."""
    lines = [f"{options.threads} threads, {options.repeats} rounds in turn, medians; bandwidth read beside each sample"]
    names = ("ours", "ORT spin", "no spin", "ratio", "no spin", "GB/s", "share", "ORT's")
    lines.append(
        f"{'n':>10} " + " ".join(f"{name:>{w}}" for name, w in zip(names, (9, 9, 9, 6, 8, 6, 5, 6), strict=True))
    )
    for r in table:
        lines.append(
            f"{r['n']:>10} {r['ours_ms']:>6.1f} ms {r['ort_spinning_ms']:>6.1f} ms {r['ort_not_spinning_ms']:>6.1f} ms "
            f"{r['ratio_spinning']:>6.2f} {r['ratio_not_spinning']:>8.2f} {r['gb_per_s']:>6.1f} "
            f"{r['share_of_bandwidth']:>5.0%} {r['ort_share_of_bandwidth']:>6.0%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
