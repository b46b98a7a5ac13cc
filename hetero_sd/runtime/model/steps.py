"""Steps of any number of tokens: a sequence of calls of the compiled entry points, started and then waited for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodel.prompt_chunks import next_chunk
from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, NotFiniteError, Outputs
from hetero_sd.runtime.model.segments import FILL, Chain


@dataclass(frozen=True)
class Call:
    """A call of an entry point.

    Attributes:
        entry: its name, without the prefix of a segment.
        ids: tokens, at most `width`.
        width: rows that it computes.
        pos: rows of the caches before.
        row: of a prompt chunk, the row that logits are computed for.
        slot: of the caches.
        fills: it writes caches only.
    """

    entry: str
    ids: list[int]
    width: int
    pos: int
    row: int | None = None
    slot: int = 0
    fills: bool = False

    @property
    def rows(self) -> int:
        """Rows of its outputs that count."""
        return len(self.ids) if self.row is None else 1


class Steps:
    """What a model of some compiled widths does for a step; `plan`, `start`, `fetch` in that order."""

    def __init__(
        self,
        name: str,
        widths: Sequence[int],
        chunks: Sequence[int],
        context: int,
        before: Callable[[bool], None] = lambda prompt: None,
    ) -> None:
        """Make the inputs of every entry point.

        Args:
            name: of the model, for messages.
            widths: entry points step_<n>, ascending; 1 is among them.
            chunks: entry points prefill_<n> and fill_<n>, ascending.
            context: rows of the caches.
            before: told, before a call, whether it reads a chunk of a prompt.
        """
        self._before = before
        self._name, self._widths, self._chunks, self._context = name, widths, chunks, context
        self._inputs = {n: shared_numbers(1, n) for n in {*widths, *chunks}}

    def start(self, chain: Chain, calls: Sequence[Call]) -> list[tuple[Any, ...]]:
        """What calls of entry points give (Chain.run), as tensors of the processor that computes them."""
        made = []
        for call in calls:
            numbers, tensor = self._inputs[call.width]
            numbers[: len(call.ids)] = call.ids
            numbers[len(call.ids) :] = 0  # rows beyond the ids are computed and not used
            self._before(call.fills or call.row is not None)
            made.append(chain.run(call.entry, tensor, call.pos, call.row, call.slot))
        return made

    def fetch(
        self, chain: Chain, calls: Sequence[Call], made: Sequence[tuple[Any, ...]], outputs: Sequence[str]
    ) -> list[Outputs]:
        """Wait for calls and return their rows that count, of those that have any.

        A choice below 0 says that a logit of its row is not finite (targets/*/kernels/argmax.py).
        """
        fetched: list[Outputs] = []
        for call, tensors in zip(calls, made, strict=True):
            if call.fills:
                chain.wait(tensors[0])
                continue
            logits, choice = tensors
            rows = call.rows
            choices = chain.host(choice)[0][:rows]
            for i, best in enumerate(choices.tolist()):
                if best < 0:
                    row = i if call.row is None else call.row
                    raise NotFiniteError(self._name, f" after {call.pos + 1 + row} tokens")
            fetched.append({CHOICE: choices, **({LOGITS: chain.host(logits)[0][:rows]} if LOGITS in outputs else {})})
        return fetched

    def plan(self, ids: Sequence[int], pos: int, last: bool, slot: int = 0, fills: bool = False) -> list[Call]:
        """The calls of entry points that feed ids.

        Args:
            ids: the tokens.
            pos: rows of the caches before them.
            last: the last row is wanted, so long texts go through the prompt's entry points.
            slot: of the caches.
            fills: no row is wanted.
        """
        calls, done, most = list[Call](), 0, self._widths[-1]
        while done < len(ids):
            left, at = len(ids) - done, pos + done
            chunks = [n for n in self._chunks if at + n <= self._context]
            if not (last or fills) or left <= most or not chunks:
                part = list(ids[done : done + most])
                calls += self._narrow(part, at, slot)
            else:
                n = next_chunk(left, chunks)
                part = list(ids[done : done + n])
                if len(part) == left and not fills:
                    calls.append(Call(f"prefill_{n}", part, n, at, left - 1, slot))
                else:
                    calls.append(Call(f"{FILL}{n}", part, n, at, slot=slot, fills=True))
            done += len(part)
        return calls

    def _narrow(self, ids: list[int], pos: int, slot: int) -> list[Call]:
        """The narrowest width that holds ``ids``; where its padding would leave the context, single steps."""
        n = next(w for w in self._widths if w >= len(ids))
        if pos + n > self._context:
            return [Call("step_1", [token], 1, pos + i, slot=slot) for i, token in enumerate(ids)]
        return [Call(f"step_{n}", ids, n, pos, slot=slot)]

    def try_one(self, chain: Chain) -> None:
        """Run one token and wait: TVM compares every shape and type then, and a GPU builds its kernels."""
        chain.host(chain.run("step_1", self._inputs[1][1], 0)[1])


class RunningStep:
    """A step of a compiled model; implements the Pending protocol."""

    def __init__(
        self,
        steps: Steps,
        chain: Callable[[], Chain],
        recover: Callable[[Exception, int], None],
        ids: Sequence[int],
        pos: int,
        outputs: Sequence[str],
        last: bool,
        slot: int = 0,
    ) -> None:
        """Start the step.

        Args:
            steps: of the model.
            chain: the model's segments at the time of the call.
            recover: puts other segments, with the text up to a position, in place of those that failed, or raises.
            ids: the tokens.
            pos: rows of the caches before them.
            outputs: what the result has; none: only rows of the caches are wanted.
            last: the result has the last row only.
            slot: of the caches.
        """
        self._steps, self._chain, self._recover = steps, chain, recover
        self._pos, self._outputs, self._last = pos, outputs, last
        self._calls = steps.plan(ids, pos, last, slot, fills=not outputs)
        self._error: Exception | None = None
        self._made: list[tuple[Any, ...]] | None = None
        self._found: Outputs | None = None
        try:
            self._made = steps.start(chain(), self._calls)
        except Exception as error:
            recover(error, pos)

    def result(self) -> Outputs:
        """See :meth:`hetero_sd.runtime.model.protocol.Pending.result`."""
        self.settle()
        if self._error is not None:
            raise self._error
        assert self._found is not None
        return self._found

    def settle(self) -> None:
        """Wait; what went wrong is raised by `result`."""
        if self._found is None and self._error is None:
            try:
                self._found = self._fetch()
            except Exception as error:
                self._error = error

    def _fetch(self) -> Outputs:
        """The rows of all calls; a GPU that fails hands over to the CPU, which begins the step again."""
        steps, calls = self._steps, self._calls
        try:
            made, self._made = self._made if self._made is not None else steps.start(self._chain(), calls), None
            fetched = steps.fetch(self._chain(), calls, made, self._outputs)
        except NotFiniteError:
            raise
        except Exception as error:
            self._recover(error, self._pos)
            fetched = steps.fetch(self._chain(), calls, steps.start(self._chain(), calls), self._outputs)
        names = [name for name in (CHOICE, LOGITS) if name in self._outputs]
        if self._last:
            return {name: fetched[-1][name][-1:] for name in names}
        if len(fetched) == 1:
            return {name: fetched[0][name] for name in names}
        return {name: np.concatenate([f[name] for f in fetched]) for name in names}


def shared_numbers(*shape: int) -> tuple[npt.NDArray[np.int64], Any]:
    """A numpy row of numbers and the tensor of a shape over their memory; making a tensor each time takes 25 us."""
    import tvm

    size = math.prod(shape)
    memory = np.zeros(size + 8, np.int64)
    start = -memory.ctypes.data % 64 // 8  # zero-copy import demands 64 bytes of alignment
    row = memory[start : start + size]
    return row, tvm.runtime.from_dlpack(row.reshape(shape))
