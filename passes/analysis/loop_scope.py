"""Iterations of a loop nest: some loop variables enumerated, the others multiplied."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scope:
    """Where a statement stands.

    Attributes:
        lanes: values of the enumerated variables, arrays of one length.
        weight: how many iterations each of them stands for.
        loops: the loops around, from the outermost, (variable, extent, kind); extent 0: its variable is enumerated.
        known: texts of the loads that an enclosing condition has made already.
    """

    lanes: dict[int, Ints]
    weight: Ints
    loops: tuple[tuple[int, int, int], ...]
    known: frozenset[str] = frozenset()

    def kept(self, mask: npt.NDArray[np.bool_]) -> Scope:
        """The iterations where `mask` holds."""
        return Scope({k: v[mask] for k, v in self.lanes.items()}, self.weight[mask], self.loops, self.known)


def iterations(scope: Scope, held: set[int]) -> int:
    """Iterations of the enumerated variables, those of `held` counted once."""
    if not held & scope.lanes.keys():
        return int(scope.weight.sum())
    left = {v: a for v, a in scope.lanes.items() if v not in held}
    one_each = collapsed(Scope(left, np.ones_like(scope.weight), ()))
    together = collapsed(Scope(left, scope.weight, ()))
    # Iterations that differ in a held variable only have equal weights, so their mean is one of them.
    return int((together.weight // one_each.weight).sum())


def collapsed(scope: Scope) -> Scope:
    """Equal lanes as one, with their weights added."""
    if not scope.lanes:
        return Scope({}, np.array([scope.weight.sum()], np.int64), scope.loops, scope.known)
    if not scope.weight.size:
        return scope
    mixed = np.zeros(scope.weight.shape, np.int64)
    for values in scope.lanes.values():
        low = int(values.min())
        mixed = mixed * (int(values.max()) - low + 1) + (values - low)
    _, first, inverse = np.unique(mixed, return_index=True, return_inverse=True)
    weight = np.bincount(inverse, scope.weight).astype(np.int64)
    return Scope({k: v[first] for k, v in scope.lanes.items()}, weight, scope.loops, scope.known)
