"""The compiled decoder: segments on one or two processors, memory-mapped weights, KV caches written in place.

Every segment has an entry point for each compiled width (passes/relax/make_entries.py); any number of tokens is fed by
a sequence of them. TVM is imported where it is used, after the number of threads has been set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodel.format import INT8
from costmodel.schema.model import SegmentFacts
from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.manifest_checks import check_models
from hetero_sd.runtime.model.first_rows import first_rows, put_first_rows
from hetero_sd.runtime.model.protocol import (
    CHOICE,
    ContextFull,
    Model,
    Models,
    Outputs,
    Pending,
    Row,
    SlotCache,
)
from hetero_sd.runtime.model.segments import Chain
from hetero_sd.runtime.model.slots import RowSteps, SlotModel
from hetero_sd.runtime.model.steps import RunningStep, Steps
from hetero_sd.runtime.model.thread_pool import PoolError, ThreadPool, pool_of, why_tvms_pool
from hetero_sd.runtime.model.threads import choose_prompt_threads, choose_threads, usable_cpus
from hetero_sd.runtime.model.weights import Weights
from targets.backend import HOST, ProcessorFailed, backend
from targets.errors import UserError, last_line


class CompiledModel(Model):
    """One model of a bundle; implements the Model protocol.

    Where another processor cannot be used, or fails while generating, and the bundle has the model for the CPU too, the
    CPU takes over: it is fed the tokens so far, and nothing is lost.
    """

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        huge_pages: bool = False,
        note: Callable[[str], None] | None = None,
        weights: Weights | None = None,
    ) -> None:
        """Load the libraries and map the weights of ``bundle.models[name]``.

        Args:
            name: "target" or "draft".
            bundle: the opened bundle.
            huge_pages: ask the kernel for huge pages for the weights.
            note: told, in one line, when the CPU takes over.
            weights: where another model has mapped them: an early exit reads the target's.

        Raises:
            UserError: the libraries or the weights do not fit the description in the manifest, or this machine has no
                usable GPU and the bundle no variant for the CPU.
        """
        facts = check_models(bundle)[name]
        self.name, self.vocab, self.context = name, facts.vocab, facts.context
        self._facts, self._bundle, self._note = facts, bundle, note or (lambda _: None)
        self.widths, self.prefill_widths = tuple(facts.widths), facts.prefill_widths
        self.int8_activations, self.kv = facts.activations == INT8, facts.caches.dtype
        self.quantised = facts.quantised
        self.slots = facts.slots
        self._shares_libraries = any(model.early_exit for model in bundle.models.values())
        self.row_widths = (1, *facts.row_widths)
        self.read_widths = tuple(sorted({*facts.widths, *facts.prefill_widths}))
        self._row_steps = RowSteps(facts.row_widths) if facts.row_widths else None
        self._steps = Steps(name, self.widths, facts.prefill_widths, facts.context, self._before_call)
        self.weights = weights or Weights(bundle.path(facts.weights, hashed=False), huge_pages)
        owner = "target" if facts.weights == bundle.target.weights else name
        if self.weights.metadata.get("model") != owner:
            raise UserError(f"{facts.weights} does not hold the weights of the {name}: copy or build the bundle again")
        self._fed: list[list[int]] = [[] for _ in range(facts.slots)]
        self._running: RunningStep | None = None
        self._shared: tuple[CompiledModel, Chain] | None = None  # in whose caches it writes
        self.threads = choose_threads(None, bundle.plan)
        self.prompt_threads = self._most_prompt_threads = choose_prompt_threads(self.threads, bundle.plan)
        self.pool: ThreadPool | None = None
        self._cpus: list[int] | None = None  # of the kernels' threads; None is where the thread is that loads
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
    def copied_s(self) -> float:
        """See :class:`hetero_sd.runtime.model.protocol.Model`."""
        return self._chain.copied_s

    @property
    def cache(self) -> SlotCache | None:
        """The rows of its slots, where it has several."""
        return self._chain.pages

    @property
    def on_fallback(self) -> bool:
        """Whether the CPU took over from another processor."""
        return self._chain.segments is self._facts.fallback

    @property
    def processor(self) -> str:
        """The kind of processor it runs on, or "mixed" where it is split."""
        used = list(self._chain.devices)
        return used[0] if len(used) == 1 else "mixed"

    @property
    def gpu_device(self) -> Any:
        """The OpenCL device it uses, whose launches a calibration measures, or None."""
        return self._chain.devices.get("gpu")

    def stay_on(self, cpus: Sequence[int], threads: int | None = None) -> None:
        """Run the CPU kernels on these CPUs, with no more threads; the calling thread stays where it is.

        ``threads`` None keeps their number, as far as there are CPUs for them.
        """
        self._cpus, self.threads = list(cpus), min(threads or self.threads, len(cpus))
        self.prompt_threads = max(self.threads, min(self._most_prompt_threads, len(cpus)))
        if HOST in self._chain.devices:
            if self.pool is not None:
                self.pool.close()
            self.pool = None
            self._put_pool_under_kernels()

    def read_with(self, threads: int) -> None:
        """Read prompts with so many threads, at most those that the pool was opened with."""
        self.prompt_threads = self._most_prompt_threads = threads
        if self.pool is not None:
            self.pool.set(self.threads)

    def share_rows(self, whole: object) -> bool:
        """Write into the KV caches of the model whose weights it reads; None: into its own again.

        False where that is not possible: another kind of model, other weights, or layers on different processors.
        """
        if whole is not None and (not isinstance(whole, CompiledModel) or whole.weights is not self.weights):
            return False
        shared = self._chain.share_rows(None if whole is None else whole._chain)
        self._shared = (whole, whole._chain) if shared and whole is not None else None
        return shared

    def slot(self, slot: int) -> Model:
        """See :meth:`hetero_sd.runtime.model.protocol.Slots.slot`; the model itself is its first one."""
        return SlotModel(self, slot) if slot else self

    def rows(self, rows: Sequence[Row]) -> Outputs:
        """See :meth:`hetero_sd.runtime.model.protocol.Slots.rows`; of a model with several slots."""
        assert self._row_steps is not None
        for row in rows:
            self._check([row.token], row.pos, row.slot)
        if len({(row.slot, row.pos) for row in rows}) < len(rows):
            raise ValueError(f"two rows at one place: {list(rows)}")
        if self._running is not None:
            self._running.settle()
        self._before_call(False)
        try:
            made = self._row_steps.run(self._chain, rows)
        except Exception as error:
            self._recover(error)
            made = self._row_steps.run(self._chain, rows)
        for row in rows:
            self._fed[row.slot][row.pos :] = [row.token]
        return made

    def submit(
        self, ids: Sequence[int], pos: int, outputs: Sequence[str] = (CHOICE,), last: bool = False, slot: int = 0
    ) -> Pending:
        """See :meth:`hetero_sd.runtime.model.protocol.Model.submit`; on the CPU the step has ended when it returns."""
        self._check(ids, pos, slot)
        if self._running is not None:
            self._running.settle()
        if self._shared is not None:
            self._follow(*self._shared)
        self._fed[slot][pos:] = ids

        def recover(error: Exception, pos: int) -> None:
            self._recover(error, slot, pos)

        self._running = RunningStep(self._steps, lambda: self._chain, recover, ids, pos, outputs, last, slot)
        return self._running

    def rows_layout(self, count: int) -> list[tuple[str, tuple[int, ...]]]:
        """See :meth:`hetero_sd.runtime.model.protocol.Model.rows_layout`."""
        return [(str(rows.dtype), rows.shape) for rows in first_rows(self._chain, self.context, count)]

    def read_rows(self, count: int) -> list[npt.NDArray[Any]]:
        """See :meth:`hetero_sd.runtime.model.protocol.Model.read_rows`."""
        if self._running is not None:
            self._running.settle()
        return [np.array(rows) for rows in first_rows(self._chain, self.context, count)]

    def write_rows(self, ids: Sequence[int], rows: Sequence[npt.NDArray[Any]]) -> None:
        """See :meth:`hetero_sd.runtime.model.protocol.Model.write_rows`."""
        if self._running is not None:
            self._running.settle()
        put_first_rows(self._chain, rows)
        self._fed[0] = list(ids)

    def _before_call(self, prompt: bool) -> None:
        """Give the kernels that follow their threads: its own, and for chunks of a prompt others than for steps."""
        threads = self.prompt_threads if prompt else self.threads
        if self.pool is not None and self._shares_libraries:
            self.pool.use()
        if self.pool is not None and self.prompt_threads != self.threads and self.pool.threads != threads:
            self.pool.set(threads)

    def _check(self, ids: Sequence[int], pos: int, slot: int) -> None:
        """Refuse what the kernels would not check."""
        if len(ids) < 1 or pos < 0 or pos + len(ids) > self.context:
            raise ContextFull(f"{self.name}: rows {pos} to {pos + len(ids)} do not fit a context of {self.context}")
        if min(ids) < 0 or max(ids) >= self.vocab:
            raise ValueError(f"token ids must be 0 to {self.vocab - 1}: {list(ids)}")
        if not 0 <= slot < self.slots:
            raise ValueError(f"slots are 0 to {self.slots - 1}: {slot}")

    def _recover(self, error: Exception, slot: int | None = None, pos: int = 0) -> None:
        """Let the CPU take over from a processor that failed, with the slots' texts, `slot`'s up to `pos`, or raise."""
        if not self._chain.accelerators or not self._facts.fallback:
            raise error
        if self._shared is not None:  # what its caches hold only the model knows that they belong to
            raise ProcessorFailed(last_line(error)) from None
        self._take_over(f"the {self._chain.accelerators[0].upper()} failed: {last_line(error)}")
        for number, text in enumerate(self._fed):
            if fed := text[:pos] if number == slot else text:
                calls = self._steps.plan(fed, 0, last=True, slot=number, fills=True)
                self._steps.fetch(self._chain, calls, self._steps.start(self._chain, calls), ())

    def _follow(self, whole: CompiledModel, chain: Chain) -> None:
        """Go where the model went whose caches it shares.

        Raises:
            ProcessorFailed: it cannot.
        """
        if whole._chain is chain:
            return
        if not self.on_fallback and self._chain.accelerators and self._facts.fallback:
            self._take_over("the target left the processor whose caches it shares")
        if not self.share_rows(whole):
            raise ProcessorFailed("the target left the processor whose caches it shares")

    def _take_over(self, reason: str) -> None:
        for processor in {s.processor for s in self._facts.chain} - {HOST}:
            self.weights.leave(processor)
        self._chain = self._load(self._facts.fallback)
        self._note(f"{self.name}: {reason}; it runs on the CPU now")

    def _put_pool_under_kernels(self) -> None:
        """Give the loaded CPU library our thread pool, or note why TVM's is used."""
        self.why_tvms_pool = why_tvms_pool(self._bundle)
        if self.why_tvms_pool is not None:
            return
        try:
            cpus = usable_cpus() if self._cpus is None else self._cpus
            most = max(self.threads, self.prompt_threads)
            self.pool = self.pool or pool_of(self._bundle, cpus, self.threads, most)
            self.pool.attach(self._bundle.path(self._facts.libraries[HOST]), self._shares_libraries)
        except PoolError as error:
            self.pool, self.why_tvms_pool = None, str(error)

    def _load(self, segments: Sequence[SegmentFacts]) -> Chain:
        """Load a chain and run one step, in which TVM compares every shape and type, and a GPU builds its kernels."""
        chain = Chain(self._bundle, self._facts, segments, self.weights)
        if HOST in chain.devices:
            self._put_pool_under_kernels()
        try:
            self._steps.try_one(chain)
        except Exception as error:
            if chain.accelerators:
                raise ProcessorFailed(last_line(error)) from None
            library = self._facts.libraries[HOST]
            raise UserError(f"{library} and {self._facts.weights} do not fit each other: {last_line(error)}") from None
        return chain


def load_models(bundle: Bundle, huge_pages: bool = False) -> Models:
    """Load the target and, where the bundle has one, the drafter.

    Raises:
        UserError: a file of the bundle is missing, altered or for another machine.
    """

    def note(line: str) -> None:
        print(f"run.py: note: {line}", file=sys.stderr)

    draft = CompiledModel("draft", bundle, huge_pages, note) if "draft" in check_models(bundle) else None
    mapped = draft.weights if draft is not None and bundle.models["draft"].weights == bundle.target.weights else None
    return Models(CompiledModel("target", bundle, huge_pages, note, mapped), draft)
