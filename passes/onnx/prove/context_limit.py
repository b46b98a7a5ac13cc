"""The longest context that an export can be compiled for: the rows of its tables of positions, and what passes find.

Tables are read where the file states them, before any work: the caches of rotations (GroupQueryAttention,
RotaryEmbedding) and tables whose rows are chosen by the input position_ids. Other limits are found by the passes
(learned positions that are counted from the mask, LongRoPE), which note them with `limit_context`.
"""

from __future__ import annotations

from typing import Any

from passes.onnx.pass_context import Importing, describe
from targets.errors import UserError

_CACHES = {  # operator -> the input that holds the cosines, a row for each position
    ("com.microsoft", "GroupQueryAttention"): 7,
    ("com.microsoft", "RotaryEmbedding"): 2,
    ("", "RotaryEmbedding"): 1,
}
_SAME_NUMBERS = {"Cast", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Identity"}


class ContextTooLong(UserError):
    """The export has no positions for the whole context.

    Attributes:
        longest: the longest context, in tokens, that is known to be possible so far.
    """

    def __init__(self, message: str, longest: int) -> None:
        """Keep the number."""
        super().__init__(message)
        self.longest = longest


def limit_context(imp: Importing, longest: int) -> None:
    """Note that a context of more than `longest` tokens is impossible; the caller then refuses the export."""
    known = imp.facts.longest_context
    imp.facts.longest_context = longest if known is None else min(longest, known)


def too_long(imp: Importing, message: str) -> UserError:
    """The error with that message: a ContextTooLong where a limit within the context was noted."""
    longest = imp.facts.longest_context
    return ContextTooLong(message, longest) if longest is not None and longest < imp.context else UserError(message)


def check_stated_positions(imp: Importing) -> None:
    """Compare the rows of the tables that the file states with the context.

    Raises:
        UserError: a table has fewer.
    """
    for node in imp.graph:
        table, rows = _table(node)
        if table is not None and rows < imp.context:
            limit_context(imp, rows)
            raise UserError(
                f"{describe(node)}: the table of positions {table.name} of the export has {rows} positions, the "
                f"context is {imp.context}; compile with --context {rows} or less"
            )


def _table(node: Any) -> tuple[Any, int]:
    """The table of a node and how many positions it has; (None, 0) for any other node."""
    index = _CACHES.get((node.domain.replace("ai.onnx", ""), node.op_type))
    if index is not None and index < len(node.inputs):
        table = _stored(node.inputs[index])
        return (table, int(table.const_value.shape[0])) if table and len(table.const_value.shape) == 2 else (None, 0)
    if node.op_type == "Gather" and not node.domain and _is_position_ids(node.inputs[1]):
        table, axis = _stored(node.inputs[0]), node.attributes["axis"].value if "axis" in node.attributes else 0
        if table and len(table.const_value.shape) >= 2 and not table.const_value.dtype.is_integer():
            return table, int(table.const_value.shape[axis])
    return None, 0


def _stored(value: Any) -> Any:
    return value if value is not None and value.producer() is None and value.const_value is not None else None


def _is_position_ids(value: Any) -> bool:
    while value is not None and value.producer() is not None and value.producer().op_type in _SAME_NUMBERS:
        value = value.producer().inputs[0]
    return value is not None and value.is_graph_input() and value.name == "position_ids"
