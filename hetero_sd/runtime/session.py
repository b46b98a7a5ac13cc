"""Answers prompts with the loaded models: what :func:`hetero_sd.load` returns."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from costmodel.schema.plan import OVERLAPPED, Plan
from hetero_sd.runtime.answer import Answer, RunFacts
from hetero_sd.runtime.decode.choose_policy import NGRAM
from hetero_sd.runtime.decode.drafters import MODEL, Drafter
from hetero_sd.runtime.decode.drafters.early_exit import EarlyExitDrafter
from hetero_sd.runtime.decode.drafters.either import EitherDrafter
from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.drafters.ngram import NgramDrafter
from hetero_sd.runtime.decode.drafters.ngram_pool import NgramPool
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.live_gamma import LiveGamma
from hetero_sd.runtime.decode.logprobs import MOST_TOP, Logprobs
from hetero_sd.runtime.decode.overlapped.target_side import Overlap, speculate_overlapped
from hetero_sd.runtime.decode.policy import FixedGamma, GammaPolicy
from hetero_sd.runtime.decode.sampling import Sampling
from hetero_sd.runtime.decode.speculate import speculate
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.model.kept_prefix import KeptPrefix
from hetero_sd.runtime.model.protocol import Models, Slots
from hetero_sd.runtime.model.shared_rows import SharedRows
from hetero_sd.runtime.saved_state import load_state, save_state
from hetero_sd.runtime.text.chat_template import SYSTEM, USER, Chat, Message
from hetero_sd.runtime.text.prompts import Prompt, given_chat, prompt_of_text
from hetero_sd.runtime.text.tokenizer import Text
from targets.errors import UserError

if TYPE_CHECKING:
    from typing import Unpack  # not in the oldest Python of a device


class Options(TypedDict, total=False):
    """How an answer is generated; what is left out is the session's.

    Attributes:
        max_new_tokens: tokens after which it ends, at least 1 (256).
        temperature: spread of the samples; 0 takes the best token (0).
        top_k: sample among so many best tokens; 0 is all (0).
        top_p: sample among the best tokens of that mass, above 0 and at most 1 (1).
        seed: makes samples repeatable; None takes another one each time (None).
        stop: texts before which it ends (none).
        logprobs: most probable tokens that are kept with each token, 20 at most; None keeps no probabilities (None).
    """

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    stop: Sequence[str]
    logprobs: int | None


class PromptTooLong(UserError):
    """A prompt has more tokens than the target's context."""


@dataclass
class Session:
    """The models, and how they are used for every prompt; ``policy`` None means the target alone.

    ``overlap`` drafts with the draft model while the target verifies; then ``policy`` and ``drafter`` are not asked,
    but where it decides live: then ``policy`` is what it takes turns by.
    ``drafter`` is one of choose_policy.DRAFTERS; ``pool`` keeps prompts and answers of the session for n-gram drafting.
    ``text`` None is a bundle without a tokenizer: prompts are token ids and the text stays empty. ``template`` puts
    texts into the chat template, ``system`` is the system message of chats that have none. ``repeatable`` is the
    policy where samples have a seed: it decides nothing from times. ``plan`` is what was predicted. ``resources`` end
    with the session, which is a context manager. ``slots`` are those of the target, of which all else uses the first
    one, where it has several, ``draft_slots`` those of the drafter. ``bundle_hash`` is the SHA-256 of the bundle's
    manifest. With ``spans`` the traces of the answers say when everything was done.
    """

    models: Models
    text: Text | None
    request: Request = field(default_factory=Request)
    stops: Sequence[str] = ()
    policy: GammaPolicy | None = None
    template: bool = True
    drafter: str = MODEL
    pool: NgramPool = field(default_factory=NgramPool)
    system: str | None = None
    repeatable: GammaPolicy | None = None
    plan: Plan | None = None
    overlap: Overlap | None = None
    slots: Slots | None = None
    draft_slots: Slots | None = None
    bundle_hash: str = ""
    spans: bool = False
    resources: ExitStack = field(default_factory=ExitStack, repr=False)
    _current: Answer | None = field(default=None, init=False, repr=False)

    def __enter__(self) -> Session:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End the present answer, and the thread of mode overlapped. The process ends well without it, too."""
        if self._current is not None:
            self._current.close()
        self.resources.close()

    @property
    def lanes(self) -> dict[str, str]:
        """The processor of each model, for people, by role."""
        plan, found = self.plan, dict[str, str]()
        for role, model in (("target", self.models.target), ("draft", self.models.draft)):
            processor = getattr(model, "processor", "cpu")
            cluster = "" if plan is None or processor != "cpu" else f" {plan.compiled_for(role)}"
            found[role] = f"{processor.upper()}{cluster}"
        if self.overlap is not None and found["target"] == found["draft"]:
            found["draft"] += ", the drafter's cores"
        return found

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together, and one."""
        return self.models.target.context

    def generate(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Answer:
        """Answer a text, put into the chat template where there is one, or go on after token ids as they are.

        The answer is generated while it is iterated over; the next one of the session ends it.

        Raises:
            UserError: the prompt is empty, has more tokens than fit, or ids that the target does not know; the chat
                template fails; an option is out of range.
        """
        given = prompt_of_text(prompt, "the prompt") if isinstance(prompt, str) else Prompt(list(prompt), "the prompt")
        return self.answer(self.encode(given), **options)

    def chat(
        self,
        messages: Sequence[Message] | Mapping[str, Any] | Path,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[Options],
    ) -> Answer:
        """Answer the last question of a conversation by the chat template.

        Of what was read for the answer before, the common beginning is not read again.

        Args:
            messages: objects with `role` ("system", "user", "assistant", ...) and `content`; or an object that has
                them as `messages`, or a file of one: what `/save` writes. An answer at their end is left out.
            tools: JSON schemas of functions that the template shows to the model.
            options: see :class:`Options`.

        Raises:
            UserError: as :meth:`generate`; there is no chat template, or a message is malformed.
        """
        return self.answer(self.encode(Prompt(given_chat(messages, tools), "the conversation")), **options)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt.

        Raises:
            UserError: it has no ids, or an id that the target does not know.
            PromptTooLong: it has more than the target's context.
        """
        given = prompt.given
        if isinstance(given, list):
            ids = given
        elif self.text is None:
            raise UserError(f"{prompt.where} is a text, but the bundle has no tokenizer: give token_ids")
        else:
            ids = self.text.encode_prompt(self.with_system(given), self.template)
        target = self.models.target
        if not ids:
            raise UserError(f"{prompt.where} is empty: give at least one token")
        if strange := [i for i in ids if not 0 <= i < target.vocab]:
            raise UserError(f"{prompt.where} has token id {strange[0]}, the target knows 0 to {target.vocab - 1}")
        if len(ids) > target.context:
            raise PromptTooLong(
                f"{prompt.where} has {len(ids)} tokens, the target's context is {target.context}: shorten it"
            )
        return ids

    def with_system(self, given: str | Chat) -> str | Chat:
        """Put the session's system message before a text or a conversation that has none."""
        if self.system is None:
            return given
        chat = Chat([{"role": USER, "content": given}]) if isinstance(given, str) else given
        if chat.messages[0]["role"] == SYSTEM:
            return chat
        return Chat([{"role": SYSTEM, "content": self.system}, *chat.messages], chat.tools)

    def answer(self, ids: list[int], **options: Unpack[Options]) -> Answer:
        """Answer ids that :meth:`encode` returned."""
        if self._current is not None:
            self._current.close()
        request, seeded = self.request_of(options)
        greedy = request.sampling.greedy
        policy = self.repeatable if seeded and not greedy else self.policy
        trace = Trace(spans=[] if self.spans else None, logprobs=logprobs_of(options))
        overlap = self.overlap
        if seeded and not greedy and overlap is not None and overlap.live is not None:
            planned = self.plan is not None and self.plan.mode == OVERLAPPED
            overlap.sides.together()
            overlap = replace(overlap, live=None) if planned else None
        ran = replace(self, request=request, policy=policy, overlap=overlap)
        self._current = Answer(
            ids,
            ran.stream(ids, trace),
            trace,
            self.text.decode if self.text else None,
            options.get("stop", self.stops),
            RunFacts(
                ran.mode,
                None if greedy else request.sampling.seed,
                self.plan,
                ran.gamma,
                lambda: getattr(self.models.target, "thread_facts", None),
                lambda: None if self.overlap is None else getattr(self.models.draft, "thread_facts", None),
            ),
        )
        return self._current

    def save_state(self, path: Path) -> None:
        """Write what the target has read last, prompt and answer, so that `load_state` need not read it.

        Raises:
            UserError: nothing was read, or the file cannot be written.
        """
        save_state(path, self._kept_target(), self.bundle_hash)

    def load_state(self, path: Path) -> int:
        """Take what `save_state` wrote: a text that begins with it is read from there on. Returns its tokens' number.

        Raises:
            UserError: the file is none of `save_state`, of another bundle or processor, or damaged.
        """
        if self._current is not None:
            self._current.close()
        return load_state(path, self._kept_target(), self.bundle_hash)

    def _kept_target(self) -> KeptPrefix:
        target = self.models.target
        assert isinstance(target, KeptPrefix)
        return target

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

    def request_of(self, options: Options) -> tuple[Request, bool]:
        """When to stop and how to choose, and whether the user gave a seed.

        Raises:
            UserError: an option is out of range.
        """
        if unknown := sorted(options.keys() - Options.__annotations__.keys()):
            raise TypeError(f"unknown option {unknown[0]!r}: there are {', '.join(Options.__annotations__)}")
        default = self.request.sampling
        seed = options.get("seed")
        sampling = Sampling(
            options.get("temperature", default.temperature),
            options.get("top_k", default.top_k),
            options.get("top_p", default.top_p),
            secrets.randbits(63) if seed is None else seed,
        )
        most = options.get("max_new_tokens", self.request.max_new_tokens)
        for name, holds in (
            ("max_new_tokens must be at least 1", most >= 1),
            ("temperature must be finite and not negative", 0 <= sampling.temperature < float("inf")),
            ("top_k must not be negative", sampling.top_k >= 0),
            ("top_p must be above 0 and at most 1", 0 < sampling.top_p <= 1),
            ("seed must not be negative", sampling.seed >= 0),
            ("stop is one text, give a list", not isinstance(options.get("stop", ()), str)),
            ("stop has an empty text", "" not in options.get("stop", ())),
            (f"logprobs must be 0 to {MOST_TOP}", 0 <= (options.get("logprobs") or 0) <= MOST_TOP),
        ):
            if not holds:
                raise UserError(name)
        return Request(most, self.request.eos_ids, sampling), seed is not None

    def _begins_overlapped(self, prompt_tokens: int) -> bool:
        """Whether the text begins with overlapped rounds; the models are moved to the CPUs for that."""
        if self.overlap is None:
            return False
        live = self.overlap.live
        begins = live is None or live.begin(prompt_tokens, self.request.max_new_tokens)
        (self.overlap.sides.apart if begins else self.overlap.sides.together)()
        return begins

    def stream(self, ids: list[int], trace: Trace) -> Iterator[int]:
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


def logprobs_of(options: Options) -> Logprobs | None:
    """Where the probabilities of an answer's tokens are kept, if they are asked for."""
    top = options.get("logprobs")
    return None if top is None else Logprobs(top)
