"""The file of --save-state: a text goes on bit for bit, and what does not fit the bundle is refused before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero_sd.runtime.load import load_folder
from hetero_sd.runtime.model.weights import Weights, write_weights
from hetero_sd.runtime.run import main
from hetero_sd.runtime.saved_state import _digest
from hetero_sd.runtime.serve.batch_engine import BatchEngine
from hetero_sd.runtime.serve.engine import ChoiceEnded, Ended, GenerationRequest
from hetero_sd.runtime.session import Session
from targets.errors import UserError

READ = np.random.default_rng(3).integers(1, 500, 37).tolist()


@pytest.fixture(scope="module")
def session(tiny_pair: Path) -> Iterator[Session]:
    with load_folder(tiny_pair, {"mode": "off"}) as session:
        yield session


@pytest.fixture(scope="module")
def state(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """READ and the first four tokens of its answer; the fifth was not fed."""
    path = tmp_path_factory.mktemp("state") / "state"
    session.answer(list(READ), max_new_tokens=5).read()
    session.save_state(path)
    return path


@pytest.mark.parametrize("mode", ["off", "sequential"])
def test_a_text_goes_on_bit_for_bit(tiny_pair: Path, session: Session, state: Path, mode: str) -> None:
    answer = session.answer(list(READ), max_new_tokens=5)
    answer.read()
    longer = [*READ, *answer.token_ids, 7, 8]
    expected = session.models.target.forward(longer, 0).copy()
    with load_folder(tiny_pair, {"mode": mode, **({"gamma": 1} if mode == "sequential" else {})}) as other:  # type: ignore[typeddict-item]
        assert other.load_state(state) == len(READ) + 4
        assert np.array_equal(other.models.target.forward(longer[41:], 41), expected[41:])
        other.load_state(state)
        found = other.answer(list(longer), max_new_tokens=9)
        assert found.read() == session.answer(list(longer), max_new_tokens=9).read()
        assert found.trace.kept_tokens == 41
        assert not np.array_equal(other.models.target.forward(longer[40:], 41), expected[41:])  # the negative control


def test_rows_that_differ_show(session: Session, state: Path, tmp_path: Path) -> None:
    """The negative control: the file of other rows, with the right hashes, gives other logits."""
    session.load_state(state)
    expected = session.models.target.forward([7], 41).copy()
    rewritten(state, tmp_path / "other", lambda name, array: array + (0.01 if name == "cache.1" else 0))
    session.load_state(tmp_path / "other")
    assert not np.array_equal(session.models.target.forward([7], 41), expected)
    session.load_state(state)
    assert np.array_equal(session.models.target.forward([7], 41), expected)


def rewritten(
    state: Path, path: Path, change: Callable[[str, Any], Any] = lambda _, array: array, **metadata: str
) -> Path:
    """A changed copy of a state, with the hash of what it holds."""
    tensors = Weights(state)
    arrays = {name: np.asarray(change(name, tensors[name])).astype(tensors[name].dtype) for name in tensors}
    facts = {**tensors.metadata, "tensors": _digest([*arrays.values()]), **metadata}
    found = [(name, str(array.dtype), array.shape, lambda a=array: a) for name, array in arrays.items()]
    write_weights(path, found, facts)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("change", "metadata", "said"),
    [
        (None, {"format": "another"}, "was not written by --save-state"),
        (None, {"bundle": "0" * 64}, "was saved with another bundle"),
        (None, {"tensors": "0" * 64}, "is damaged"),
        (lambda name, a: a[:1] if name == "cache.2" else a, {}, "has other rows than the target has"),
        (lambda name, a: a[:-1] if name == "token_ids" else a, {}, None),  # 40 tokens take other rows of the values
        (lambda name, a: np.tile(a, 2) if name == "token_ids" else a, {}, "does not hold 1 to 64 tokens"),
        (lambda name, a: a[:0] if name == "token_ids" else a, {}, "does not hold 1 to 64 tokens"),
        (lambda name, a: a + 10**6 if name == "token_ids" else a, {}, "has a token that the target does not know"),
        (lambda name, a: a - 10**6 if name == "token_ids" else a, {}, "has a token that the target does not know"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    session: Session, state: Path, tmp_path: Path, change: Any, metadata: dict[str, str], said: str | None
) -> None:
    session.load_state(state)
    expected = session.models.target.forward([7], 41).copy()
    path = rewritten(state, tmp_path / "changed", change or (lambda _, array: array), **metadata)
    with pytest.raises(UserError, match=said or "has other rows") as refused:
        session.load_state(path)
    assert "\n" not in str(refused.value)
    assert np.array_equal(session.models.target.forward([7], 41), expected)  # nothing was written


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_files_are_refused(session: Session, state: Path, data: st.DataObject) -> None:
    raw = bytearray(state.read_bytes())
    at = data.draw(st.one_of(st.integers(0, 400), st.integers(0, len(raw) - 1)))
    raw[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from([len(raw), len(raw), at, 0]))
    path = state.with_name("damaged")
    path.write_bytes(raw[:cut])
    said = refusal(session, path)
    if said is None:
        assert Weights(path).metadata == Weights(state).metadata  # in what fills the header or a tensor's place
    else:
        assert "\n" not in said


def refusal(session: Session, path: Path) -> str | None:
    """What is said of a file, or None where it is taken."""
    try:
        session.load_state(path)
    except UserError as error:
        return str(error)
    return None


def test_a_server_begins_with_it(tiny_slots: Path, tmp_path: Path) -> None:
    """Every slot has it from the first one."""
    with load_folder(tiny_slots, {"mode": "off"}) as session:
        session.answer(list(READ), max_new_tokens=1).read()
        session.save_state(tmp_path / "state")
        prompts = [[*READ, i, i] for i in (3, 4, 5)]
        expected = [session.answer(list(prompt), max_new_tokens=6).read() for prompt in prompts]
    with load_folder(tiny_slots, {"mode": "off"}) as session:
        assert session.load_state(tmp_path / "state") == 37
        assert session.slots is not None
        engine = BatchEngine(session, session.slots, 4, 60.0)
        heard: list[Any] = []

        def hear(event: Any) -> None:
            heard.append(event)
            if sum(isinstance(e, Ended) for e in heard) == 3:
                engine.stop()

        for prompt in prompts:
            engine.submit(GenerationRequest(prompt, {"max_new_tokens": 6}), hear)
        engine.run()
        assert [e.counts.kept for e in heard if isinstance(e, ChoiceEnded)] == [37] * 3
        assert session.models.target.held(READ) == 0  # the rows are the engine's now
    assert len(expected) == len(set(expected)) == 3


def test_the_options_of_the_command(tiny_pair: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*options: str) -> dict[str, Any]:
        arguments = ["--json", "--mode", "off", "--no-chat-template", "--max-new-tokens", "3", *options]
        assert main(tiny_pair, arguments) == 0
        found: dict[str, Any] = json.loads(capfd.readouterr().out)
        return found

    saved = str(tmp_path / "state")
    first = run("--prompt", "one two three", "--save-state", saved)
    again = run("--prompt", "one two three four", "--load-state", saved)
    alone = run("--prompt", "one two three four")
    assert again["token_ids"] == alone["token_ids"]
    kept = [found["stats"]["kept_tokens"] for found in (first, again, alone)]
    assert kept[0] == kept[2] == 0
    assert kept[1] > 0
    (tmp_path / "text").write_text("no state")
    assert main(tiny_pair, ["--prompt", "x", "--load-state", str(tmp_path / "text")]) == 2
    assert main(tiny_pair, ["--prompt", "x", "--load-state", str(tmp_path / "none")]) == 2
    assert main(tiny_pair, ["--prompt", "x", "--save-state", str(tmp_path)]) == 2
    assert capfd.readouterr().err.count("run.py: error: ") == 3


def test_nothing_to_save(letters: Callable[..., Session], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing was read that could be saved"):
        letters().save_state(tmp_path / "state")
    assert not (tmp_path / "state").exists()
