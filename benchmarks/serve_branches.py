"""Branches of drafts on and off, for texts whose drafts are accepted as often as asked, in slots of one bundle.

    python benchmarks/serve_branches.py [--alpha 0.5] [--beta 0.4] [--in-branch 4] [--texts 1 2 4] [--threads 1]

The engine of `run.py --serve` without HTTP, on 100 M parameters in int8: random weights, so that what a text goes on
with is known from a run before, and drafts of it can be made right as often as --alpha says; a branch begins right in a
share --beta of the rounds whose first draft is wrong, and has as many tokens as --in-branch says at most. What the
engine believes of both it learns from the rounds. With a branch and without in turn, in one process; the texts are
compared. CPU time with one thread says more than the clock where others compute, too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from serve_requests import NEW, PROMPT, engine_counts, forget, measure, session_of

if TYPE_CHECKING:
    from hetero_sd.runtime.serve.batch_engine import BatchEngine
    from hetero_sd.runtime.session import Session

SLOTS = 8


def guided(texts: Sequence[Sequence[int]], options: argparse.Namespace, seed: int) -> Any:
    """A source of drafts that knows these texts."""
    from costmodel.draft_rows import NOTHING, Offer
    from hetero_sd.runtime.decode.drafters.ngram_pool import Match
    from hetero_sd.runtime.serve.text_drafts import MOST_DRAFTED, TextDrafts

    alpha, beta = options.alpha, options.beta
    chances = np.random.default_rng(seed).random((len(texts), PROMPT + NEW + 1, 2, MOST_DRAFTED))

    def drafted(right: Sequence[int], chance: Any, first: float) -> list[int]:
        """Tokens, right as often as they are to be; another token where one is not."""
        likely = [first, *[alpha] * len(right)]
        return [t if c < p else (t + 1) % 8 + 1 for t, c, p in zip(right, chance, likely, strict=False)]

    class Guided(TextDrafts):
        """Drafts of a text that is known."""

        def offer(self, tokens: Sequence[int], most: int, branches: bool = False) -> Offer:
            """See Drafts.offer."""
            self._match, self.branch, most = None, (), min(most, MOST_DRAFTED)
            number = next(i for i, text in enumerate(texts) if text[PROMPT - 1] == tokens[PROMPT - 1])
            right, chance = texts[number][len(tokens) : len(tokens) + most], chances[number, len(tokens)]
            if most < 1 or not right:
                return NOTHING
            self._match = Match(2, drafted(right, chance[0], alpha))
            if branches:
                wrong = self._match.tokens[0] != right[0]
                self.branch = drafted(right[: options.in_branch], chance[1], beta if wrong else 0.0)
            seen = self._acceptances("ngram-2", 0)
            return Offer(seen.alpha, len(self._match.tokens), beta=seen.beta, most_in_branch=len(self.branch))

    return Guided


def compare(session: Session, count: int, options: argparse.Namespace) -> None:
    """So many texts at a time, with branches and without."""
    from hetero_sd.runtime.model.slot_pool import SlotPool
    from hetero_sd.runtime.serve.batch_engine import BatchEngine

    assert session.slots is not None
    rng = np.random.default_rng(count)
    prompts = [[*rng.integers(0, session.models.target.vocab, PROMPT - 1).tolist(), i] for i in range(count)]
    forget(session)
    plain = measure(BatchEngine(session, session.slots, count, 600.0), prompts)
    texts = [[*ids, *map(int, text.split())] for ids, text in zip(prompts, plain.texts, strict=True)]
    found: dict[bool, list[Sums]] = {False: [], True: []}
    for repeat in range(options.repeats + 1):
        source = guided(texts, options, repeat)
        for branches in (False, True):
            forget(session)
            engine = BatchEngine(session, session.slots, count, 600.0, clock=time.process_time, drafts=True)
            with contextlib.ExitStack() as stack:
                stack.enter_context(patch("hetero_sd.runtime.serve.round_drafts.TextDrafts", source))
                if not branches:
                    stack.enter_context(patch.object(SlotPool, "free_for_branches", 0))
                measured = measure(engine, prompts)
            if measured.texts != plain.texts:
                raise SystemExit("the texts differ")
            found[branches].append(Sums.of(engine, measured.cpu_s))
    off, on = (sum(each[1:], Sums()) for each in (found[False], found[True]))
    ratio = off.cpu_s / on.cpu_s
    print(
        f"{count} at a time: {ratio:.3f} times less CPU with branches, {off.rounds / on.rounds:.3f} times fewer rounds"
    )
    print(f"  without {off.said()}\n  with    {on.said()}")
    copies_us = 1e6 * on.branching_s / max(1, on.branches)
    print(f"  {on.branches} branches, {on.won} won; giving a slot the rows took {copies_us:.0f} us")


@dataclass(frozen=True)
class Sums:
    """Of some runs of an engine."""

    cpu_s: float = 0.0
    tokens: int = 0
    rounds: int = 0
    rows: int = 0
    branches: int = 0
    won: int = 0
    branching_s: float = 0.0
    calls_s: float = 0.0
    scheduling_s: float = 0.0

    @classmethod
    def of(cls, engine: BatchEngine, cpu_s: float) -> Sums:
        """One run."""
        counts = engine_counts(engine)
        done = counts.tokens, counts.rounds, counts.rows, counts.branches, counts.branches_won
        return cls(cpu_s, *done, counts.branching_s, counts.calls_s, counts.scheduling_s)

    def __add__(self, other: Sums) -> Sums:
        """Both."""
        return Sums(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def said(self) -> str:
        """For a line of the table."""
        each = f"{1e3 * self.cpu_s / self.tokens:.3f} ms of CPU a token, {self.tokens / self.rounds:.3f} tokens a round"
        calls_ms, scheduling_ms = (1e3 * seconds / self.rounds for seconds in (self.calls_s, self.scheduling_s))
        return f"{each} of {self.rows / self.rounds:.2f} rows, ms: calls {calls_ms:.3f}, scheduling {scheduling_ms:.3f}"


def main() -> None:
    """Run the benchmark and print a line for each number of texts."""
    parser = argparse.ArgumentParser(description="branches of drafts on and off")
    parser.add_argument("--alpha", type=float, default=0.5, help="acceptance of a drafted token")
    parser.add_argument("--beta", type=float, default=0.4, help="of a branch where the first draft is wrong")
    parser.add_argument("--in-branch", type=int, default=4, help="tokens of a branch at most; 1: a second choice")
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 2, 4], help="at a time, in 8 slots")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=8, help="rounds in turn, each with other drafts")
    parser.add_argument("--model", type=Path, help="an ONNX decoder; default: 100M parameters in int8, random")
    options = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    from passes.synthetic import LLAMA_100M, write_llama

    with tempfile.TemporaryDirectory() as scratch:
        model = options.model
        if model is None:
            model = Path(scratch) / "llama100m.onnx"
            write_llama(model, LLAMA_100M, "int8")
        session = session_of(model, Path(scratch) / "bundle", SLOTS)
        for count in options.texts:
            compare(session, count, options)


if __name__ == "__main__":
    main()
