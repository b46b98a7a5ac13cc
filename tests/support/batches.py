"""Toy models in slots, clients of an engine, and requests of all kinds: what tests of batches are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

import numpy as np
from bundles import some_plan, some_prediction

from costmodel.schema.batch import BatchPrediction
from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, Model, Outputs, Pending, Row, SlotCache, Slots
from hetero_sd.runtime.serve.batch_counts import BatchCounts
from hetero_sd.runtime.serve.batch_engine import BatchEngine
from hetero_sd.runtime.serve.engine import Ended, Event, Failed, GenerationRequest, TextPiece
from hetero_sd.runtime.session import Session

Letters = Callable[..., Session]


class ToySlots(Slots):
    """A toy model for each slot; knows what every call fed. A token `poison` gives logits that are not finite.

    Attributes:
        now_s: a clock that only calls advance: by 2 s with a row more of a second each stair, by `chunk_s`.
    """

    def __init__(
        self,
        made: Sequence[Model],
        poison: int | None = None,
        chunk_s: float = 6.0,
        of_target: float = 1.0,
        beside: ToySlots | None = None,
        rows_to_share: bool = False,
    ) -> None:
        """Of a model for each slot; a draft model's rows take a share of the target's, and advance its clock."""
        first, self._made, self._poison = made[0], made, poison
        self.chunk_s, self.row_s = chunk_s, of_target * rows_s(1)
        self._share, self._clock = of_target, beside or self
        self.now_s = 0.0
        self.vocab, self.context, self.name = first.vocab, first.context, first.name
        self.slots, self.row_widths, self.read_widths = len(made), (1, 2, 4, 8), (1, 8)
        self.prefill_widths = (8,)
        self.calls: list[Any] = []  # (slot, tokens) of chunks, the slots of rows
        self.fault: Exception | None = None
        self.cache = ToyCache(made) if rows_to_share else None

    def slot(self, slot: int) -> Model:
        return _Chunks(self, self._made[slot], slot)

    def advance(self, seconds: float) -> None:
        self._clock.now_s += seconds

    def rows(self, rows: Sequence[Row]) -> Outputs:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        self.calls.append([row.slot for row in rows])
        self.advance(self._share * rows_s(len(rows)))
        logits = np.concatenate([self._made[r.slot].forward([r.token], r.pos) for r in rows])
        bad = np.array([row.token == self._poison for row in rows])
        return {LOGITS: logits, CHOICE: np.where(bad, -1, logits.argmax(-1))}


class ToyCache(SlotCache):
    """The rows of toy models, which can be copied and not mapped."""

    def __init__(self, made: Sequence[Any]) -> None:
        self._made, self.slots = made, len(made)
        self.context = self.block_rows = made[0].context
        self.blocks = self.slots

    def map(self, slot: int, first: int, blocks: Sequence[int]) -> None:
        raise AssertionError("a block is a slot")

    def read(self, slot: int, begin: int, end: int) -> list[Any]:
        return [np.array(self._made[slot].rows[begin:end])]

    def write(self, slot: int, begin: int, rows: Sequence[Any]) -> None:
        self._made[slot].rows[begin:] = rows[0].tolist()


class _Chunks(Model):
    def __init__(self, slots: ToySlots, model: Model, number: int) -> None:
        self._slots, self._model, self._number = slots, model, number
        self.vocab, self.context, self.name = model.vocab, model.context, model.name

    def submit(self, ids: Sequence[int], pos: int, outputs: Sequence[str] = (CHOICE,), last: bool = False) -> Pending:
        self._slots.calls.append((self._number, len(ids)))
        self._slots.advance(self._slots.chunk_s if len(ids) > 1 else self._slots.row_s)
        return self._model.submit(ids, pos, outputs, last)


def rows_s(rows: int) -> float:
    """Seconds of a call of so many rows, by a ToySlots' clock."""
    return 2.0 + 0.25 * (rows - 1).bit_length()


CALLS = BatchPrediction({n: (rows_s(n), 0.0) for n in (1, 2, 4, 8)}, {1: (2.0, 0.0), 8: (6.0, 0.0)})


DRAFT_CALLS = BatchPrediction({n: (0.1 * rows_s(n), 0.0) for n in (1, 2, 4, 8)}, {1: (0.2, 0.0), 8: (0.5, 0.0)})


def engine_of(
    letters: Letters,
    slots: int = 3,
    waiting: int = 16,
    answer_s: float = 60.0,
    between_tokens_s: float | None = None,
    drafts: bool = False,
    draft_noise: float | None = None,
    **more: Any,
) -> BatchEngine:
    """An engine over toy models; with `draft_noise` so much is added to the target's logits in a draft model."""
    session = letters(chats=more.pop("chats", True))
    calls = more.pop("calls", None)
    session.plan = (
        None if calls is None else some_plan(prediction=some_prediction(slot_calls=calls, draft_slot_calls=DRAFT_CALLS))
    )
    models = [letters(chats=False).models.target.model for _ in range(slots)]  # type: ignore[attr-defined]
    toys, drafter = ToySlots(models, **more), None
    if draft_noise is not None:
        table = models[0].table + draft_noise * np.random.default_rng(7).standard_normal(models[0].table.shape)
        made = [type(models[0])(table, models[0].context, "draft") for _ in range(slots)]
        drafter = ToySlots(made, chunk_s=0.5, of_target=0.1, beside=toys)
    now = lambda: toys.now_s  # noqa: E731
    return BatchEngine(session, toys, waiting, answer_s, 0, between_tokens_s, now, drafts, drafter)


def toys_of(engine: BatchEngine) -> ToySlots:
    toys = engine._slots
    assert isinstance(toys, ToySlots)
    return toys


class Client:
    """Hears a request's events; `then` is called with each."""

    def __init__(self, then: Callable[[Client], None] = lambda client: None) -> None:
        self.events: list[Event] = []
        self._then = then

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._then(self)

    def text(self, choice: int = 0) -> str:
        return "".join(e.text for e in self.events if isinstance(e, TextPiece) and e.choice == choice)

    @property
    def last(self) -> Event:
        return self.events[-1]

    @property
    def failed(self) -> Failed:
        assert isinstance(self.last, Failed)
        return self.last


def run_all(engine: BatchEngine, *requests: GenerationRequest) -> list[Client]:
    """The clients of requests that wait before the engine runs in this thread; it stops when all have ended."""
    left = len(requests)

    def count(client: Client) -> None:
        nonlocal left
        left -= isinstance(client.last, (Ended, Failed))
        if left == 0:
            engine.stop()

    clients = [Client(count) for _ in requests]
    for request, client in zip(requests, clients, strict=True):
        engine.submit(request, client)
    engine.run()
    return clients


MIXED: list[tuple[str, Any]] = [
    ("hello", {"max_new_tokens": 40}),
    ("a" * 37, {"max_new_tokens": 3}),
    ("b", {"max_new_tokens": 25}),
    ("hello world" * 3, {"max_new_tokens": 30, "temperature": 1.3, "seed": 4}),
    ("c" * 9, {"max_new_tokens": 1}),
    ("hello", {"max_new_tokens": 60, "stop": ["acba"]}),
    ("d" * 399, {"max_new_tokens": 9}),  # the context ends it
    ("ab" * 8, {"max_new_tokens": 33, "temperature": 0.8, "top_k": 3, "top_p": 0.9, "seed": 5}),
]


def counts_of(engine: BatchEngine) -> BatchCounts:
    counts = engine.snapshot().batch
    assert counts is not None
    return counts


def join_and_leave(
    engine: BatchEngine, letters: Letters, starts: Sequence[tuple[int, int]], cancelled: Set[int]
) -> None:
    """Send a request when as many pieces of text were delivered; some leave after their fifth; check every text.

    Args:
        engine: that answers.
        letters: makes the sessions of single runs.
        starts: which of MIXED each request is, and after how many pieces it comes.
        cancelled: the numbers of those that leave.
    """
    expected = [letters(chats=False).generate(prompt, **options).read() for prompt, options in MIXED]
    pieces, sent, ended = 0, list[tuple[int, Client]](), 0
    jobs: dict[int, Any] = {}
    todo = sorted(enumerate(starts), key=lambda start: start[1][1])

    def heard(client: Client) -> None:
        nonlocal pieces, ended
        pieces += isinstance(client.last, TextPiece)
        ended += isinstance(client.last, (Ended, Failed))
        number = next(n for n, c in sent if c is client)
        if number in cancelled and len(client.events) == 6:
            jobs[number].cancel()
        send()

    def send() -> None:
        while todo and (todo[0][1][1] <= pieces or ended == len(sent)):
            number, (which, _) = todo.pop(0)
            sent.append((number, Client(heard)))
            prompt, options = MIXED[which]
            jobs[number] = engine.submit(GenerationRequest(prompt, options), sent[-1][1])
        if not todo and ended == len(sent):
            engine.stop()

    send()
    engine.run()
    for number, client in sent:
        text = expected[starts[number][0]]
        if number in cancelled and isinstance(client.last, Failed):
            assert text.startswith(client.text())
        else:
            assert (client.text(), client.last) == (text, Ended())
