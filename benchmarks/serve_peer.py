"""llama.cpp as a peer of benchmarks/serve.py: sequences in one context, as its server has slots, without HTTP.

By its Python bindings, as benchmarks/peer_llama_cpp.py says. All prompts are read in one batch, whose last rows' logits
are made, and then each step feeds a token of every sequence and takes the best one.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Answered:
    """Seconds and CPU seconds that some answers took, and their tokens."""

    wall_s: float
    cpu_s: float
    tokens: list[list[int]]


class LlamaCppSlots:
    """Some sequences at a time, with llama.cpp's own defaults but for the KV cache's type."""

    def __init__(self, gguf: Path, sequences: int, context: int, kv: str, threads: int) -> None:
        """Open a GGUF file.

        Args:
            gguf: the model.
            sequences: at a time.
            context: tokens of each.
            kv: float32 or float16.
            threads: for steps and for prompts.
        """
        import llama_cpp

        self._api = llama_cpp
        self._log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._log, None)
        self._model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {gguf}")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        facts = llama_cpp.llama_context_default_params()
        facts.n_ctx, facts.n_seq_max, facts.n_batch = context * sequences, sequences, context * sequences
        facts.n_threads, facts.n_threads_batch = threads, threads
        facts.type_k = facts.type_v = {"float32": llama_cpp.GGML_TYPE_F32, "float16": llama_cpp.GGML_TYPE_F16}[kv]
        self._context = llama_cpp.llama_init_from_model(self._model, facts)
        if not self._context:
            raise SystemExit("llama.cpp cannot make a context of these sizes")
        self._batch = llama_cpp.llama_batch_init(context * sequences, 0, 1)

    def answer(self, prompts: Sequence[Sequence[int]], new: int) -> Answered:
        """So many greedy tokens after each prompt, all prompts together; at most as many as there are sequences."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        begin, begin_cpu = time.perf_counter(), time.process_time()
        fed = [(t, i, s, i == len(p) - 1) for s, p in enumerate(prompts) for i, t in enumerate(p)]
        texts = [[token] for token in self._best(fed)]
        for step in range(new - 1):
            fed = [(texts[s][-1], len(p) + step, s, True) for s, p in enumerate(prompts)]
            for text, token in zip(texts, self._best(fed), strict=True):
                text.append(token)
        return Answered(time.perf_counter() - begin, time.process_time() - begin_cpu, texts)

    def _best(self, fed: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """The best token after each row that is wanted; a row is (token, position, sequence, wanted)."""
        batch: Any = self._batch
        batch.n_tokens = len(fed)
        for i, (token, position, sequence, wanted) in enumerate(fed):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        if self._api.llama_decode(self._context, batch):
            raise SystemExit("llama.cpp cannot compute a step")
        rows = (self._api.llama_get_logits_ith(self._context, i) for i, row in enumerate(fed) if row[3])
        return [int(self._numbers(row).argmax()) for row in rows]

    def _numbers(self, row: Any) -> Any:
        return np.ctypeslib.as_array(ctypes.cast(row, ctypes.POINTER(ctypes.c_float)), (self._vocab,))
