"""`long_text.py BUNDLE LIBRARY CONTEXT`: what 10,000 tokens on a GPU leave behind, as JSON.

Buffers, bytes on the device and bytes of the heap in use, each as a difference over those tokens; and the same
differences once something is kept on purpose. Python's small objects count where PYTHONMALLOC is `malloc`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tvm
from heap import heap_bytes

from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.model.model import load_models
from targets.opencl import interface as opencl
from targets.opencl import runtime

WARM_UP, TOKENS, BUFFERS, BYTES_PER_TOKEN = 100, 10_000, 3, 100


def main(bundle: Path, library: Path, context: int) -> dict[str, int | bool]:
    runtime.load(library)
    opencl.set_cache_folder(None)
    target = load_models(Bundle(bundle)).target

    def generate(tokens: int) -> list[int]:
        token, made = 1, []
        for i in range(tokens):
            token = int(target.argmax([token], i % context)[0])
            made.append(token)
            token = 1 if i % context == context - 1 else token
        return made

    first = generate(WARM_UP * context)
    held, heap = opencl.memory(), heap_bytes()
    same = generate(TOKENS)[: len(first)] == first
    grown, grown_heap = opencl.memory(), heap_bytes()
    buffers = [tvm.runtime.empty((64,), "float32", tvm.opencl()) for _ in range(BUFFERS)]
    texts = [bytes([i % 256]) * BYTES_PER_TOKEN for i in range(TOKENS)]
    control, control_heap = opencl.memory(), heap_bytes()
    assert (len(buffers), len(texts)) == (BUFFERS, TOKENS)
    return {
        "same": same,
        "buffers": grown["buffers"] - held["buffers"],
        "device_bytes": grown["bytes"] - held["bytes"],
        "heap_bytes": grown_heap - heap,
        "control_buffers": control["buffers"] - grown["buffers"],
        "control_heap_bytes": control_heap - grown_heap,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
