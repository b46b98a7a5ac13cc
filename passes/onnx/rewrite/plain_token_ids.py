"""A table whose rows are chosen by what is computed from input_ids -> one whose rows are chosen by input_ids.

    Gather(E [V, W], Where(And(ids >= 0, ids < V), ids, 0))  ->  Gather(E' [vocab, W], ids)

Gemma 3n's embeddings for each layer lack the tokens of pictures and sounds, which get the row of token 0. What is
computed is run on every id of the vocabulary; E' is E where each id chooses its own row, else rows of E as they are
chosen, which are read when they are asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Declined, Importing, PassLog, attribute, describe
from passes.onnx.prove.run_subgraph import Piece
from passes.onnx.prove.weight_expression import initializer_of, is_weight
from passes.onnx.rewrite.quantise_weights import lazy_weight
from passes.onnx.shapes import Point

_MOST_MORE = 1 << 16  # rows that a table may grow by


def plain_token_ids(imp: Importing) -> PassLog:
    """Rewrite every such Gather; others stay, with the reason in the log."""
    ids, matched, notes = imp.input("input_ids"), 0, list[str]()
    tables = [n for n in imp.graph if n.op_type == "Gather" and not attribute(n, "axis", 0) and is_weight(n.inputs[0])]
    vocab = max((_rows(n) for n in tables if n.inputs[1] is ids), default=0)
    for node in tables if vocab else []:
        if node.inputs[1] is ids or not _from_ids(node.inputs[1], ids):
            continue
        try:
            _rewrite(imp, node, ids, vocab)
            matched += 1
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
    return PassLog("plain_token_ids", matched, tuple(notes))


def _rows(node: Any) -> int:
    shape = initializer_of(node.inputs[0]).const_value.shape
    return int(shape[0]) if len(shape) == 2 and node.inputs[0].producer() is None else 0


def _from_ids(value: Any, ids: Any) -> bool:
    """Whether a value is computed from input_ids and constants alone."""
    todo, seen, reached = [value], set(), False
    while todo:
        current = todo.pop()
        if current is None or current in seen or current.const_value is not None:
            continue
        seen.add(current)
        if current.producer() is None:
            if current is not ids:
                return False
            reached = True
        else:
            todo += current.producer().inputs
    return reached


def _rewrite(imp: Importing, node: Any, ids: Any, vocab: int) -> None:
    rows = _rows(node)
    if not rows:
        raise Declined("its table is stored in another form")
    given = np.arange(vocab, dtype=np.int64)[None]
    piece, at = Piece(imp, [], node.inputs[1]), Point(1, vocab, 0)
    chosen = piece.run(at, input_ids=given)
    if chosen.shape != given.shape or chosen.min() < 0 or chosen.max() >= rows:
        raise Declined(f"ids from 0 to {vocab - 1} choose something else than a row of the {rows}")
    order = chosen[0].astype(np.int64)
    turned = piece.run(at, input_ids=given[:, ::-1])
    if not np.array_equal(turned, chosen[:, ::-1]):
        raise Declined("what an id chooses depends on the ids beside it")
    if not np.array_equal(order[: min(rows, vocab)], np.arange(min(rows, vocab))) or vocab > rows + _MOST_MORE:
        raise Declined("ids choose rows in another order")
    if vocab > rows:
        table = initializer_of(node.inputs[0])
        tensor = table.const_value

        def longer() -> Any:
            return ir.tensor(tensor.numpy()[order], dtype=tensor.dtype)

        shape = (vocab, int(tensor.shape[1]))
        node.replace_input_with(0, lazy_weight(imp, f"{table.name}.all", longer, tensor.dtype, shape))
    node.replace_input_with(1, ids)
