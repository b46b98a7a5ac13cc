"""Several requests together, in slots, against the same requests one after the other, on one bundle.

    python benchmarks/serve.py [--requests 8] [--format int8] [--kv float16] [--threads 2] [--repeats 3]
                               [--model FILE.onnx] [--llama-cpp] [--llama-server PATH] [--json]

The engines of `run.py --serve` without HTTP: random prompts, greedy, 64 tokens each. In turn, in one process: one after
the other, together, and together while one more prompt of 192 tokens is read beside them. The texts of all three are
compared. Then as many requests that begin with the same 512 tokens, with their rows in common and without: how many
tokens of the prompts are read. Quote ratios of one run: the machine is shared and absolute times drift. Where others
compute, too, a step that is longer than a time slice waits for them in its middle; CPU time with one thread then says
more than the clock. Below it stands what the cost model's rounds (costmodel/batch_throughput.py) make of the CPU times
of single calls. With --llama-cpp the same requests go to llama.cpp, too, in the same rounds (serve_peer.py), on a GGUF
file of the same weights. With --llama-server they go over HTTP to our server and to llama.cpp's, in turn
(serve_http.py): of both tokens/s, and the time between the tokens of a text as a client sees it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf_llama import write_gguf
from serve_http import llama_server, over_http, own_server
from serve_peer import LlamaCppSlots
from serve_requests import CONTEXT, NEW, PROMPT, engine_counts, forget, measure, session_of
from serve_table import http_lines, medians_of, prefix_lines, ratios_of, together_lines

from targets.kv_format import DEFAULT_KV, KV_FORMATS

if TYPE_CHECKING:
    from costmodel.schema.batch import BatchPrediction
    from hetero_sd.runtime.model.model import CompiledModel
    from hetero_sd.runtime.model.protocol import Slots
    from hetero_sd.runtime.session import Session

LONG_PROMPT = 192
SHARED, OWN = 512, 16  # tokens that prompts begin with in common, and those after them


def gaps_ms(times: Sequence[Sequence[float]]) -> list[float]:
    """Milliseconds between the tokens of a text, of all texts."""
    return [1e3 * (b - a) for text in times for a, b in pairwise(text)]


def rounds(session: Session, requests: int, repeats: int, peer: LlamaCppSlots | None = None) -> list[dict[str, float]]:
    """One after the other, together, and together beside a long prompt, and the peer's; in turn."""
    from costmodel.batch_throughput import Requests, throughput
    from hetero_sd.runtime.model.model import CompiledModel
    from hetero_sd.runtime.serve.batch_engine import BatchEngine
    from hetero_sd.runtime.serve.session_engine import SessionEngine

    assert isinstance(session.slots, CompiledModel)
    found = []
    for repeat in range(repeats + 1):
        rng = np.random.default_rng(repeat)
        vocab = session.models.target.vocab
        prompts = [rng.integers(0, vocab, PROMPT).tolist() for _ in range(requests)]
        longer = rng.integers(0, vocab, LONG_PROMPT).tolist()
        alone = measure(SessionEngine(session, requests, 600.0), prompts)
        forget(session)
        batch = BatchEngine(session, session.slots, requests, 600.0, drafts=True)
        together = measure(batch, prompts)
        counted = throughput(Requests(requests, PROMPT, NEW), requests, measured_calls(session.slots))
        beside = measure(BatchEngine(session, session.slots, requests, 600.0, drafts=True), [*prompts[1:], longer])
        if together.texts != alone.texts or beside.texts[:-1] != alone.texts[1:]:
            raise SystemExit("the texts differ")
        theirs = None if peer is None else peer.answer(prompts, NEW)
        if not repeat:
            continue  # the first one writes into new memory
        found.append(
            {
                "alone_tokens_per_s": requests * NEW / alone.wall_s,
                "together_tokens_per_s": requests * NEW / together.wall_s,
                "alone_cpu_ms": 1e3 * alone.cpu_s / (requests * NEW),
                "together_cpu_ms": 1e3 * together.cpu_s / (requests * NEW),
                "alone_gap_ms": statistics.median(gaps_ms(alone.times)),
                "together_gap_ms": statistics.median(gaps_ms(together.times)),
                "together_longest_gap_ms": max(gaps_ms(together.times)),
                "beside_a_prompt_longest_gap_ms": max(gaps_ms(beside.times[:-1])),
                "counted_out_cpu_ms": 1e3 / counted.tokens_per_s,
                "counted_out_alone_cpu_ms": 1e3 / counted.alone_tokens_per_s,
                "scheduling_share": engine_counts(batch).scheduling_share,
                "calls_share": engine_counts(batch).calls_s / engine_counts(batch).busy_s,
            }
        )
        if theirs is not None:
            found[-1] |= {
                "llama_cpp_tokens_per_s": requests * NEW / theirs.wall_s,
                "llama_cpp_cpu_ms": 1e3 * theirs.cpu_s / (requests * NEW),
            }
    return found


def shared_prefix(session: Session, requests: int, repeats: int) -> list[dict[str, float]]:
    """Prompts with a beginning in common, with its rows in common and in turn without."""
    from hetero_sd.runtime.serve.batch_engine import BatchEngine

    assert session.slots is not None
    found = []
    for repeat in range(repeats + 1):
        rng = np.random.default_rng(100 + repeat)
        vocab = session.models.target.vocab
        beginning = rng.integers(0, vocab, SHARED).tolist()
        prompts = [[*beginning, *rng.integers(0, vocab, OWN).tolist()] for _ in range(requests)]
        measured, counts = [], []
        for slots in (session.slots, WithoutSharing(session.slots)):
            forget(session)
            engine = BatchEngine(session, slots, requests, 600.0)
            measured.append(measure(engine, prompts))
            counts.append(engine.snapshot().tokens)
        shared, apart = measured
        if shared.texts != apart.texts:
            raise SystemExit("the texts differ")
        if not repeat:
            continue
        read, all_of_them = counts[0].prompt - counts[0].kept, counts[1].prompt - counts[1].kept
        found.append(
            {
                "prompt_tokens_read_apart": all_of_them,
                "prompt_tokens_read": read,
                "prefix_saved": 1 - (read - requests * OWN) / (all_of_them - requests * OWN),
                "apart_s": apart.wall_s,
                "in_common_s": shared.wall_s,
                "apart_cpu_s": apart.cpu_s,
                "in_common_cpu_s": shared.cpu_s,
            }
        )
    return found


class WithoutSharing:
    """Slots whose rows no other slot can have."""

    cache = None

    def __init__(self, slots: Slots) -> None:
        """Wrap the slots of a model."""
        self._slots = slots

    def __getattr__(self, name: str) -> Any:
        """All else is theirs."""
        return getattr(self._slots, name)


def measured_calls(target: CompiledModel, repeats: int = 7) -> BatchPrediction:
    """CPU time of a model's calls after 16 and after 80 tokens: the median of some each, the widths in turn."""
    from costmodel.schema.batch import BatchPrediction
    from hetero_sd.runtime.model.protocol import Row

    begin, end = 16, 80
    for slot in range(target.slots):
        target.slot(slot).submit([1] * (end + target.prefill_widths[0]), 0, last=True).result()
    times: dict[tuple[str, int, int], list[float]] = {}
    for _ in range(repeats):
        for past in (begin, end):
            for n in target.row_widths:
                rows = [Row(slot, past, 1) for slot in range(n)]
                times.setdefault(("rows", n, past), []).append(seconds_of(lambda rows=rows: target.rows(rows)))
            for n in target.read_widths:
                feed = lambda n=n, past=past: target.submit([1] * n, past, last=True).result()  # noqa: E731
                times.setdefault(("read", n, past), []).append(seconds_of(feed))

    def line(kind: str, n: int, rows: int) -> tuple[float, float]:
        low, high = (statistics.median(times[kind, n, past]) for past in (begin, end))
        token = max(0.0, high - low) / (end - begin)
        return low - token * begin, token / rows

    return BatchPrediction(
        {n: line("rows", n, n) for n in target.row_widths}, {n: line("read", n, 1) for n in target.read_widths}
    )


def seconds_of(call: Callable[[], object]) -> float:
    """CPU time that it takes."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description="requests in slots against one after the other")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3, help="rounds in turn (default 3)")
    parser.add_argument("--model", type=Path, help="an ONNX decoder; default: 100M parameters, random")
    parser.add_argument("--format", choices=("float32", "int8", "int4"), default="int8", help="of those weights")
    parser.add_argument("--kv", choices=KV_FORMATS, default=DEFAULT_KV, help="of the KV caches (default float32)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--llama-cpp", action="store_true", help="beside llama.cpp, by its Python bindings")
    parser.add_argument("--llama-server", type=Path, metavar="PATH", help="beside that server of llama.cpp, by HTTP")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    peers = options.llama_cpp or options.llama_server is not None
    if peers and (options.model is not None or options.kv not in ("float32", "float16")):
        parser.error("llama.cpp takes the weights that are made here, and a KV cache of floats")
    if options.llama_server is not None and not os.access(options.llama_server, os.X_OK):
        parser.error(f"--llama-server {options.llama_server}: there is no such program")
    if options.llama_cpp and importlib.util.find_spec("llama_cpp") is None:
        parser.error("llama.cpp's bindings are not installed; pip install llama-cpp-python")
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    from passes.synthetic import LLAMA_100M, write_llama
    from targets.boards import load_board

    with tempfile.TemporaryDirectory() as scratch:
        model = options.model
        if model is None:
            model = Path(scratch) / "llama100m.onnx"
            write_llama(model, LLAMA_100M, options.format)
        session = session_of(model, Path(scratch) / "bundle", options.requests, options.kv)
        peer, gguf = None, Path(scratch) / "llama100m.gguf"
        if peers:
            write_gguf(model, LLAMA_100M, gguf, vocabulary=True)
        if options.llama_cpp:
            peer = LlamaCppSlots(gguf, options.requests, CONTEXT, options.kv, options.threads)
        measured = rounds(session, options.requests, options.repeats, peer)
        prefixes, http = shared_prefix(session, options.requests, options.repeats), []
        if options.llama_server is not None:
            sizes = options.requests, CONTEXT, options.kv, options.threads
            with own_server(Path(scratch) / "bundle") as ours, llama_server(options.llama_server, gguf, *sizes) as its:
                http = over_http(ours, its, LLAMA_100M.vocab, options.requests, options.repeats)
    core = load_board("host", measure=False).clusters[0].core.name
    if options.json:
        found = {"core": core, "rounds": measured, "shared_prefix": prefixes, "http": http}
        found |= {"median": medians_of(measured), "ratios": ratios_of(measured)}
        print(json.dumps(found, indent=1))
        return
    weights = options.format if options.model is None else options.model.name
    said = f"{core}, {options.threads} threads, {weights}, KV {options.kv}"
    print(f"{said}: {options.requests} requests of {PROMPT} + {NEW} tokens, {options.repeats} rounds in turn, medians")
    print(*together_lines(measured, LONG_PROMPT), sep="\n")
    print(f"{options.requests} prompts of {SHARED} tokens in common and {OWN} of their own, {NEW} tokens written")
    print(*prefix_lines(prefixes), *http_lines(http), sep="\n")
    median = medians_of(measured)
    shares = 100 * median["scheduling_share"], 100 * median["calls_share"]
    print(f"of the time together, scheduling takes {shares[0]:.2f} %, the target's calls {shares[1]:.1f} %")


if __name__ == "__main__":
    main()
