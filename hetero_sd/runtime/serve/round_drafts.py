"""What is drafted in a round of a batch: from what slots have read and written, by a draft model, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from costmodel.batch_drafts import ChosenDrafts
from costmodel.draft_rows import NOTHING
from hetero_sd.runtime.decode.drafters.ngram_pool import NgramPool
from hetero_sd.runtime.internal_error import report
from hetero_sd.runtime.load import note
from hetero_sd.runtime.model.protocol import NotFiniteError
from hetero_sd.runtime.model.slot_pool import Slot
from hetero_sd.runtime.serve.branches import NO_DRAFT, Branches, Drafted, SecondChoice
from hetero_sd.runtime.serve.model_drafts import BatchDrafter, ModelDrafts
from hetero_sd.runtime.serve.running_text import RunningText
from hetero_sd.runtime.serve.scheduler import Scheduler
from hetero_sd.runtime.serve.text_drafts import POOL_TOKENS, Drafts, TextDrafts


@dataclass(frozen=True)
class Sources:
    """What drafts of a text are made from."""

    found: TextDrafts | None = None
    modelled: ModelDrafts | None = None

    @property
    def every(self) -> list[Drafts]:
        """Those that there are."""
        return [drafts for drafts in (self.found, self.modelled) if drafts is not None]


class RoundDrafts:
    """Drafts of all texts."""

    def __init__(
        self, scheduler: Scheduler, branches: Branches, from_texts: bool, drafter: BatchDrafter | None
    ) -> None:
        """Begin without texts.

        Args:
            scheduler: decides how much is drafted.
            branches: of a round.
            from_texts: what a slot has read and written is drafted from.
            drafter: a draft model, or None.
        """
        self._scheduler, self._branches = scheduler, branches
        self._from_texts, self._drafter = from_texts, drafter
        self._pools, self._second = dict[Slot, NgramPool](), dict[str, SecondChoice]()

    def begin(self, slot: Slot, ids: Sequence[int]) -> Sources:
        """Of a text that begins with these ids in a slot of the target."""
        pool = self._pools.setdefault(slot, NgramPool(POOL_TOKENS)) if self._from_texts else None
        return Sources(
            None if pool is None else TextDrafts(pool, self._second),
            None if self._drafter is None else self._drafter.begin(slot, ids),
        )

    def end_round(self) -> None:
        """What was drafted is verified."""
        self._branches.end()

    def end(self, sources: Sources) -> None:
        """A text ends."""
        if self._drafter is not None and sources.modelled is not None:
            self._drafter.end(sources.modelled)

    def of_round(self, running: Sequence[tuple[RunningText, Sources]], riding: int) -> Mapping[int, Drafted]:
        """What is verified of texts beside so many rows of prompts, by the place of the text."""
        rows, drafter = len(running) + riding, self._drafter
        if not running or not self._scheduler.may_draft(rows, len(running), self._from_texts, drafter):
            return {}
        free_slots = self._branches.free_slots
        may_branch = free_slots > 0
        found = [
            NOTHING if s.found is None else s.found.offer(text.tokens, text.room, may_branch) for text, s in running
        ]
        modelled = [NOTHING] * len(running)
        if drafter is not None:
            modelled = [
                NOTHING if s.modelled is None else s.modelled.offer(t.tokens, t.room, may_branch) for t, s in running
            ]
        if not any(offer.most for offer in (*found, *modelled)):
            return {}
        left = sum(text.left for text, _ in running)
        branch_s = [self._branches.takes_s(text.slot, text.left) for text, _ in running] if may_branch else ()
        chosen = self._scheduler.drafted(found, modelled, left, rows, drafter, free_slots, branch_s)
        for i, gamma in enumerate(chosen.gammas):
            if (drafts := running[i][1].found) is not None and not chosen.modelled[i]:
                drafts.take(gamma)
        if drafter is not None:
            self._with_model(drafter, running, chosen, may_branch)
        branches = chosen.branches or [0] * len(running)
        return {i: self._drafted(*of_text, branches[i]) for i, of_text in enumerate(running)}

    def _drafted(self, text: RunningText, sources: Sources, in_branch: int) -> Drafted:
        """What was drafted of a text, and a branch of so many tokens."""
        for drafts in sources.every:
            if drafts.drafted:
                branch = drafts.branch[:in_branch]
                return Drafted(drafts.drafted, self._branches.begin(text.slot, branch) if branch else None)
        return NO_DRAFT

    def _with_model(
        self,
        drafter: BatchDrafter,
        running: Sequence[tuple[RunningText, Sources]],
        chosen: ChosenDrafts,
        branches: bool,
    ) -> None:
        """Let the draft model read and draft; where it fails the batch goes on without it."""
        try:
            for i, tokens in chosen.pieces:
                text, drafts = running[i][0], running[i][1].modelled
                if drafts is not None:
                    drafter.read(drafts, text.tokens[drafts.held : drafts.held + tokens])
            asked = [
                (drafts, text.tokens, gamma)
                for (text, sources), gamma, by_model in zip(running, chosen.gammas, chosen.modelled, strict=True)
                if by_model and gamma and (drafts := sources.modelled) is not None
            ]
            if asked:
                drafter.draft(asked, branches)
        except Exception as error:
            if isinstance(error, NotFiniteError):
                note(f"{error}; it is left out")
            else:
                report("run.py", "drafting with the draft model, which is left out", error)
            self._drafter = None
            for _, sources in running:
                if sources.modelled is not None:
                    sources.modelled.drafted = []
