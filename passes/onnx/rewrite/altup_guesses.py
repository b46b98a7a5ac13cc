"""Which step of AltUp may lie between two stacks of streams, by the rows that are read between them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from passes.onnx.pass_context import scalar
from passes.onnx.rewrite.altup_functions import (
    altup_add,
    altup_add_function,
    altup_correct,
    altup_correct_function,
    altup_predict,
    altup_predict_function,
)

FUNCTIONS = {
    "AltUpPredict": altup_predict_function,
    "AltUpCorrect": altup_correct_function,
    "AltUpAdd": altup_add_function,
}
Guess = tuple[str, list[Any], dict[str, int], Callable[..., np.ndarray]]


def guesses(stack: Any, read: list[tuple[Any, int]], streams: int, width: int) -> list[Guess]:
    """(function, rows that it reads, attributes, the same in numpy) that a step may be; "" where nothing is changed.

    Args:
        stack: [streams, batch, new, width].
        read: the rows between it and the next one, with their widths.
        streams: how many there are.
        width: of one of them.
    """
    if not read:
        return [("", [], {}, lambda x: x)]
    rows = [row for row, _ in read]
    found: list[Guess] = []
    if len(read) == 1 and read[0][1] == streams * streams:
        found.append(("AltUpPredict", rows, {"streams": streams}, partial(altup_predict, streams=streams)))
    if len(read) == 1 and read[0][1] == width:
        for first in range(streams):
            sizes = {"streams": streams, "first": first}
            found.append(("AltUpAdd", rows, sizes, partial(altup_add, streams=streams, first=first)))
    for (moved, moved_width), (factors, factors_width) in (tuple(read), tuple(read[::-1])) if len(read) == 2 else ():
        a, c = _minuend(moved, stack), _before_one(factors)
        if a is not None and c is not None and (moved_width, factors_width) == (width, streams):
            sizes = {"streams": streams, "active": a[1] % streams}
            found.append(
                ("AltUpCorrect", [a[0], c], sizes, partial(altup_correct, streams=streams, active=a[1] % streams))
            )
    return found


def _before_one(row: Any) -> Any:
    """C of 1 + c; None if it is no such sum."""
    node = row.producer()
    if node is None or node.op_type != "Add":
        return None
    rest = [value for value in node.inputs if scalar(value) != 1.0]
    return rest[0] if len(rest) == 1 else None


def _minuend(row: Any, stack: Any) -> tuple[Any, int] | None:
    """(a, i) of a row that is a less stream i of the stack; None if it is nothing of the kind."""
    node = row.producer()
    if node is None or node.op_type != "Sub":
        return None
    taken = node.inputs[1].producer()
    if taken is None or taken.op_type != "Gather" or taken.inputs[0] is not stack:
        return None
    index = scalar(taken.inputs[1])
    return None if index is None else (node.inputs[0], int(index))
