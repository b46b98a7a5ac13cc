"""The compiled decoder: segments on one or two processors, memory-mapped weights, KV caches written in place.

Every segment has an entry point for each compiled width (passes/relax/make_entries.py); any number of tokens is fed by
a sequence of them. TVM is imported here only, after the number of threads has been set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.manifest_checks import check_models
from hetero_sd.runtime.model.model_facts import SegmentFacts
from hetero_sd.runtime.model.protocol import ContextFull, Models, NotFiniteError
from hetero_sd.runtime.model.segments import Chain
from hetero_sd.runtime.model.thread_pool import LIBRARY, PoolError, ThreadPool, why_tvms_pool
from hetero_sd.runtime.model.threads import choose_threads, usable_cpus
from hetero_sd.runtime.model.weights import Weights
from targets.backend import HOST, ProcessorFailed, backend
from targets.errors import UserError, last_line


class CompiledModel:
    """One model of a bundle; implements the Model protocol.

    Where another processor cannot be used, or fails while generating, and the bundle has the model for the CPU too, the
    CPU takes over: it is fed the tokens so far, and nothing is lost.
    """

    def __init__(
        self, name: str, bundle: Bundle, huge_pages: bool = False, note: Callable[[str], None] | None = None
    ) -> None:
        """Load the libraries and map the weights of ``bundle.models[name]``.

        Args:
            name: "target" or "draft".
            bundle: the opened bundle.
            huge_pages: ask the kernel for huge pages for the weights.
            note: told, in one line, when the CPU takes over.

        Raises:
            UserError: the libraries or the weights do not fit the description in the manifest, or this machine has no
                usable GPU and the bundle no variant for the CPU.
        """
        facts = check_models(bundle)[name]
        import tvm

        self.name, self.vocab, self.context = name, facts.vocab, facts.context
        self._facts, self._bundle, self._note = facts, bundle, note or (lambda _: None)
        self._widths, self._chunk = facts.widths, facts.prefill_width
        self.widths = tuple(facts.widths)
        self._inputs = {n: _shared_ids(n) for n in {*self._widths, self._chunk}}
        self._tensor = tvm.runtime.tensor
        self._weights = Weights(bundle.path(facts.weights, hashed=False), huge_pages)
        if self._weights.metadata.get("model") != name:
            raise UserError(f"{facts.weights} does not hold the weights of the {name}: copy or build the bundle again")
        self._fed: list[int] = []
        self.threads = choose_threads(None, bundle.plan)
        self.pool: ThreadPool | None = None
        self.why_tvms_pool: str | None = None
        try:
            self._chain = self._load(facts.chain)
        except ProcessorFailed as error:
            wanted = next(s.processor for s in facts.chain if s.processor != HOST)
            if not facts.fallback:
                raise UserError(
                    f"this bundle runs on {backend(wanted).title()}: {error}; `run.py --doctor` says what fixes it"
                ) from None
            self._take_over(f"no usable {wanted.upper()}: {error}")

    @property
    def thread_facts(self) -> dict[str, Any] | None:
        """What runs the CPU kernels: ``threads``, ``pool`` ("ours" or "tvm"), ``why_tvms``, ``worker_share``.

        None where no part of the model runs on the CPU.
        """
        if HOST not in self._chain.devices:
            return None
        counts = None if self.pool is None else self.pool.counts()
        share = counts["worker_tasks"] / counts["tasks"] if counts and counts["tasks"] else None
        pool = "tvm" if self.pool is None else "ours"
        return {"threads": self.threads, "pool": pool, "why_tvms": self.why_tvms_pool, "worker_share": share}

    @property
    def on_fallback(self) -> bool:
        """Whether the CPU took over from another processor."""
        return self._chain.segments is self._facts.fallback

    @property
    def prefill_width(self) -> int:
        """Tokens of a prompt chunk."""
        return self._chunk

    @property
    def processor(self) -> str:
        """The kind of processor it runs on, or "mixed" where it is split."""
        used = list(self._chain.devices)
        return used[0] if len(used) == 1 else "mixed"

    @property
    def gpu_device(self) -> Any:
        """The OpenCL device it uses, whose launches a calibration measures, or None."""
        return self._chain.devices.get("gpu")

    def forward(self, ids: Sequence[int], pos: int) -> npt.NDArray[np.float32]:
        """Logits, float32 [n, vocab]; see :class:`hetero_sd.runtime.model.protocol.Model`."""
        self._check(len(ids), pos)
        rows = [self._step(part, at, 0) for part, at in self._parts(ids, pos)]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def argmax(self, ids: Sequence[int], pos: int) -> npt.NDArray[np.int64]:
        """Best id of each row, int64 [n]."""
        self._check(len(ids), pos)
        rows = [self._step(part, at, 1) for part, at in self._parts(ids, pos)]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def extend(self, ids: Sequence[int], pos: int) -> int:
        """Feed a prompt and return the best id after its last token; the head runs once per chunk."""
        self._check(len(ids), pos)
        best, done = 0, 0
        while done < len(ids):
            part = list(ids[done : done + self._chunk])
            at = pos + done
            if len(part) <= self._widths[-1] or at + self._chunk > self.context:
                part = part[: self._widths[-1]]
                best = int(self._step(part, at, 1)[-1])
            else:
                best = int(self._evaluate(f"prefill_{self._chunk}", part, self._chunk, at, 1, len(part) - 1)[0])
            done += len(part)
        return best

    def _check(self, n: int, pos: int) -> None:
        if n < 1 or pos < 0 or pos + n > self.context:
            raise ContextFull(f"{self.name}: rows {pos} to {pos + n} do not fit a context of {self.context}")

    def _parts(self, ids: Sequence[int], pos: int) -> list[tuple[Sequence[int], int]]:
        """The ids cut into steps of at most the largest width, each with its position."""
        most = self._widths[-1]
        return [(ids[i : i + most], pos + i) for i in range(0, len(ids), most)]

    def _step(self, ids: Sequence[int], pos: int, which: int) -> npt.NDArray[Any]:
        """Rows of the narrowest width that holds ``ids``; where its padding would leave the context, single steps."""
        n = next(w for w in self._widths if w >= len(ids))
        if pos + n > self.context:
            rows = [self._evaluate("step_1", [token], 1, pos + i, which) for i, token in enumerate(ids)]
            return np.concatenate(rows)
        return self._evaluate(f"step_{n}", ids, n, pos, which)[: len(ids)]

    def _evaluate(
        self, entry: str, ids: Sequence[int], width: int, pos: int, which: int, row: int | None = None
    ) -> npt.NDArray[Any]:
        """Logits (``which`` 0) or choices (1) of an entry point; another processor that fails hands over to the CPU.

        A choice below 0 says that a logit of its row is not finite (targets/*/kernels/argmax.py).
        """
        if min(ids) < 0 or max(ids) >= self.vocab:
            raise ValueError(f"token ids must be 0 to {self.vocab - 1}: {list(ids)}")
        numbers, tensor = self._inputs[width]
        numbers[: len(ids)] = ids
        numbers[len(ids) :] = 0  # rows beyond the ids are computed and not used
        chain = self._chain
        try:
            made = chain.run(entry, tensor, pos, row)
            choices: npt.NDArray[Any] = chain.host(made[1])[0]
            rows = choices if which else chain.host(made[0])[0]
        except Exception as error:
            if not chain.accelerators or not self._facts.fallback:
                raise
            self._take_over(f"the {chain.accelerators[0].upper()} failed: {last_line(error)}")
            if pos:
                self.extend(self._fed[:pos], 0)
            return self._evaluate(entry, ids, width, pos, which, row)
        for i, choice in enumerate(choices.tolist()[: len(ids)]):
            if choice < 0:
                raise NotFiniteError(self.name, f" after {pos + 1 + (i if row is None else row)} tokens")
        self._fed[pos:] = ids
        return rows

    def _take_over(self, reason: str) -> None:
        self._chain = self._load(self._facts.fallback)
        self._note(f"{self.name}: {reason}; it runs on the CPU now")

    def _put_pool_under_kernels(self) -> None:
        """Give the loaded CPU library our thread pool, or note why TVM's is used."""
        self.why_tvms_pool = why_tvms_pool(self._bundle)
        if self.why_tvms_pool is not None:
            return
        try:
            self.pool = self.pool or ThreadPool(self._bundle.path(LIBRARY), usable_cpus(), self.threads)
            self.pool.attach(self._bundle.path(self._facts.libraries[HOST]))
        except PoolError as error:
            self.pool, self.why_tvms_pool = None, str(error)

    def _load(self, segments: Sequence[SegmentFacts]) -> Chain:
        """Load a chain and run one step, in which TVM compares every shape and type, and a GPU builds its kernels."""
        chain = Chain(self._bundle, self._facts, segments, self._weights)
        if HOST in chain.devices:
            self._put_pool_under_kernels()
        try:
            chain.host(chain.run("step_1", self._inputs[1][1], 0)[1])
        except Exception as error:
            if chain.accelerators:
                raise ProcessorFailed(last_line(error)) from None
            library = self._facts.libraries[HOST]
            raise UserError(f"{library} and {self._facts.weights} do not fit each other: {last_line(error)}") from None
        return chain


def _shared_ids(width: int) -> tuple[npt.NDArray[np.int64], Any]:
    """A numpy row of ids and the tensor [1, width] over the same memory; making a tensor each time takes 25 us."""
    import tvm

    memory = np.zeros(width + 8, np.int64)
    start = -memory.ctypes.data % 64 // 8  # zero-copy import demands 64 bytes of alignment
    row = memory[start : start + width]
    return row, tvm.runtime.from_dlpack(row.reshape(1, width))


def load_models(bundle: Bundle, huge_pages: bool = False) -> Models:
    """Load the target and, where the bundle has one, the drafter.

    Raises:
        UserError: a file of the bundle is missing, altered or for another machine.
    """

    def note(line: str) -> None:
        print(f"run.py: note: {line}", file=sys.stderr)

    draft = CompiledModel("draft", bundle, huge_pages, note) if "draft" in check_models(bundle) else None
    return Models(CompiledModel("target", bundle, huge_pages, note), draft)
