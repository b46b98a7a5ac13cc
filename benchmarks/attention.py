"""What attention takes of a decode step at a long context: the step after N tokens beside the step after none.

    python benchmarks/attention.py [--shape 1b] [--format int8] [--kv float16] [--past 2047] [--threads 2]

Random weights. Steps are taken in turn and the least of each is quoted, as what disturbs a step only lengthens it. What
a step after N tokens takes longer is attention over N keys; all else is the same. With one thread its processor time is
taken: on a machine that others use, a step is longer than what the scheduler gives at a time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Compile, measure, print one line."""
    parser = argparse.ArgumentParser(description="share of attention in a decode step")
    parser.add_argument("--shape", choices=("100m", "1b"), default="1b")
    parser.add_argument("--format", choices=("float16", "int8", "int4"), default="int8", help="of the weights")
    parser.add_argument("--kv", default="float32", help="type of the KV cache")
    parser.add_argument("--past", type=int, default=2047, help="tokens in the KV cache (default 2047)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    from costmodel.format import FLOAT, INT8
    from costmodel.place import Place, ReasonedPlace
    from hetero_sd.compile.build import ModelRequest, Sizes, build_model
    from hetero_sd.compile.context import whole_context
    from hetero_sd.runtime.manifest import Bundle, write_manifest
    from hetero_sd.runtime.model.model import CompiledModel
    from passes.onnx import canonicalise
    from passes.synthetic import LLAMA_1B, LLAMA_100M, write_llama
    from targets.boards import load_board

    board = load_board("host", measure=False)
    context = whole_context(board, options.past + 1)
    with tempfile.TemporaryDirectory() as scratch:
        model, folder = Path(scratch) / "model.onnx", Path(scratch) / "bundle"
        write_llama(model, LLAMA_1B if options.shape == "1b" else LLAMA_100M, options.format)
        decoder = canonicalise(model, context)
        activations = INT8 if decoder.facts.int8_activations else FLOAT
        core, sizes = board.clusters[0].core, Sizes(context, (1,), 32)
        request = ModelRequest(
            *("target", decoder, core, ReasonedPlace(Place("cpu")), sizes), activations=activations, kv=options.kv
        )
        built = build_model(request, folder)
        write_manifest(folder, {"target": built.facts})
        compiled = CompiledModel("target", Bundle(folder), huge_pages=True)
        compiled.extend([1] * options.past, 0)  # what lies in a new cache need not be numbers
        clock = time.process_time if options.threads == 1 else time.perf_counter
        least: dict[int, float] = {}
        end = time.monotonic() + options.seconds
        while time.monotonic() < end:
            for past in (options.past, options.past - 1, 0, 1):
                start = clock()
                compiled.argmax([1], past)
                where = options.past if past > 1 else 0
                least[where] = min(least.get(where, 1e9), clock() - start)
    after, before = least[options.past], least[0]
    print(
        f"{options.shape} {options.format}, KV cache {options.kv} ({built.facts.cache_bytes / 1e6:.0f} MB), "
        f"{options.threads} threads: {1e3 * after:.1f} ms after {options.past} tokens, {1e3 * before:.1f} ms after "
        f"none; attention takes {1 - before / after:.1%}"
    )


if __name__ == "__main__":
    main()
