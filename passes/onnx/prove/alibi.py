"""Finds ALiBi in what an export adds to the scores: of each head a slope, times the position of the key.

Positions may be counted from anywhere: a number that is the same for all keys of a row changes nothing of its softmax.
BLOOM counts from the first real token, MPT back from the last one.
"""

from __future__ import annotations

import numpy as np

from passes.onnx.pass_context import Declined

HIDDEN_BELOW = -5e3  # an added mask this low leaves nothing of a softmax term; float16 converters write -1e4
BIASED = (
    "the scores get a bias that is neither a mask nor grows evenly with the position of the key (ALiBi): use a model "
    "with rotary, learned or ALiBi positions"
)
_ROUNDED = 2.0**-21  # of the largest bias: a product, a sum and a mask in float32
_NOTHING = 1e-5


class Alibi:
    """The bias of one attention, the same in every case that it is asked about.

    Attributes:
        slopes: of each head; empty: nothing is added.
        error: by how much rounding may change a score from which the last bias was taken off.
    """

    def __init__(self) -> None:
        """Nothing is known."""
        self.slopes: tuple[float, ...] = ()
        self.error = 0.0
        self._known = False

    def taken_off(self, masked: np.ndarray, base: np.ndarray, seen: np.ndarray, real: np.ndarray) -> np.ndarray:
        """Masked scores without the bias; all arrays but `real` are [batch, heads, new, total].

        Args:
            masked: the masked scores.
            base: those of scores of zero: where they are seen, the bias.
            seen: what the mask does not hide.
            real: [batch, new], the rows that are no padding: what the others get is read by nothing.

        Raises:
            Declined: it is no such bias, or another one than before.
        """
        bias = np.where(seen, base, 0.0).astype(np.float64)
        largest = float(np.abs(bias).max())
        self.error = _ROUNDED * largest
        if not self._known:
            self.slopes, self._known = _slopes(bias, seen), True
        uneven = _uneven(bias, self.slopes, seen & real[:, None, :, None]) if self.slopes else largest
        if not uneven <= _NOTHING + 2 * self.error:
            raise Declined(BIASED)
        return np.subtract(masked, base, out=masked.copy(), where=seen)


def _uneven(bias: np.ndarray, slopes: tuple[float, ...], rows: np.ndarray) -> float:
    """By how much a row's bias without its slope differs among the keys that it sees, at most."""
    left = bias - np.array(slopes)[:, None, None] * np.arange(bias.shape[-1])
    high, low = np.where(rows, left, -np.inf).max(-1), np.where(rows, left, np.inf).min(-1)
    return float(np.where(rows.any(-1), high - low, 0.0).max())


def _slopes(bias: np.ndarray, seen: np.ndarray) -> tuple[float, ...]:
    """What each head's last row of the first text adds from one key to the next, where that is rounded least."""
    found = []
    for row, shown in zip(bias[0, :, -1], seen[0, :, -1], strict=True):
        keys = np.flatnonzero(shown)
        keys = keys[:-1][np.diff(keys) == 1] if len(keys) > 1 else keys[:0]
        if not len(keys):
            return ()
        least = keys[np.argmin(np.maximum(np.abs(row[keys]), np.abs(row[keys + 1])))]
        found.append(float(np.float32(row[least + 1] - row[least])))
    return tuple(found) if any(found) else ()
