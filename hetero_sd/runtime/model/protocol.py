"""What the decoding loops ask of a model, and nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from targets.errors import UserError


class ContextFull(Exception):
    """A forward pass was asked to write KV rows beyond the model's context."""


class NotFiniteError(UserError):
    """A model computed NaN or infinity; the message is one line that names it."""

    def __init__(self, model: str, where: str = "") -> None:
        """Name the model, and where in the text it happened."""
        super().__init__(
            f"the {model} computed logits that are not finite{where}: copy the bundle again, or build it again and "
            "check it with `hetero-sd verify`"
        )


class Model(Protocol):
    """A decoder whose KV cache of ``context`` rows is written in place.

    A call at a smaller ``pos`` than the last one rolls the cache back: rows from ``pos`` on are overwritten and rows
    after the written ones are not read. Any number of ids >= 1 is allowed, and a row of the result does not depend,
    bit for bit, on how many rows are computed with it.
    """

    vocab: int
    context: int
    name: str

    def forward(self, ids: Sequence[int], pos: int) -> npt.NDArray[np.float32]:
        """Write KV rows ``pos .. pos+n-1`` and return the logits, float32 ``[n, vocab]``.

        Raises:
            ContextFull: ``pos + n > context``.
            NotFiniteError: a logit of these rows is NaN or infinite; so do the other two.
        """

    def argmax(self, ids: Sequence[int], pos: int) -> npt.NDArray[np.int64]:
        """Like :meth:`forward`, but return the best id of each row, int64 ``[n]``; ties go to the lowest id."""

    def extend(self, ids: Sequence[int], pos: int) -> int:
        """Like ``argmax(ids, pos)[-1]``, for long ids: only the last row needs the head."""


@dataclass(frozen=True)
class Models:
    """The models of a bundle; ``draft`` is None where the bundle carries none."""

    target: Model
    draft: Model | None = None
