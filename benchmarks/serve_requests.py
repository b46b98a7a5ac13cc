"""Requests to an engine of `run.py --serve`, without HTTP: a bundle with slots, prompts, and what answering takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.kv_format import DEFAULT_KV

if TYPE_CHECKING:
    from hetero_sd.runtime.serve.batch_counts import BatchCounts
    from hetero_sd.runtime.serve.batch_engine import BatchEngine
    from hetero_sd.runtime.session import Session

CONTEXT, CHUNK, PROMPT, NEW = 640, 32, 64, 64


def session_of(model: Path, folder: Path, slots: int, kv: str = DEFAULT_KV) -> Session:
    """Compile the file for this machine, and load it without a tokenizer: every token is a piece."""
    from costmodel.format import FLOAT, INT8
    from costmodel.place import Place, ReasonedPlace
    from hetero_sd.compile.build import ModelRequest, Sizes, build_model
    from hetero_sd.runtime.manifest import write_manifest
    from passes.onnx import canonicalise
    from targets.boards import load_board

    core, sizes = load_board("host", measure=False).clusters[0].core, Sizes(CONTEXT, (1, 8), CHUNK, slots)
    decoder = canonicalise(model, CONTEXT)
    activations = INT8 if decoder.facts.int8_activations else FLOAT
    place = ReasonedPlace(Place("cpu"))
    built = build_model(ModelRequest("target", decoder, core, place, sizes, activations=activations, kv=kv), folder)
    write_manifest(folder, {"target": built.facts})
    return load_session(folder)


def load_session(folder: Path) -> Session:
    """The bundle that `session_of` made."""
    from hetero_sd.runtime.manifest import Bundle
    from hetero_sd.runtime.model.kept_prefix import kept_prefixes
    from hetero_sd.runtime.model.model import CompiledModel
    from hetero_sd.runtime.model.protocol import Models
    from hetero_sd.runtime.session import Session

    target = CompiledModel("target", Bundle(folder), huge_pages=True)
    text: Any = Numbers()
    return Session(kept_prefixes(Models(target)), text, slots=target)


class Numbers:
    """Stands for a tokenizer: the text of a token is its number, so that each is a piece."""

    def decode(self, ids: Sequence[int]) -> str:
        """The numbers."""
        return "".join(f" {i}" for i in ids)


@dataclass(frozen=True)
class Measured:
    """What answering some prompts took: seconds, CPU seconds, when each token of each text came, and the texts."""

    wall_s: float
    cpu_s: float
    times: list[list[float]]
    texts: list[str]


def measure(engine: Any, prompts: Sequence[list[int]]) -> Measured:
    """Answer prompts that all wait when the engine starts."""
    from hetero_sd.runtime.serve.engine import Ended, Failed, GenerationRequest, TextPiece

    times: list[list[float]] = [[] for _ in prompts]
    texts, left, failed = [""] * len(prompts), len(prompts), list[str]()

    def deliver_to(i: int) -> Callable[[Any], None]:
        def deliver(event: Any) -> None:
            nonlocal left
            if isinstance(event, TextPiece):
                times[i].append(time.perf_counter())
                texts[i] += event.text
            if isinstance(event, Failed):
                failed.append(event.message)
            left -= isinstance(event, Ended)
            if left == 0 or failed:
                engine.stop()

        return deliver

    for i, prompt in enumerate(prompts):
        engine.submit(GenerationRequest(prompt, {"max_new_tokens": NEW}), deliver_to(i))
    begin, begin_cpu = time.perf_counter(), time.process_time()
    engine.run()
    if failed:
        raise SystemExit(failed[0])
    return Measured(time.perf_counter() - begin, time.process_time() - begin_cpu, times, texts)


def forget(session: Session) -> None:
    """Let no engine begin with what the session has read."""
    target: Any = session.models.target
    target.forget(0)


def engine_counts(engine: BatchEngine) -> BatchCounts:
    """What its rounds did."""
    counts = engine.snapshot().batch
    assert counts is not None
    return counts
