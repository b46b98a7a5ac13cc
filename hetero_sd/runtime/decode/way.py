"""How an answer is made: by the target alone, in turn with what drafts, or with a draft model beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from costmodel.schema.plan import OVERLAPPED
from hetero_sd.runtime.decode.choose_policy import NGRAM
from hetero_sd.runtime.decode.drafters import MODEL, Drafter
from hetero_sd.runtime.decode.drafters.early_exit import EarlyExitDrafter
from hetero_sd.runtime.decode.drafters.either import EitherDrafter
from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.drafters.ngram import NgramDrafter
from hetero_sd.runtime.decode.drafters.ngram_pool import NgramPool
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.live_gamma import LiveGamma
from hetero_sd.runtime.decode.overlapped.target_side import Overlap, speculate_overlapped
from hetero_sd.runtime.decode.policy import FixedGamma, GammaPolicy
from hetero_sd.runtime.decode.speculate import speculate
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.model.protocol import Models
from hetero_sd.runtime.model.shared_rows import SharedRows


@dataclass(frozen=True)
class Way:
    """The models and what decides how they are used.

    Attributes:
        models: target and perhaps drafter.
        request: when to stop and how to choose a token.
        policy: how much is drafted in turn; None is the target alone.
        drafter: one of choose_policy.DRAFTERS.
        pool: what n-grams are looked for in.
        overlap: the draft model goes on while the target verifies; then policy and drafter are not asked, but where it
            decides live: then the policy is what it takes turns by.
    """

    models: Models
    request: Request = field(default_factory=Request)
    policy: GammaPolicy | None = None
    drafter: str = MODEL
    pool: NgramPool = field(default_factory=NgramPool)
    overlap: Overlap | None = None

    @property
    def mode(self) -> str:
        """How is drafted: "target-only", decided "live", or as it was given: "speculative" or "overlapped"."""
        if self.overlap is not None and self.overlap.live is None:
            return OVERLAPPED
        policy = self.policy
        return "target-only" if policy is None else "live" if isinstance(policy, LiveGamma) else "speculative"

    @property
    def gamma(self) -> int | None:
        """Drafted tokens of every round, where that is fixed."""
        if self.overlap is not None:
            return None
        return 0 if self.policy is None else self.policy.gamma if isinstance(self.policy, FixedGamma) else None

    def stream(self, ids: Sequence[int], trace: Trace) -> Iterator[int]:
        """Return the generated ids one by one, and record the run in ``trace``."""
        target, sampling = self.models.target, self.request.sampling
        if self.models.draft is not None and self._begins_overlapped(len(ids)) and self.overlap is not None:
            drafts = ModelDrafter(self.models.draft, target.vocab, sampling, ids)
            return speculate_overlapped(target, drafts, ids, self.request, self.overlap, trace)
        drafters: list[Drafter] = []
        if self.policy is not None and NGRAM in self.drafter.split("+"):
            drafters.append(NgramDrafter(self.pool, target.vocab, sampling))
        if self.policy is not None and MODEL in self.drafter.split("+") and self.models.draft is not None:
            kind = EarlyExitDrafter if isinstance(self.models.draft, SharedRows) else ModelDrafter
            drafters.append(kind(self.models.draft, target.vocab, sampling, ids))
        if self.policy is None or not drafters:
            return generate(target, ids, self.request, trace)
        drafter = drafters[0] if len(drafters) == 1 else EitherDrafter(*drafters)
        return speculate(target, drafter, ids, self.request, self.policy, trace)

    def _begins_overlapped(self, prompt_tokens: int) -> bool:
        """Whether the text begins with overlapped rounds; the models are moved to the CPUs for that."""
        if self.overlap is None:
            return False
        live = self.overlap.live
        request = self.request
        begins = live is None or live.begin(prompt_tokens, request.max_new_tokens, not request.sampling.greedy)
        (self.overlap.sides.apart if begins else self.overlap.sides.together)()
        return begins
