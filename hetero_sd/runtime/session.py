"""Answers prompts with the loaded models: what :func:`hetero_sd.load` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costmodel.schema.plan import OVERLAPPED, Plan
from hetero_sd.runtime.answer import Answer, RunFacts
from hetero_sd.runtime.answer_options import Options, logprobs_of, request_of
from hetero_sd.runtime.decode.drafters import MODEL
from hetero_sd.runtime.decode.drafters.ngram_pool import NgramPool
from hetero_sd.runtime.decode.generate import Request
from hetero_sd.runtime.decode.overlapped.target_side import Overlap
from hetero_sd.runtime.decode.policy import GammaPolicy
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.decode.way import Way
from hetero_sd.runtime.model.kept_prefix import KeptPrefix
from hetero_sd.runtime.model.protocol import Models, Slots
from hetero_sd.runtime.saved_state import load_state, save_state
from hetero_sd.runtime.text.chat_template import SYSTEM, USER, Chat, Message
from hetero_sd.runtime.text.prompts import Prompt, given_chat, ids_of, prompt_of_text
from hetero_sd.runtime.text.tokenizer import Text
from targets.errors import UserError

if TYPE_CHECKING:
    from typing import Unpack  # not in the oldest Python of a device


class PromptTooLong(UserError):
    """A prompt has more tokens than the target's context."""


@dataclass
class Session:
    """The models, and how they are used for every prompt; ``policy`` None means the target alone.

    ``overlap`` drafts with the draft model while the target verifies; then ``policy`` and ``drafter`` are not asked,
    but where it decides live: then ``policy`` is what it takes turns by.
    ``drafter`` is one of choose_policy.DRAFTERS; ``pool`` keeps prompts and answers of the session for n-gram
    drafting, but of samples with a seed. ``text`` None is a bundle without a tokenizer: prompts are token ids and
    the text stays empty. ``template`` puts texts into the chat template, ``system`` is the system message of chats
    that have none. ``repeatable`` is the policy where samples have a seed: it decides nothing from times. ``plan``
    is what was predicted. ``resources`` end with the session, which is a context manager. ``slots`` are those of
    the target, of which all else uses the first one, where it has several, ``draft_slots`` those of the drafter.
    ``bundle_hash`` is the SHA-256 of the bundle's manifest. With ``spans`` the traces of the answers say when
    everything was done.
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
        target, text = self.models.target, self.text
        encode = None if text is None else lambda given: text.encode_prompt(self.with_system(given), self.template)
        ids = ids_of(prompt, encode, target.vocab)
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
        request, seeded = request_of(options, self.request)
        greedy = request.sampling.greedy
        way = self._repeatable(request) if seeded and not greedy else replace(self.way, request=request)
        trace = Trace(spans=[] if self.spans else None, logprobs=logprobs_of(options))
        self._current = Answer(
            ids,
            way.stream(ids, trace),
            trace,
            self.text.decode if self.text else None,
            options.get("stop", self.stops),
            RunFacts(
                way.mode,
                None if greedy else request.sampling.seed,
                self.plan,
                way.gamma,
                lambda: getattr(self.models.target, "thread_facts", None),
                lambda: None if self.overlap is None else getattr(self.models.draft, "thread_facts", None),
            ),
        )
        return self._current

    @property
    def way(self) -> Way:
        """How its answers are made."""
        return Way(self.models, self.request, self.policy, self.drafter, self.pool, self.overlap)

    def _repeatable(self, request: Request) -> Way:
        """The same where samples have a seed: nothing is decided from times, or drafted from texts before this one."""
        overlap = self.overlap
        if overlap is not None and overlap.live is not None:
            planned = self.plan is not None and self.plan.mode == OVERLAPPED
            overlap.sides.together()
            overlap = replace(overlap, live=None) if planned else None
        return replace(self.way, request=request, policy=self.repeatable, overlap=overlap, pool=NgramPool())

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
