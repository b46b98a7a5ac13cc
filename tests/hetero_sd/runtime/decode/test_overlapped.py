"""The drafter goes on while the target verifies, and the text is the target's own, whatever the threads do when.

Toy models whose steps take random times; a guard ends a test whose threads wait for each other.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from queue import Empty

import numpy as np
import pytest
from scipy.stats import chisquare

from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.overlapped.draft_side import DraftSide
from hetero_sd.runtime.decode.overlapped.draft_thread import DraftThread
from hetero_sd.runtime.decode.overlapped.overlapping import overlapping
from hetero_sd.runtime.decode.overlapped.target_side import Overlap, speculate_overlapped
from hetero_sd.runtime.decode.sampling import Sampling, probabilities
from hetero_sd.runtime.decode.stats import stats_json
from hetero_sd.runtime.decode.stats_text import stats_table
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.model.kept_prefix import KeptPrefix
from hetero_sd.runtime.model.protocol import Model, Models, NotFiniteError
from hetero_sd.runtime.session import Session
from targets.backend import ProcessorFailed

GUARD_S = 300.0  # far more than any text takes: only threads that wait for each other reach it


def guarded(run: Callable[[], object]) -> None:
    """Run in a thread of its own; fail where it does not end."""
    raised: list[BaseException] = []

    def catch() -> None:
        try:
            run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=catch, daemon=True)
    thread.start()
    thread.join(GUARD_S)
    assert not thread.is_alive(), "the threads wait for each other"
    if raised:
        raise raised[0]


class Slow(Model):
    """A model whose steps take a random time, or let the other thread run, or do neither."""

    def __init__(self, model, rng: random.Random, most_s: float) -> None:
        self._model, self._rng, self._most_s = model, rng, most_s
        self.vocab, self.context, self.name = model.vocab, model.context, model.name

    def submit(self, *given, **more):
        before, after = self._rng.random(), self._rng.random()
        self._pause(before)
        pending = self._model.submit(*given, **more)
        self._pause(after)
        return pending

    def _pause(self, drawn: float) -> None:
        if drawn < 0.2:
            time.sleep(drawn * self._most_s)
        elif drawn < 0.5:
            time.sleep(0)


class Checking(Slow):
    """A target that compares every draft with what a drafter without a cache drafts from the text."""

    def __init__(self, model, draft, *more) -> None:
        super().__init__(model, *more)
        self._fresh = type(draft)(draft.table, 10**6)
        self._known = min(draft.vocab, model.vocab)
        self.checked = 0

    def submit(self, ids, pos, outputs=("choice",), last=False):
        text = [*self._model.rows[:pos], ids[0]]
        for token in () if last else ids[1:]:
            known = [t if t < self._fresh.vocab else 0 for t in text]
            best = int(self._fresh.forward(known, 0)[-1][: self._known].argmax())
            assert token == best, "a draft that follows from another text"
            text.append(token)
            self.checked += 1
        return super().submit(ids, pos, outputs, last)


def fuzz(pair, seeds) -> dict[str, int]:
    """Texts of random pairs, one thread for a few of them; what was seen."""
    seen = dict.fromkeys(("texts", "checked", "drafted", "accepted", "plain"), 0)
    for group in (seeds[i : i + 6] for i in range(0, len(seeds), 6)):
        with DraftThread() as thread:
            for seed in group:
                _one_text(pair, random.Random(seed), thread, seen)
    return seen


def _one_text(pair, rng, thread, seen) -> None:
    context = rng.randint(12, 50)
    more = {"context": context, "draft_vocab": rng.choice([None, 3, 8]), "draft_context": rng.choice([None, 5, 20])}
    target, draft = pair(rng.randrange(10**6), rng.choice([0.0, 0.3, 1.0, 5.0]), **more)
    prompt = [rng.randrange(target.vocab) for _ in range(rng.randint(1, 12))]
    request = Request(rng.randint(1, 40), frozenset(rng.sample(range(6), rng.choice([0, 0, 1]))))
    wanted = Trace()
    list(generate(target, prompt, request, wanted))
    target.rows = []
    gamma = rng.randint(1, 6)
    overlap = Overlap(thread, gamma, rng.choice([0, gamma, rng.randint(0, gamma)]))
    times = rng.choice([0.0, 0.002])
    checking = Checking(target, draft, random.Random(rng.random()), times)
    kept = KeptPrefix(Slow(draft, random.Random(rng.random()), rng.choice([0.0, 0.002])))
    if before := rng.choice([0, len(prompt), rng.randint(1, len(prompt))]):  # of the prompt, in a text before
        kept.submit([token if token < draft.vocab else 0 for token in prompt[: min(before, draft.context)]], 0).result()
    drafter = ModelDrafter(kept, target.vocab, Sampling(), prompt)
    trace, leave = Trace(), rng.choice([None, None, None, rng.randint(1, 20)])
    stream = speculate_overlapped(checking, drafter, prompt, request, overlap, trace)
    found = list(itertools.islice(stream, leave))
    stream.close()  # as a stop string does
    assert found == wanted.token_ids[: len(found)]
    if leave is None:
        assert (found, trace.finish_reason) == (wanted.token_ids, wanted.finish_reason)
    assert all(r.accepted <= r.drafted <= gamma for r in trace.rounds)
    assert trace.lost_drafter is None
    seen["texts"] += 1
    seen["checked"] += checking.checked
    seen["drafted"] += sum(r.drafted for r in trace.rounds)
    seen["accepted"] += sum(r.accepted for r in trace.rounds)
    seen["plain"] += sum(not r.drafted for r in trace.rounds)


def fuzzed(pair, seeds) -> dict[str, int]:
    found: list[dict[str, int]] = []
    guarded(lambda: found.append(fuzz(pair, seeds)))
    return found[0]


def test_300_texts_with_random_delays_are_the_targets_own(pair) -> None:
    seen = fuzzed(pair, range(300))
    assert seen["texts"] == 300
    assert seen["checked"] == seen["drafted"] > 1000
    assert 500 < seen["accepted"] < seen["drafted"]
    assert seen["plain"] > 300


@pytest.mark.deep
def test_10000_texts_with_random_delays_are_the_targets_own(pair) -> None:
    for start in range(1000, 11000, 1000):  # the guard is for each thousand
        assert fuzzed(pair, range(start, start + 1000))["texts"] == 1000


@pytest.mark.parametrize("name", ["target", "draft"])
def test_a_stale_row_of_the_cache_is_found(pair, table_model, monkeypatch, name) -> None:
    """A model that keeps the row in its place where a step begins before the end of the last one."""
    intact = table_model.submit

    def stale(self, ids, pos, outputs=("choice",), last=False):
        kept = self.rows[pos] if self.name == name and pos < len(self.rows) else ids[0]
        return intact(self, [kept, *ids[1:]], pos, outputs, last)

    fuzzed(pair, range(60))
    monkeypatch.setattr(table_model, "submit", stale)
    with pytest.raises(AssertionError, match="another text" if name == "draft" else "assert"):
        fuzzed(pair, range(60))


def test_threads_that_wait_for_each_other_are_found(pair, monkeypatch) -> None:
    """The negative control of the guard: a drafter that does not count misses, so that its drafts are dropped."""
    judge = DraftSide.judge

    def forgets(self, *given) -> None:
        judge(self, *given)
        self._epoch = 0

    assert len(run_guarded(*pair(7, 5.0, context=500), Request(60), least=3).token_ids) == 60
    monkeypatch.setitem(globals(), "GUARD_S", 1.0)
    monkeypatch.setattr(DraftSide, "judge", forgets)
    with pytest.raises(AssertionError, match="wait for each other"):
        run_guarded(*pair(7, 5.0, context=500), Request(60), least=3)


def run_guarded(target, draft, request, prompt=(1, 2, 3), gamma=3, least=0, rng=None) -> Trace:
    trace = Trace()

    def run() -> None:
        with DraftThread() as thread:
            drafter = ModelDrafter(draft, target.vocab, request.sampling)
            overlap = Overlap(thread, gamma, least)
            assert list(speculate_overlapped(target, drafter, prompt, request, overlap, trace, rng)) == trace.token_ids

    guarded(run)
    return trace


def test_waiting_for_all_drafts_makes_the_rounds_of_taking_turns(pair) -> None:
    """With a drafter that is always right every round accepts all; the guess of the target's own token is kept, too."""
    trace = run_guarded(*pair(7, 0.0, context=200), Request(60), least=3)
    assert len(trace.token_ids) == 60
    assert [(r.drafted, r.accepted) for r in trace.rounds[:-1]] == [(3, 3)] * 14
    assert sum(r.accepted for r in trace.rounds) <= len(trace.draft_steps_s) <= 59  # none was drafted twice


def test_end_of_text_and_context_inside_a_draft(pair) -> None:
    alone = Trace()
    list(generate(pair(7)[0], [1, 2, 3], Request(20), alone))
    eos = alone.token_ids[4]
    cut = alone.token_ids.index(eos) + 1
    trace = run_guarded(*pair(7, 0.0), Request(20, frozenset({eos})), gamma=6, least=6)
    assert (trace.token_ids, trace.finish_reason) == (alone.token_ids[:cut], "eos")
    trace = run_guarded(*pair(7, 0.0, context=10), Request(100), gamma=4, least=4)
    assert (len(trace.token_ids), trace.finish_reason) == (8, "context")
    trace = run_guarded(*pair(7, 0.0, context=3), Request(100), gamma=4, least=4)
    assert (len(trace.token_ids), trace.finish_reason) == (1, "context")
    trace = run_guarded(*pair(7, 0.0, context=60, draft_context=8), Request(30), gamma=4, least=4)
    assert len(trace.token_ids) == 30
    assert 0 < sum(r.drafted for r in trace.rounds) <= 6  # up to the drafter's context, and no waiting after it


@pytest.mark.parametrize("least", [0, 3])
def test_a_drafter_that_is_lost_leaves_the_target_alone(pair, least) -> None:
    lost = 0
    for row in range(11):
        target, draft = pair(row, 0.5)
        wanted = list(generate(target, [1, 2, 3], Request(40), Trace()))
        draft.table[row, 1] = np.nan
        trace = run_guarded(target, draft, Request(40), least=least)
        assert trace.token_ids == wanted
        if trace.lost_drafter is not None:
            lost += 1
            assert "the draft computed logits that are not finite" in trace.lost_drafter
    assert lost >= 8 or not least  # a target that does not wait may end before the drafter comes there


class Failing(Model):
    """A model that raises an error after some steps."""

    def __init__(self, model, steps: int, error: BaseException) -> None:
        self._model, self._left, self._error = model, steps, error
        self.vocab, self.context, self.name = model.vocab, model.context, model.name

    def submit(self, *given, **more):
        self._left -= 1
        if self._left < 0:
            raise self._error
        return self._model.submit(*given, **more)


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_a_processor_that_fails_leaves_the_target_alone(pair, steps) -> None:
    target, draft = pair(3, 0.0)
    wanted = list(generate(target, [1, 2, 3], Request(40), Trace()))
    trace = run_guarded(target, Failing(draft, steps, ProcessorFailed("clFinish: -36")), Request(40), least=3)
    assert trace.token_ids == wanted
    assert trace.lost_drafter == "the drafter's processor failed: clFinish: -36"
    drafted = sum(r.drafted for r in trace.rounds)
    assert (drafted > 0) == (steps > 1)  # the first step reads the prompt
    assert drafted < max(1, steps)


def test_any_other_error_of_the_drafter_reaches_the_target(pair) -> None:
    target, draft = pair(3, 0.0)
    with pytest.raises(ZeroDivisionError, match="a fault of ours"):
        run_guarded(target, Failing(draft, 5, ZeroDivisionError("a fault of ours")), Request(40), least=3)


def test_an_error_of_the_target_ends_both(pair) -> None:
    target, draft = pair(3, 0.0)
    target.table[:, 2] = np.nan
    with pytest.raises(NotFiniteError, match="the target computed"):
        run_guarded(target, draft, Request(40))


def test_ctrl_c_joins_the_thread(pair) -> None:
    """Python raises it in the main thread, between two steps or while it waits for drafts."""
    before = threading.active_count()

    def run() -> None:
        target, draft = pair(3, 0.5)
        target = Failing(target, 6, KeyboardInterrupt())
        with DraftThread() as thread:
            drafter = ModelDrafter(draft, target.vocab, Sampling())
            list(speculate_overlapped(target, drafter, [1, 2], Request(40), Overlap(thread, 3, 3), Trace()))

    with pytest.raises(KeyboardInterrupt):
        guarded(run)
    assert threading.active_count() == before


def test_times_and_hand_overs_are_measured(pair) -> None:
    target, draft = pair(3, 0.5)
    trace = run_guarded(target, Slow(draft, random.Random(1), 0.002), Request(40), least=3)
    for r in trace.rounds:
        assert r.draft_s == 0.0
        assert r.total_s == r.wait_s + r.verify_s + r.sampling_s + r.dispatch_s
    stats = stats_json([trace], None)
    assert stats["median_s"]["wait"] == statistics.median(r.wait_s for r in trace.rounds)
    assert len(trace.draft_steps_s) >= stats["accepted"]
    assert trace.hand_overs_s
    assert min(trace.hand_overs_s) > 0
    assert 0 < sum(r.transfer_s for r in trace.rounds) <= sum(trace.hand_overs_s)
    assert all(r.transfer_s <= r.wait_s for r in trace.rounds)
    text = stats_table(stats)
    assert "wait for drafts (ms)" in text
    assert "hand-over (us)" in text


def calls_of_a_text(pair) -> tuple[Counter[str], int, int]:
    """What both threads call of C on the way of messages, by name; rounds, and steps of the drafter."""
    called, files = Counter[str](), ("draft_thread.py", "draft_side.py", "target_side.py", "test_overlapped.py")

    def note(frame, event, function) -> None:
        if event == "c_call" and frame.f_code.co_filename.endswith(files):
            called[function.__name__] += 1

    target, draft = pair(3, 0.5)
    trace, thread, threads_before, before = Trace(), DraftThread(), threading.getprofile(), sys.getprofile()
    drafter, overlap = ModelDrafter(draft, target.vocab, Sampling()), Overlap(thread, 3, 3)
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        with thread:
            list(speculate_overlapped(target, drafter, [1, 2], Request(40), overlap, trace))
    finally:
        sys.setprofile(before)
        threading.setprofile(threads_before)
    return called, len(trace.rounds), len(draft.fed)


WAITING = {"sleep", "acquire", "release", "wait", "select", "poll"}


def test_a_hand_over_is_one_put_and_one_get(pair, monkeypatch) -> None:
    """No sleep, no lock, and no look that is repeated: counted, whatever the threads do when."""
    called, rounds, steps = calls_of_a_text(pair)
    assert not WAITING & called.keys()
    assert called["put"] > rounds
    assert called["get"] + called["get_nowait"] <= 2 * called["put"] + rounds + 2
    assert called["empty"] <= 2 * called["put"] + steps + 2

    def polls(thread, wait):
        while True:
            try:
                return thread._outbox.get_nowait(), False
            except Empty:
                if not wait:
                    return None, False
                time.sleep(0)

    monkeypatch.setattr(DraftThread, "receive", polls)  # the negative control
    assert sum((calls_of_a_text(pair)[0] for _ in range(3)), Counter())["sleep"] > 0


def test_a_session_drafts_beside_the_target_and_ends_its_thread(pair) -> None:
    before, notes = threading.active_count(), list[str]()
    target, draft = pair(3, 0.5)
    wanted = list(generate(target, [1, 2], Request(40), Trace()))
    models = Models(target, draft)
    with overlapping(models, None, [0, 1], 3, 0, notes.append) as overlap:
        session = Session(models, None, Request(40), overlap=overlap)
        assert threading.active_count() == before + 1
        for _ in range(3):
            assert list(session.way.stream([1, 2], Trace())) == wanted
    assert threading.active_count() == before
    assert notes == []


# -- sampling --------------------------------------------------------------------------------------------------------

SAMPLED = Sampling(temperature=1.0)


def exact_law(pair, new: int) -> dict[tuple[int, ...], float]:
    """Probabilities of all texts of ``new`` tokens, by the target's own logits."""
    target, _ = pair(2, 1.5, vocab=3)
    law = {(): 1.0}
    for _ in range(new):
        law = {
            (*text, token): mass * p
            for text, mass in law.items()
            for token, p in enumerate(probabilities(target.forward([1, *text], 0)[-1], SAMPLED))
        }
    return law


def sampled_texts(pair, count: int, new: int) -> dict[tuple[int, ...], int]:
    counts: dict[tuple[int, ...], int] = {}
    target, draft = pair(2, 1.5, vocab=3)

    def run() -> None:
        with DraftThread() as thread:
            for seed in range(count):
                request = Request(new, sampling=Sampling(temperature=1.0, seed=seed))
                drafter = ModelDrafter(draft, target.vocab, request.sampling)
                text = tuple(speculate_overlapped(target, drafter, [1], request, Overlap(thread, 2), Trace()))
                counts[text] = counts.get(text, 0) + 1

    guarded(run)
    return counts


def p_value(counts: dict[tuple[int, ...], int], law: dict[tuple[int, ...], float]) -> float:
    total = sum(counts.values())
    rare = [text for text in law if total * law[text] < 5]
    often = [text for text in law if text not in rare]
    found = [counts.get(text, 0) for text in often] + [sum(counts.get(text, 0) for text in rare)]
    wanted = [total * law[text] for text in often] + [total * sum(law[text] for text in rare)]
    return float(chisquare(*zip(*[(f, w) for f, w in zip(found, wanted, strict=True) if w], strict=True)).pvalue)


@pytest.mark.slow
def test_sampled_texts_have_the_law_of_the_target(pair, monkeypatch) -> None:
    law = exact_law(pair, 4)
    assert math.isclose(sum(law.values()), 1.0)
    assert p_value(sampled_texts(pair, 2000, 4), law) > 1e-3

    def all_accepted(logits, drafted, q, sampling, rng):
        return len(drafted), rng.draw(probabilities(logits[len(drafted)], sampling))

    monkeypatch.setattr("hetero_sd.runtime.decode.speculate.accept_sampled", all_accepted)
    assert p_value(sampled_texts(pair, 2000, 4), law) < 1e-9


def test_a_sampled_run_repeats_by_its_seed(pair) -> None:
    """Whatever the delays are; another seed gives another text."""

    def text(seed: int, delays: int) -> list[int]:
        target, draft = pair(5, 0.5, context=200)
        slow = [Slow(model, random.Random(delays + i), 0.002) for i, model in enumerate((target, draft))]
        return run_guarded(*slow, Request(60, sampling=Sampling(temperature=1.0, seed=seed))).token_ids

    first = text(1, 0)
    assert all(text(1, 10 * i) == first for i in range(1, 6))
    assert text(2, 0) != first
