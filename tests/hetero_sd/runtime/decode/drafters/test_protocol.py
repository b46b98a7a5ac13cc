"""Another way to draft is one class with the methods of `Drafter`: the loops need no change, and the text is the same.

CONTRIBUTING.md, "Add a drafting method", names this class as the example.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

import hetero_sd.runtime.decode
from costmodel.schema.plan import Plan
from hetero_sd.predict.compilable import compilable
from hetero_sd.runtime.decode.drafters import Draft, Drafter, Offer
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.policy import FixedGamma
from hetero_sd.runtime.decode.speculate import speculate
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.decode.way import Way

DECODE = Path(next(iter(hetero_sd.runtime.decode.__path__)))


class LastOccurrence(Drafter):
    """Drafts what followed the last token where it stood before."""

    lost = None

    def offers(self, tokens, watch):
        self._places = [i for i, token in enumerate(tokens[:-1]) if token == tokens[-1]]
        watch.book("draft")
        return [Offer("last occurrence", len(tokens) - 1 - self._places[-1])] if self._places else []

    def read(self, tokens, most, skip, watch):
        return 0

    def propose(self, tokens, source, gamma, watch, rng, go_on=None):
        assert source == "last occurrence"
        return Draft(list(tokens[self._places[-1] + 1 :][:gamma]), [])

    def keep(self, length):
        pass


def texts(pair, drafter, seed, states=11, vocab=6):
    request, trace = Request(40), Trace()
    target, _ = pair(seed, 0.0, states=states, vocab=vocab)
    alone = list(generate(target, [1, 2], request, Trace()))
    target, _ = pair(seed, 0.0, states=states, vocab=vocab)
    return list(speculate(target, drafter, [1, 2], request, FixedGamma(3), trace)), alone, trace


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_drafter_of_ones_own_changes_no_token(pair, seed):
    found, alone, trace = texts(pair, LastOccurrence(), seed)
    assert found == alone
    assert all(r.accepted <= r.drafted <= 3 for r in trace.rounds)


def test_it_drafts_and_some_drafts_are_accepted(pair):
    rounds = [r for seed in range(30) for r in texts(pair, LastOccurrence(), seed, states=3, vocab=4)[2].rounds]
    assert sum(r.accepted for r in rounds) > 100
    assert sum(r.drafted - r.accepted for r in rounds) > 100


def test_a_drafter_may_draft_nothing(pair):
    class Silent(LastOccurrence):
        def propose(self, tokens, source, gamma, watch, rng, go_on=None):
            return Draft([], [])

    class OffersNothing(LastOccurrence):
        def offers(self, tokens, watch):
            return []

    for drafter in (Silent(), OffersNothing()):
        found, alone, trace = texts(pair, drafter, 3)
        assert found == alone
        assert {r.drafted for r in trace.rounds} == {0}


def strangers(source: str) -> set[str]:
    """What a loop imports besides the two protocols and the folder's own modules."""
    known = {"hetero_sd.runtime.decode.drafters", "hetero_sd.runtime.model.protocol"}
    modules = {n.module for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom) and n.module}
    ours = {m for m in modules if m.split(".")[0] == "hetero_sd"} - known
    return {m for m in ours if m.count(".") > 3 or not m.startswith("hetero_sd.runtime.decode.")}


def test_the_loops_depend_on_two_protocols_only() -> None:
    for name in ("generate", "speculate"):
        assert strangers((DECODE / f"{name}.py").read_text("utf-8")) == set()


def test_a_third_dependency_is_found() -> None:
    for module in (
        "hetero_sd.runtime.model.model",
        "hetero_sd.runtime.decode.drafters.model",
        "hetero_sd.compile.plan",
    ):
        assert strangers(f"from {module} import X\nfrom hetero_sd.runtime.decode.trace import Trace") == {module}


def test_the_recipe_names_the_whole_protocol_and_where_a_mode_stands() -> None:
    text = (Path(__file__).parents[5] / "CONTRIBUTING.md").read_text("utf-8")
    recipe = text.split("## Add a drafting method\n")[1].split("\n## ")[0]
    members = {name for name in (*vars(Drafter), *Drafter.__annotations__) if not name.startswith("_")}
    assert members >= {"lost", "offers", "propose"}
    named = set(re.findall(r"`([^`]+)`", recipe))
    assert members - named == set()
    assert {"Way.stream", "Plan.mode", "compilable"} <= named
    assert hasattr(Way, "stream")
    assert "mode" in {field.name for field in dataclasses.fields(Plan)}
    assert callable(compilable)
