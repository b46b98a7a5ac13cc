"""One round of a batch: pieces of prompts as far as the time between tokens allows, then a row of every text or more.

Rows of prompts and of drafts ride beside those of the texts (scheduler.py, round_drafts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from costmodel.batch import Unread
from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, Row
from hetero_sd.runtime.model.slot_pool import SlotPool
from hetero_sd.runtime.serve.at_work import Asked, AtWork
from hetero_sd.runtime.serve.branches import NO_DRAFT
from hetero_sd.runtime.serve.engine import Failed
from hetero_sd.runtime.serve.jobs import failure_of
from hetero_sd.runtime.serve.round_drafts import RoundDrafts
from hetero_sd.runtime.serve.scheduler import Scheduler


class BatchRound:
    """Feeds the texts at work."""

    def __init__(
        self,
        model: str,
        pool: SlotPool,
        scheduler: Scheduler,
        drafts: RoundDrafts,
        at_work: list[AtWork],
        take: Callable[[AtWork, Sequence[int]], None],
        failed: Callable[[Asked, Failed], None],
    ) -> None:
        """Of an engine.

        Args:
            model: the target's name, for messages.
            pool: of its slots.
            scheduler: decides, and calls the target.
            drafts: of the texts.
            at_work: in order of arrival; texts leave it when they end.
            take: told the tokens of a text that came.
            failed: told why a request cannot go on.
        """
        self._model, self._pool, self._scheduler, self._drafts = model, pool, scheduler, drafts
        self._work, self._tell, self._failed = at_work, take, failed

    def run(self) -> None:
        """Read of prompts what fits, then feed the rows of all texts that run."""
        prompts = [work for work in self._work if work.text.reading and self._may_read(work)]
        running = [work.text.past for work in self._work if not work.text.reading]
        unread = [Unread(work.text.past, work.text.unread) for work in prompts]
        planned = self._scheduler.reading(unread, running)
        for i, tokens in planned.pieces:
            self._read(prompts[i], tokens)
        riding = {id(prompts[i]): tokens for i, tokens in planned.riding}
        self._scheduler.counts.riding_tokens += sum(riding.values())
        batch = [work for work in self._work if not work.text.reading or id(work) in riding]
        if batch:
            try:
                self._feed(batch, self._rows(batch, riding))
            finally:
                self._drafts.end_round()

    def _rows(self, batch: Sequence[AtWork], riding: Mapping[int, int]) -> list[list[Row]]:
        """Those of each text: tokens of a prompt, or the last token and what is drafted."""
        running = [work for work in batch if not work.text.reading]
        drafts = self._drafts.of_round([(w.text, w.sources) for w in running], sum(riding.values()))
        drafted = {id(work): drafts[i] for i, work in enumerate(running) if i in drafts}
        return [work.text.rows(riding.get(id(work), 1), drafted.get(id(work), NO_DRAFT)) for work in batch]

    def _may_read(self, work: AtWork) -> bool:
        """Take over what others hold of a prompt; whether more is to be read now, and not to be had by waiting."""
        if work.waits(self._work):
            return False
        work.text.trace.kept_tokens += self._pool.share(work.slot, work.asked.ids)
        return work.text.reading

    def _read(self, work: AtWork, tokens: int) -> None:
        """A piece of a prompt, unless its request has ended in this round."""
        if work not in self._work:
            return
        try:
            past = work.text.past
            self._tell(work, self._scheduler.read(work.text.read, tokens, past))
        except Exception as error:
            self._failed(work.asked, failure_of(error))

    def _feed(self, batch: Sequence[AtWork], rows: Sequence[Sequence[Row]]) -> None:
        """The rows of some texts, and what follows from them."""
        try:
            made = [*_by_row(self._scheduler.rows([row for of_text in rows for row in of_text]))]
        except Exception as error:
            failed = failure_of(error)
            for asked in dict.fromkeys(work.asked for work in batch):
                self._failed(asked, failed)
            return
        done = 0
        for work, fed in zip(batch, rows, strict=True):
            choices, logits = zip(*made[done : done + len(fed)], strict=True)
            done += len(fed)
            if work not in self._work:
                continue  # another choice of its request failed
            try:
                self._tell(work, work.text.choose(choices, logits, self._model))
            except Exception as error:
                self._failed(work.asked, failure_of(error))


def _by_row(calls: Iterator[Mapping[str, Any]]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """The choice and the logits of each row."""
    for made in calls:
        yield from zip(made[CHOICE].tolist(), made[LOGITS], strict=True)
