"""Rounds of a pair: what was measured, what the cost model says, and the choice that it would have made."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from prediction_cases import NGRAM, OVERLAPPED, Pair

from costmodel.contention import Load, together_bytes_per_s
from costmodel.factors import Factors
from costmodel.processor import CpuSlice, GpuSlice, Processor
from costmodel.roofline import Roofline, dram_bytes
from costmodel.speculative import Round as ExpectedRound
from costmodel.speculative import RoundCosts, ngram_round, overlapped_round, sequential_round
from costmodel.turns import turns_of
from costmodel.work import step_units
from hetero_sd.acceptance_rate import judge
from hetero_sd.runtime.decode.trace import Round
from targets.device import Board

LEAST = 10  # turns of a point; fewer make it unstable
ERROR = 0.05  # the standard error of the median of the turns of a round may be this share of it
PLATEAU = 0.03  # draft lengths this close to the best are as good
TIE = 0.1  # predicted speeds this close are called a tie, as the verdicts of `predict` are (costmodel/ties.py)


class MeasuredPair:
    """What the runs of one pair say: rounds by draft length, acceptance by position, bandwidth."""

    def __init__(self, pair: Pair, paths: Iterable[Path]) -> None:
        """Read all processes' files."""
        self.pair = pair
        files = [json.loads(path.read_text("utf-8")) for path in paths]
        runs = [run for file in files for run in file["runs"]]
        self.gammas = sorted({run["gamma"] for run in runs})
        self.past = 64
        self.bandwidth = median([rate for file in files for rate in file["bandwidth_gb_per_s"]])
        self.turns = {g: [r for r in runs if r["gamma"] == g and r["total_s"]] for g in self.gammas}
        whole = [
            (run["gamma"], drafted, accepted)
            for run in runs
            if run["gamma"]
            for drafted, accepted in zip(run["drafted"], run["accepted"], strict=True)
        ]
        self.match = mean([drafted > 0 for _, drafted, _ in whole]) if pair.mode == NGRAM and whole else 1.0
        rounds = [Round(drafted, accepted, 0.0, 0.0, 0.0, 0.0) for _, drafted, accepted in whole if drafted]
        seen = judge(rounds, max(self.gammas))
        turns = [file["turns"] for file in files if file.get("turns")]
        self.turns_s = {name: min(t[name] for t in turns) for name in ("draft_s", "verify_s")} if turns else {}
        self.alpha = [p / max(1, s) for p, s in zip(seen.passed, seen.seen, strict=True)]

    @property
    def verify_turn_s(self) -> float:
        """What the target's step takes longer in rounds, of a pair that calibration sees."""
        return self.turns_s["verify_s"]

    def round_s(self, gamma: int) -> float:
        """Median over the turns of the mean round."""
        return median([mean(t["total_s"]) for t in self.turns[gamma]])

    def stable(self, gamma: int, least: int = LEAST) -> bool:
        """Enough turns, and their median is certain."""
        times = sorted(mean(t["total_s"]) for t in self.turns[gamma])
        if not times:
            return False
        error = 0.929 * (times[(3 * len(times)) // 4] - times[len(times) // 4]) / len(times) ** 0.5
        return len(times) >= least and error <= ERROR * median(times)

    def tokens(self, gamma: int) -> float:
        """Mean tokens of a round."""
        return 1 + mean([a for t in self.turns[gamma] for a in t["accepted"]])

    def dispatch_s(self) -> float:
        """Median time of a round outside both models."""
        return median(
            [
                whole - draft - verify
                for turns in self.turns.values()
                for t in turns
                for whole, draft, verify in zip(t["total_s"], t["draft_s"], t["verify_s"], strict=True)
            ]
        )


class PricedPair:
    """A pair's rounds by the model, or by a flat roofline: bytes over the bandwidth measured beside its rounds."""

    def __init__(
        self, pair: MeasuredPair, board: Board, factors: Factors, shapes: dict[str, Any], flat: bool = False
    ) -> None:
        """Price the steps of its models where they ran."""
        self.pair, self.flat, self._shapes = pair, flat, shapes
        self._sizes = {
            role: dram_bytes(step_units(shapes[name], 1, pair.past)) if name in shapes else 0.0
            for role, name in (("draft", pair.pair.draft), ("target", pair.pair.target))
        }
        one, every = board.clusters[0].bandwidth_one_thread_gb_per_s, board.clusters[0].bandwidth_all_threads_gb_per_s
        two = "2" in pair.pair.target_on
        one, every = (min(one, pair.bandwidth), pair.bandwidth) if two else (pair.bandwidth, every)
        self._cluster = replace(
            board.clusters[0], bandwidth_one_thread_gb_per_s=one, bandwidth_all_threads_gb_per_s=every
        )
        gpu = replace(board.gpu, bandwidth_gb_per_s=pair.bandwidth) if board.gpu else None
        self._board = replace(board, clusters=(self._cluster,), gpu=gpu)
        self._roofline = Roofline(self._board, factors)

    def _place(self, on: str) -> Processor:
        if on == "gpu" and self._board.gpu:
            return GpuSlice(self._board.gpu, self._cluster)
        return CpuSlice(((self._cluster, 2 if on == "2" else 1),))

    def _load(self, role: str, n: int, beside: bool = True, in_a_row: int | None = None) -> Load:
        """A step of n tokens; `beside`: after steps of the other model, which took caches."""
        pair, size = self.pair.pair, self._sizes[role]
        if self.flat:
            seconds = size / (self.pair.bandwidth * 1e9)
            return Load(seconds, seconds, size)
        name, on = (pair.draft, pair.draft_on) if role == "draft" else (pair.target, pair.target_on)
        other = self._sizes["target" if role == "draft" else "draft"] if beside else 0.0
        found = self._roofline.step(self._shapes[name], self._place(on), n, self.pair.past, 1, other, in_a_row)
        return Load(found.total_s, found.memory_s, size)

    def round(self, gamma: int) -> ExpectedRound:
        """The expected round with so many drafts, in the pair's mode."""
        pair, alpha = self.pair.pair, self.pair.alpha
        turns, other_s = turns_of(self._roofline), 0.0 if self.flat else self._roofline.round_overhead_s()
        if not gamma:
            return sequential_round(
                alpha, 0, RoundCosts(0.0, 0.0, lambda n: self._load("target", n, False).total_s, other_s)
            )
        if pair.mode == NGRAM:
            costs = RoundCosts(0.0, 0.0, lambda n: self._load("target", n, False).total_s, other_s)
            return ngram_round(
                self.pair.match, sequential_round(alpha, gamma, costs), sequential_round(alpha, 0, costs)
            )
        if pair.mode == OVERLAPPED:
            shared = self._cluster if "gpu" not in (pair.draft_on, pair.target_on) else None
            limit = together_bytes_per_s(self._board, self._roofline.factors, shared)
            draft, verify = self._load("draft", 1), self._load("target", gamma + 1)
            hand_over = 0.0 if self.flat else self._roofline.hand_over_s()
            return overlapped_round(alpha, gamma, draft, verify, other_s, limit, hand_over)
        draft_s, verify_s = (0.0, 0.0) if self.flat else (turns.draft_s, turns.verify_s)
        one, two = (self._load("draft", n, in_a_row=0).total_s + draft_s for n in (1, 2))
        costs = RoundCosts(
            *(one, two, lambda n: self._load("target", n).total_s + verify_s),
            other_s,
            drafts_s=lambda count: sum(self._load("draft", 1, in_a_row=i).total_s + draft_s for i in range(count)),
        )
        return sequential_round(alpha, gamma, costs)


def pair_rows(pair: MeasuredPair, board: Board, factors: Factors, shapes: dict[str, Any]) -> list[dict[str, Any]]:
    """Rounds and speed-ups of every draft length, and whether the choice of it would have been right."""
    priced, flat = (PricedPair(pair, board, factors, shapes, flat) for flat in (False, True))
    rounds, plain = ({g: by.round(g) for g in pair.gammas} for by in (priced, flat))
    speed = {g: pair.tokens(g) / pair.round_s(g) for g in pair.gammas}
    guess = {g: r.tokens_per_s for g, r in rounds.items()}
    chosen = max(guess, key=lambda g: guess[g])
    good = [g for g in pair.gammas if speed[g] >= (1 - PLATEAU) * max(speed.values())]
    tied = any(guess[g] >= (1 - TIE) * guess[chosen] for g in good)
    rows = []
    for g in pair.gammas:
        flat_speedup = plain[g].tokens_per_s / plain[0].tokens_per_s
        rows.append(
            {
                "draft": pair.pair.draft,
                "target": pair.pair.target,
                "draft_on": pair.pair.draft_on,
                "target_on": pair.pair.target_on,
                "mode": pair.pair.mode,
                "gamma": g,
                "stable": pair.stable(g),
                "bandwidth_gb_per_s": pair.bandwidth,
                "alpha": pair.alpha,
                "match": pair.match,
                "tokens": pair.tokens(g),
                "expected_tokens": rounds[g].tokens,
                "round_s": pair.round_s(g),
                "predicted_round_s": rounds[g].time_s,
                "round_error": rounds[g].time_s / pair.round_s(g) - 1,
                "flat_round_error": plain[g].time_s / pair.round_s(g) - 1,
                "speedup": speed[g] / speed[0],
                "predicted_speedup": guess[g] / guess[0],
                "speedup_error": (guess[g] / guess[0]) / (speed[g] / speed[0]) - 1,
                "flat_speedup_error": flat_speedup / (speed[g] / speed[0]) - 1,
                "chosen": g == chosen,
                "good": g in good,
                "tied": tied,
            }
        )
    return rows
