"""A draft model for all texts of a batch: a slot for each, and one step for the next draft of every text that drafts.

A text's slot holds rows of its first tokens. A draft feeds what is missing of the text, then draft after draft; what
the target accepts of them is held from then on, and the next rows are written over the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodel.batch_drafts import MOST_DRAFTED
from costmodel.draft_rows import NOTHING, Offer
from costmodel.schema.batch import BatchPrediction
from hetero_sd.runtime.decode.drafters import MODEL
from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, NotFiniteError, Row, Slots
from hetero_sd.runtime.model.slot_pool import Slot, SlotPool
from hetero_sd.runtime.serve.batch_counts import BatchCounts
from hetero_sd.runtime.serve.batch_times import BatchTimes, calls_of
from hetero_sd.runtime.serve.branches import Acceptances, SecondChoice


class ModelDrafts:
    """Drafts of one text; implements the Drafts protocol of text_drafts.py.

    Attributes:
        slot: that the drafter has for it.
        drafted: after the text, not judged yet.
        branch: the second best token at the first of them, where it was asked for.
    """

    def __init__(self, slot: Slot, in_targets_rows: bool, expected: Acceptances, known: int, context: int) -> None:
        """Begin a text.

        Args:
            slot: with a beginning of the text; the target's, where the drafter's rows are among the target's.
            in_targets_rows: they are: what the target has read is held.
            expected: what is believed of its acceptance.
            known: ids below it are the drafter's; a 0 stands for others.
            context: rows of the slot.
        """
        self.slot, self.drafted = slot, list[int]()
        self.branch: Sequence[int] = ()
        self._in_targets_rows, self._seen, self._known, self._context = in_targets_rows, expected, known, context

    @property
    def source(self) -> str:
        """See :attr:`hetero_sd.runtime.serve.text_drafts.Drafts.source`."""
        return MODEL if self.drafted else ""

    @property
    def held(self) -> int:
        """Rows of the text that its slot holds."""
        return len(self.slot.tokens)

    def offer(self, tokens: Sequence[int], most: int, branches: bool = False) -> Offer:
        """See :meth:`hetero_sd.runtime.serve.text_drafts.Drafts.offer`."""
        most = min(most, MOST_DRAFTED, self._context - len(tokens))
        if most <= 0:
            return NOTHING
        return Offer(self._seen.alpha, most, len(tokens) - self.held, self._seen.beta, int(branches))

    def learn(self, tokens: Sequence[int], at: int) -> None:
        """See :meth:`hetero_sd.runtime.serve.text_drafts.Drafts.learn`."""
        if self.drafted:
            accepted = self._seen.learn(self.drafted, self.branch, tokens, at)
            self.keep(self.drafted[: min(accepted, len(self.drafted) - 1)])  # the last one was not fed
        self.drafted, self.branch = [], ()

    def known(self, tokens: Sequence[int]) -> list[int]:
        """The tokens as the drafter is fed them."""
        return [token if token < self._known else 0 for token in tokens]

    def keep(self, tokens: Sequence[int]) -> None:
        """Rows of these were computed after those that are held."""
        if not self._in_targets_rows:
            self.slot.tokens += self.known(tokens)


class BatchDrafter:
    """The draft model."""

    def __init__(
        self,
        slots: Slots,
        predicted: BatchPrediction | None,
        expected: tuple[float, float],
        counts: BatchCounts,
        clock: Callable[[], float],
        in_targets_rows: bool = False,
    ) -> None:
        """All slots are free.

        Args:
            slots: of the model; nothing else feeds it from here on.
            predicted: its calls, by the plan.
            expected: the acceptance of its drafts, and judged tokens that this counts for.
            counts: where its time is added.
            clock: gives seconds.
            in_targets_rows: it writes into the target's slots, and what the target has read it need not read.
        """
        calls = calls_of(slots, predicted)
        self.times, self._predicts = BatchTimes(calls), calls is predicted
        self._slots, self._expected, self._counts, self._clock = slots, expected, counts, clock
        self._pool = None if in_targets_rows else SlotPool(slots)
        self._second = SecondChoice()

    def begin(self, targets: Slot, ids: Sequence[int]) -> ModelDrafts:
        """Take a slot for a text that begins with these ids and has that slot of the target."""
        known, context = self._slots.vocab, self._slots.context
        seen = Acceptances(*self._expected, len(ids), self._second)
        if self._pool is None:
            return ModelDrafts(targets, True, seen, known, context)
        ids = [token if token < known else 0 for token in ids]
        slot = self._pool.take(ids)
        self._pool.share(slot, ids)
        return ModelDrafts(slot, False, seen, known, context)

    def end(self, drafts: ModelDrafts) -> None:
        """Give the slot of a text back."""
        if self._pool is not None:
            self._pool.give_back(drafts.slot)

    def read(self, drafts: ModelDrafts, tokens: Sequence[int]) -> None:
        """Feed the next tokens of a text."""
        begin = self._clock()
        drafts.slot.model.submit(drafts.known(tokens), drafts.held, (), last=True).result()
        took = self._clock() - begin
        self._count(took, self.times.observe_read(len(tokens), drafts.held, took))
        drafts.keep(tokens)

    def draft(self, asked: Sequence[tuple[ModelDrafts, Sequence[int], int]], branches: bool = False) -> None:
        """Draft for texts: (its drafts, its tokens, how many), in one step for a draft of each.

        With `branches` the second best token at the first draft is told, too.

        Raises:
            NotFiniteError: a logit is NaN or infinite.
        """
        feeds, places = [], []
        for drafts, tokens, _ in asked:
            places.append(len(tokens))
            feeds.append(drafts.known(tokens[drafts.held :]))
        for step in range(max(gamma for *_, gamma in asked)):
            going = [i for i, (*_, gamma) in enumerate(asked) if gamma > step]
            rows = [
                Row(asked[i][0].slot.number, places[i] + step - len(feeds[i]) + at, token)
                for i in going
                for at, token in enumerate(feeds[i])
            ]
            ends = [*accumulate(len(feeds[i]) for i in going)]
            choices, seconds = self._rows(rows, ends if branches and step == 0 else ())
            for i, end in zip(going, ends, strict=True):
                drafts, tokens, _ = asked[i]
                token = choices[end - 1]
                drafts.drafted.append(token)
                feeds[i] = [token]
                if step == 0:
                    drafts.keep(tokens[drafts.held :])
                    drafts.branch = [seconds[end]] if branches else ()

    def _rows(self, rows: Sequence[Row], ends: Sequence[int]) -> tuple[list[int], Mapping[int, int]]:
        """The choice of each row, and the second best token of those before some `ends`."""
        found, seconds, done = list[int](), dict[int, int](), 0
        for part in self.times.parts(len(rows)):
            fed = rows[done : done + part]
            begin = self._clock()
            outputs = self._slots.rows(fed)
            made, logits = outputs[CHOICE].tolist(), outputs[LOGITS]
            took = self._clock() - begin
            self._count(took, self.times.observe_rows(part, sum(row.pos for row in fed) / part, took))
            seconds |= {end: _second(logits[end - done - 1]) for end in ends if done < end <= done + part}
            found, done = found + made, done + part
        if min(found) < 0:
            raise NotFiniteError(self._slots.name)
        return found, seconds

    def _count(self, took: float, predicted: float) -> None:
        self._counts.drafting_s += took
        self._counts.predicted_s += predicted if self._predicts else 0.0


def _second(logits: npt.NDArray[Any]) -> int:
    """The token that would be chosen without the one that is."""
    others = logits.copy()
    others[others.argmax()] = -np.inf
    return int(others.argmax())
