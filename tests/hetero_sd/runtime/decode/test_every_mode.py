"""What can go wrong at the end of a round, in every mode, on compiled bundles: each answer is that of the target alone.

Drafts that end a text, go beyond it or have to be taken back: a wrong row of a cache shows in the answer after it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import hetero_sd
from hetero_sd.cli import main
from hetero_sd.runtime.answer import Answer
from hetero_sd.runtime.decode import speculate
from hetero_sd.runtime.decode.generate import Request
from hetero_sd.runtime.manifest import read_manifest, write_manifest
from hetero_sd.runtime.session import Session
from hetero_sd.runtime.text.stream import REPLACEMENT

EXPORT = Path(__file__).resolve().parents[3] / "data" / "exports" / "llama-dynamo-fp32"
CONTEXT = 64
PROMPTS = ([5, 6, 7], [100, 200, 300, 400], [9] * 10, [45, 390, 300])
EARLY = "early exit"
MODES: dict[str, dict[str, Any]] = {
    "sequential": {"mode": "sequential", "gamma": 3},
    "overlapped, waits for none": {"mode": "overlapped", "gamma": 3, "least": 0},
    "overlapped, waits for all": {"mode": "overlapped", "gamma": 3, "least": 3},
    "n-gram": {"drafter": "ngram", "gamma": 3},
    "model and n-gram": {"drafter": "model+ngram", "gamma": 3},
    EARLY: {"mode": "sequential", "gamma": 3},
    f"{EARLY}, overlapped": {"mode": "overlapped", "gamma": 3, "least": 3},
    f"{EARLY} and n-gram": {"drafter": "model+ngram", "gamma": 7},
}


@pytest.fixture(scope="module")
def early_exit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target of `tiny_pair`, whose first layer drafts; without Python."""
    out = tmp_path_factory.mktemp("early") / "bundle"
    options = ["--tokenizer", str(EXPORT), "--board", "host", "--context", str(CONTEXT), "--gamma", "1"]
    assert main(["compile", str(EXPORT / "model.onnx"), "--draft", "early-exit:1", *options, "--out", str(out)]) == 0
    shutil.rmtree(out / "python")
    found = read_manifest(out / "manifest.json")
    write_manifest(out, found.models, found.plan, found.tokenizer, found.board)
    return out


class Halves:
    """Tokens that are parts of characters: é in two, a byte that is none, a letter."""

    PARTS = (b"\xc3", b"\xa9", b"\xc3\xa9", b"a", b"\xa9b")

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.PARTS[i % len(self.PARTS)] for i in ids).decode("utf-8", "replace")


def asked(session: Session, prompt: Sequence[int], eos: int | None = None, **options: Any) -> Answer:
    """An answer to its end, of tokens after a prompt, which end with that id."""
    session.request = Request(eos_ids=frozenset() if eos is None else frozenset({eos}))
    answer = session.generate(prompt, **{"max_new_tokens": 40, **options})
    answer.read()
    return answer


@pytest.fixture(scope="module")
def alone(tiny_pair: Path) -> Iterator[Session]:
    """The target alone."""
    with hetero_sd.load(tiny_pair, mode="off") as session:
        session.text = Halves()  # type: ignore[assignment]
        yield session


@pytest.fixture(scope="module", params=MODES)
def session(request: pytest.FixtureRequest, tiny_pair: Path, early_exit: Path) -> Iterator[Session]:
    """Every other mode. What n-grams are looked for in has seen the answers, but the ends of some."""
    bundle = early_exit if request.param.startswith(EARLY) else tiny_pair
    with hetero_sd.load(bundle, **MODES[request.param]) as session:
        session.text = Halves()  # type: ignore[assignment]
        for prompt in PROMPTS:
            asked(session, prompt, max_new_tokens=30)
        yield session


def beyond(answer: Answer) -> int:
    """Tokens that its rounds had beyond its end."""
    return 1 + sum(r.accepted + 1 for r in answer.trace.rounds) - len(answer.token_ids)


def is_the_same(found: Answer, wanted: Answer) -> None:
    assert (found.token_ids, found.text, found.stop_reason) == (wanted.token_ids, wanted.text, wanted.stop_reason)


def test_drafts_are_taken_back(session: Session, alone: Session) -> None:
    """Texts that go on otherwise where a draft was."""
    drafted = accepted = 0
    for prompt in PROMPTS:
        texts = [prompt, *([*prompt, *asked(alone, prompt).token_ids[:cut], 7, 8] for cut in (1, 2, 5, 11))]
        for text in texts:
            found = asked(session, text)
            is_the_same(found, asked(alone, text))
            drafted, accepted = drafted + found.stats["drafted"], accepted + found.stats["accepted"]
    assert 0 < accepted < drafted


def test_an_end_of_text_ends_it_wherever_it_is_in_a_round(session: Session, alone: Session) -> None:
    cut = 0
    for prompt in PROMPTS:
        for at in range(12):
            eos = asked(alone, prompt).token_ids[at]
            found, wanted = asked(session, prompt, eos), asked(alone, prompt, eos)
            is_the_same(found, wanted)
            assert (found.stop_reason, found.token_ids[-1]) == ("eos", eos)
            cut += beyond(found) > 0
    assert cut > 0  # inside a draft
    is_the_same(asked(session, PROMPTS[0]), asked(alone, PROMPTS[0]))


@pytest.mark.parametrize("reason", ["context", "length"])
def test_a_limit_inside_a_round_is_kept(session: Session, alone: Session, reason: str) -> None:
    for prompt in PROMPTS:
        text = [*prompt, *asked(alone, prompt, max_new_tokens=50 - len(prompt)).token_ids]
        for at in range(8):
            given = text[: len(text) - at] if reason == "context" else text[:20]
            most = 100 if reason == "context" else 1 + at
            found, wanted = (asked(some, given, max_new_tokens=most) for some in (session, alone))
            is_the_same(found, wanted)
            assert found.stop_reason == reason
            assert len(found.token_ids) == (CONTEXT + 1 - len(given) if reason == "context" else most)


def test_a_stop_string_ends_the_text_and_the_next_one_begins_as_if_it_had_not(session: Session, alone: Session) -> None:
    for prompt in PROMPTS:
        whole = asked(alone, prompt)
        for at in range(0, 12, 2):
            stop = [whole.text[at : at + 3]]
            found, wanted = asked(session, prompt, stop=stop), asked(alone, prompt, stop=stop)
            is_the_same(found, wanted)
            assert found.stop_reason == "stop"
            assert stop[0] not in found.text
            further = [*prompt, *whole.token_ids[:at], 11]
            is_the_same(asked(session, further, max_new_tokens=9), asked(alone, further, max_new_tokens=9))
        is_the_same(asked(session, prompt), whole)


def test_characters_of_several_tokens_are_shown_whole(session: Session, alone: Session) -> None:
    """Wherever a round ends; what is no character is shown as such, but where a limit cuts it."""
    borders = 0
    for prompt in PROMPTS:
        wanted = list(alone.generate(prompt, max_new_tokens=40))
        answer = session.generate(prompt, max_new_tokens=40)
        assert list(answer) == wanted
        whole = Halves().decode(answer.token_ids)
        assert answer.text == (whole if answer.stop_reason == "eos" else whole.rstrip(REPLACEMENT))
        at, ids = 0, answer.token_ids
        for finished in answer.trace.rounds:
            at += finished.accepted + 1
            borders += at < len(ids) and Halves().decode(ids[at - 1 : at + 1]) == "é"
    assert borders > 0  # a character lies in two rounds


def test_a_sampled_text_repeats_by_its_seed(session: Session) -> None:
    """Whatever was asked before: other texts, from which n-grams would draft otherwise."""
    for prompt in PROMPTS:
        one, other, same = (asked(session, prompt, temperature=0.5, seed=seed) for seed in (1, 2, 1))
        assert one.token_ids == same.token_ids != other.token_ids


def test_a_draft_that_should_have_been_rejected_shows(
    tiny_pair: Path, alone: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: a loop that accepts one draft too many."""
    accept = speculate.accept_greedy

    def one_too_many(best: Sequence[int], drafted: Sequence[int]) -> tuple[int, int]:
        accepted = min(accept(best, drafted)[0] + 1, len(drafted))
        return accepted, int(best[accepted])

    monkeypatch.setattr(speculate, "accept_greedy", one_too_many)
    with hetero_sd.load(tiny_pair, **MODES["sequential"]) as session:
        session.text = Halves()  # type: ignore[assignment]
        for prompt in PROMPTS:
            assert asked(session, prompt).token_ids != asked(alone, prompt).token_ids
