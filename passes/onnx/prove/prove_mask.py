"""Proves that an exporter's mask is causal AND padding AND window, by running it and comparing row by row.

Nothing is assumed about how the mask is written: the piece from scores to what the softmax gets is run on scores
of zero and on random scores, at several lengths and paddings. What agrees becomes one CausalMask node; what does
not is refused with the first query and key that differ. Rows of padding tokens are not compared: nothing reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from passes.onnx.pass_context import Declined, Importing, describe
from passes.onnx.prove.alibi import BIASED, HIDDEN_BELOW, Alibi
from passes.onnx.prove.context_limit import limit_context
from passes.onnx.prove.run_subgraph import Piece, shaped, spread
from passes.onnx.rewrite.attention_sites import Site
from passes.onnx.shapes import Point
from targets.errors import UserError


@dataclass(frozen=True)
class Mask:
    """The proven mask.

    Attributes:
        window: a query sees itself and the window - 1 positions before it; 0: all of them.
        padding: whether attention_mask hides keys.
        scale: factor the export applies to the scores before the softmax.
        notes: what a reader of the log should know, as sentences.
        many_tokens_after_past: whether the export itself can run several new tokens after a past.
        softcap: a scaled score s becomes softcap * tanh(s / softcap) before it is masked; 0: it stays.
        slopes: of each head, times the position of a key they are added to its score (ALiBi); empty: nothing is.
    """

    window: int
    padding: bool
    scale: float
    notes: tuple[str, ...] = ()
    many_tokens_after_past: bool = True
    softcap: float = 0.0
    slopes: tuple[float, ...] = ()


@dataclass(frozen=True)
class Case:
    """Sizes and a padding: `pads[b]` zeros at the left (or right) of row b of attention_mask."""

    at: Point
    pads: tuple[int, ...]
    left: bool = True

    def attention_mask(self) -> np.ndarray:
        """int64 [batch, past + new]."""
        total = self.at.past + self.at.new
        columns = np.arange(total) if self.left else np.arange(total)[::-1]
        return (columns[None, :] >= np.array(self.pads)[:, None]).astype(np.int64)


def visible(at: Point, mask: np.ndarray, window: int, padding: bool) -> np.ndarray:
    """Bool [batch, new, total]: the formula that is to be proven."""
    query = at.past + np.arange(at.new)[:, None]
    key = np.arange(at.past + at.new)[None, :]
    seen = (key <= query) & ((key > query - window) if window else True)
    return seen[None] & (mask[:, None, :].astype(bool) if padding else np.ones_like(mask, bool)[:, None, :])


def prove_mask(imp: Importing, site: Site, heads: int) -> Mask:
    """The mask of a site.

    Raises:
        Declined: it depends on a weight, biases what it shows, or differs from the formula.
        UserError: the export has a bias for fewer tokens than the context.
    """
    if site.causal and not imp.facts.no_cache:
        raise Declined("the causal flag of the operator is not supported; export with a mask")
    if site.causal and site.masked is None:
        return Mask(0, False, 1.0, softcap=site.softcap)
    if site.masked is None:
        raise Declined("there is no mask and the attention is not causal")
    cut = [] if site.scores is None else [site.scores]
    piece = Piece(imp, cut, site.masked)
    rng = np.random.default_rng(0)
    scale, cap, bias = 1.0, site.softcap, Alibi()
    declined: list[str] = []
    runs: list[tuple[Case, np.ndarray]] = []
    for case in _cases(imp, "attention_mask" in piece.uses):
        try:
            if site.scores is not None and not runs:
                cap = _cap(piece, site, case, heads)
            seen, factor = _run(piece, site, case, heads, rng, cap, bias)
            if site.causal:
                seen = seen & visible(case.at, case.attention_mask(), 0, False)
        except Declined as reason:
            if case.at.past == 0 or case.at.new == 1:
                _check_length(imp, piece, site, heads)
                raise
            declined.append(str(reason))
            continue
        scale = factor if factor is not None else scale
        runs.append((case, seen))
    window = _window(runs[0][1])
    padding = "attention_mask" in piece.uses
    for case, seen in runs:
        _compare(case, seen, window, padding)
    notes = [f"the export itself takes one token at a time after a past: {reason}" for reason in declined[:1]]
    if "position_ids" in piece.uses:
        notes.append("the mask reads position_ids: it is proven for positions that go on from the past")
    return Mask(window, padding, scale, tuple(notes), not declined, cap, bias.slopes)


def _cases(imp: Importing, padded: bool) -> Iterator[Case]:
    """The longest past first: it tells the window. Only what fits the context is asked of the mask."""
    batch, longest = imp.facts.batch or 2, imp.context
    sizes = [(1, longest - 1), (min(40, longest), 0), (3, 5), (1, 9)]
    if imp.facts.no_cache:
        sizes = [(longest, 0), (min(40, longest), 0), (1, 0)]
    unpadded = [Case(Point(batch, new, past), (0,) * batch) for new, past in sizes]
    some = tuple(range(1, batch + 1))
    sides = [(6, 0, True), (3, 5, True), (1, 9, True), (6, 0, False)]
    sides = [(new, past, left) for new, past, left in sides if not (past and imp.facts.no_cache)]
    pads = [Case(Point(batch, new, past), some, left) for new, past, left in sides] if padded else []
    yield from (case for case in unpadded + pads if case.at.new + case.at.past <= longest)


def _check_length(imp: Importing, piece: Piece, site: Site, heads: int) -> None:
    """Refuse the context where the slopes of the heads are others for so many tokens than for two: MPT's table ends."""
    batch = imp.facts.batch or 2

    def slopes(total: int) -> tuple[float, ...] | None:
        at, bias = Point(batch, 1, total - 1), Alibi()
        cuts = {} if site.scores is None else {site.scores: np.zeros(_scores_shape(site, at, heads), np.float32)}
        try:
            base = spread(piece.run(at, cuts), (batch, heads, 1, total))
            bias.taken_off(base, base, base > HIDDEN_BELOW, np.ones((batch, 1), bool))
        except Declined:
            return None
        return bias.slopes

    low, high = 2, imp.context
    right = slopes(low)
    if not right or slopes(high) == right:
        return
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if slopes(middle) == right else (low, middle)
    limit_context(imp, low)
    raise UserError(
        f"{describe(site.node)}: the export adds ALiBi to the scores of {low} positions, the context is {imp.context}; "
        f"compile with --context {low} or less"
    )


def _scores_shape(site: Site, at: Point, heads: int) -> tuple[int, ...]:
    rank3 = site.scores.shape is not None and len(site.scores.shape) == 3
    lead = (at.batch * heads,) if rank3 else (at.batch, heads)
    return (*lead, at.new, at.past + at.new)


def _cap(piece: Piece, site: Site, case: Case, heads: int) -> float:
    """Where scores end that grow without limit: the soft cap, or 0 if they do not end."""
    largest = np.float32(1e6)
    top = piece.run(case.at, {site.scores: np.full(_scores_shape(site, case.at, heads), largest)})
    cap = float(top.max())
    return cap if 0 < cap < 1e3 else 0.0


def _run(
    piece: Piece, site: Site, case: Case, heads: int, rng: np.random.Generator, cap: float, bias: Alibi
) -> tuple[np.ndarray, float | None]:
    """(visible [batch, new, total], factor on the scores before the cap)."""
    at, mask = case.at, case.attention_mask()
    total, real = at.past + at.new, mask[:, at.past :].astype(bool)
    inputs: dict[str, Any] = {"attention_mask": mask} if "attention_mask" in piece.uses else {}
    if site.scores is None:
        shown = spread(piece.run(at, **inputs), (at.batch, heads, at.new, total))
        if shown.dtype != bool:
            shown = _shown(bias.taken_off(shown, shown, shown > HIDDEN_BELOW, real), np.zeros_like(shown), 1.0)
        return _one_for_all_heads(shown), None
    shape = _scores_shape(site, at, heads)
    base = piece.run(at, {site.scores: np.zeros(shape, np.float32)}, **inputs)
    scores = rng.standard_normal(shape).astype(np.float32)
    base, masked = shaped(base, shape), shaped(piece.run(at, {site.scores: scores}, **inputs), shape)
    seen = base > HIDDEN_BELOW
    if not seen.any():
        raise Declined("the mask hides every key, or its numbers are not finite")
    if cap:
        straight = cap * np.arctanh(np.clip(masked / cap, -0.999, 0.999))
        factor = float(np.median(straight[seen] / scores[seen]))
        factor = float(np.float32(round(factor, 7)))
        capped = cap * np.tanh(scores * (factor / cap))
        shown = _shown(masked - capped, np.zeros_like(masked), 1.0)
        return _one_for_all_heads(shown.reshape(at.batch, heads, at.new, total)), factor
    full = (at.batch, heads, at.new, total)
    masked = bias.taken_off(masked.reshape(full), base.reshape(full), seen.reshape(full), real).reshape(shape)
    factor = float((masked[seen] * scores[seen]).sum() / (scores[seen] ** 2).sum())
    return _one_for_all_heads(_shown(masked, scores, factor, bias.error).reshape(full)), factor


def _shown(masked: np.ndarray, scores: np.ndarray, factor: float, error: float = 0.0) -> np.ndarray:
    """Which entries pass unchanged but for the factor, within an error; all others must be hidden."""
    same = np.abs(masked - factor * scores) <= 1e-5 * max(1.0, abs(factor)) + error
    if not (same | (masked < HIDDEN_BELOW)).all():
        raise Declined(BIASED)
    return same


def _one_for_all_heads(seen: np.ndarray) -> np.ndarray:
    if (seen != seen[:, :1]).any():
        raise Declined("the heads have different masks")
    return seen[:, 0]


def _window(seen: np.ndarray) -> int:
    """How many keys the last position of the longest unpadded case sees, if those are the last ones; 0: all."""
    row = seen[0, -1]
    count = int(row.sum())
    return count if 0 < count < len(row) and row[-count:].all() else 0


def _compare(case: Case, seen: np.ndarray, window: int, padding: bool) -> None:
    mask = case.attention_mask()
    expected = visible(case.at, mask, window, padding)
    real = mask[:, case.at.past :].astype(bool)
    wrong = np.argwhere((seen != expected) & real[:, :, None])
    if wrong.size:
        b, q, k = (int(i) for i in wrong[0])
        raise Declined(
            f"the mask is not causal, padding and window {window}: with {case.at.new} new and {case.at.past} past "
            f"tokens and {case.pads[b]} padded on the {'left' if case.left else 'right'}, query {q} "
            f"{'sees' if seen[b, q, k] else 'does not see'} key {k}"
        )
