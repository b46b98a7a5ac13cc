"""Answers prompts with the loaded models: ids in, streamed text out, and the record of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from costmodel.schema.plan import Plan
from hetero_sd.runtime.decode.choose_policy import NGRAM
from hetero_sd.runtime.decode.drafters import MODEL, Drafter
from hetero_sd.runtime.decode.drafters.either import EitherDrafter
from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.drafters.ngram import NgramDrafter
from hetero_sd.runtime.decode.drafters.ngram_pool import NgramPool
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.overlapped.draft_thread import DraftThread
from hetero_sd.runtime.decode.overlapped.target_side import Overlap, speculate_overlapped
from hetero_sd.runtime.decode.policy import GammaPolicy
from hetero_sd.runtime.decode.speculate import speculate
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.model.protocol import Models
from hetero_sd.runtime.model.side_by_side import side_by_side
from hetero_sd.runtime.text.prompts import Prompt
from hetero_sd.runtime.text.stream import Detokeniser, StopScanner
from hetero_sd.runtime.text.tokenizer import Text
from targets.errors import UserError


@dataclass
class Answer:
    """A prompt's ids, the text that followed (nothing from a stop string on) and the trace with the generated ids."""

    prompt: Prompt
    prompt_ids: list[int]
    text: str = ""
    trace: Trace = field(default_factory=Trace)


@dataclass
class Session:
    """The models, and how they are used for every prompt; ``policy`` None means the target alone.

    ``overlap`` drafts with the draft model while the target verifies; then ``policy`` and ``drafter`` are not asked.
    ``drafter`` is one of choose_policy.DRAFTERS; ``pool`` keeps prompts and answers of the session for n-gram drafting.
    ``text`` None is a bundle without a tokenizer: prompts are token ids and the text stays empty.
    """

    models: Models
    text: Text | None
    request: Request
    stops: Sequence[str] = ()
    policy: GammaPolicy | None = None
    chat: bool = True
    drafter: str = MODEL
    pool: NgramPool = field(default_factory=NgramPool)
    overlap: Overlap | None = None

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt.

        Raises:
            UserError: it has no ids, an id that the target does not know, or more than the target's context.
        """
        if isinstance(prompt.given, list):
            ids = prompt.given
        elif self.text is None:
            raise UserError(f"{prompt.where} is a text, but the bundle has no tokenizer: give token_ids")
        else:
            ids = self.text.encode_prompt(prompt.given, self.chat)
        target = self.models.target
        if not ids:
            raise UserError(f"{prompt.where} is empty: give at least one token")
        if strange := [i for i in ids if not 0 <= i < target.vocab]:
            raise UserError(f"{prompt.where} has token id {strange[0]}, the target knows 0 to {target.vocab - 1}")
        if len(ids) > target.context:
            raise UserError(
                f"{prompt.where} has {len(ids)} tokens, the target's context is {target.context}: shorten it"
            )
        return ids

    def answer(self, prompt: Prompt, ids: list[int], show: Callable[[str], None]) -> Answer:
        """Generate after ``ids``, passing the text to ``show`` piece by piece."""
        answer = Answer(prompt, ids)
        detokeniser = Detokeniser(self.text.decode if self.text else lambda _: "")
        scanner = StopScanner(self.stops)

        def release(piece: str) -> None:
            if piece:
                answer.text += piece
                show(piece)

        for token in self.stream(ids, answer.trace):
            release(scanner.feed(detokeniser.feed(token)))
            if scanner.hit:
                break
        else:
            release(scanner.feed(detokeniser.flush()))
            release(scanner.flush())
        if scanner.hit:
            answer.trace.finish_reason = "stop"
        return answer

    def stream(self, ids: list[int], trace: Trace) -> Iterator[int]:
        """Return the generated ids one by one, and record the run in ``trace``."""
        target, sampling = self.models.target, self.request.sampling
        if self.overlap is not None and self.models.draft is not None:
            drafts = ModelDrafter(self.models.draft, target.vocab, sampling)
            return speculate_overlapped(target, drafts, ids, self.request, self.overlap, trace)
        drafters: list[Drafter] = []
        if self.policy is not None and NGRAM in self.drafter.split("+"):
            drafters.append(NgramDrafter(self.pool, target.vocab, sampling))
        if self.policy is not None and MODEL in self.drafter.split("+") and self.models.draft is not None:
            drafters.append(ModelDrafter(self.models.draft, target.vocab, sampling))
        if self.policy is None or not drafters:
            return generate(target, ids, self.request, trace)
        drafter = drafters[0] if len(drafters) == 1 else EitherDrafter(*drafters)
        return speculate(target, drafter, ids, self.request, self.policy, trace)


@contextmanager
def overlapping(
    models: Models, plan: Plan | None, usable: Sequence[int], gamma: int, least: int, note: Callable[[str], None]
) -> Iterator[Overlap]:
    """Start the drafter's thread for a session, the models on CPUs of their own; it ends with the context.

    Args:
        models: both, as they were loaded.
        plan: of the bundle.
        usable: CPUs that this process may use.
        gamma: drafts that are verified at a time, at most.
        least: drafts that the target waits for.
        note: told, in one line, where both models run on the same CPUs.
    """
    with side_by_side(models, plan, usable, note) as cpus, DraftThread(cpus) as thread:
        yield Overlap(thread, gamma, least)
