"""llama.cpp as a peer of benchmarks/decode.py, by its Python bindings: the package llama-cpp-python.

Installed from source it is built for the machine. Another build of the same version serves as well: LLAMA_CPP_LIB_PATH
names its folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steps import CONTEXT, ROWS, WIDTHS, clock_of, samples


class LlamaCpp:
    """llama.cpp with its own defaults."""

    name = "llama.cpp"

    def __init__(self, gguf: Path, threads: int) -> None:
        """Open a GGUF file."""
        import llama_cpp

        self._api, self._clock = llama_cpp, clock_of(threads)
        self._log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._log, None)
        self._model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {gguf}")
        facts = llama_cpp.llama_context_default_params()
        facts.n_ctx, facts.n_threads, facts.n_threads_batch = CONTEXT, threads, threads
        self._context = llama_cpp.llama_init_from_model(self._model, facts)
        self._memory = llama_cpp.llama_get_memory(self._context)

    def step(self, n: int, past: int) -> None:
        """Compute n tokens that follow `past` tokens."""
        if self._api.llama_decode(self._context, self._batch(n, past)):
            raise SystemExit("llama.cpp cannot compute a step")

    def rewind(self, length: int) -> None:
        """Forget all tokens after so many."""
        self._api.llama_memory_seq_rm(self._memory, 0, length, -1)

    def times(self, row: str) -> list[float]:
        """Seconds of a few runs of a row of ROWS."""
        n, past = ROWS[row]
        self.rewind(0)
        if past:
            self.step(past, 0)
        batch = self._batch(n, past)
        decode, context = self._api.llama_decode, self._context
        return samples(self._clock, lambda: decode(context, batch), lambda: self.rewind(past))

    def _batch(self, n: int, past: int) -> Any:
        batch = self._api.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        for i in range(n):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = 1, past + i, 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = n <= max(WIDTHS) or i == n - 1
        return batch
