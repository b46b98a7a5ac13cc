"""Columns of a row as the canonical form takes them: a Split whose other parts nobody reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from passes.onnx.pass_context import Importing, add_initializer, emit


def take_columns(imp: Importing, before: Any, row: Any, start: int, width: int, whole: int) -> Any:
    """Insert the Split before a node: columns `start` to `start + width` of `whole` of a row [batch, new, whole]."""
    sizes = [size for size in (start, width, whole - start - width) if size]
    if sizes == [whole]:
        return row
    name = f"{row.name}.{start}"
    given = add_initializer(imp.graph, f"{name}.sizes", np.asarray(sizes, np.int64))
    outputs = [f"{name}.columns" if i == (start > 0) else f"{name}.rest.{i}" for i in range(len(sizes))]
    more = {"name": name, "outputs": outputs, "num_outputs": len(sizes)}
    node = emit(before, "Split", [row, given], {"axis": -1}, **more)
    for output in node.outputs:
        output.type = row.type
    return node.outputs[int(start > 0)]
