"""A weight computed from another one when it is read: rows or columns left out or in another order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Importing, attribute, emit
from passes.onnx.prove.weight_expression import initializer_of
from passes.onnx.rewrite.quantise_weights import lazy_weight


def derived_weight(
    imp: Importing, node: Any, place: int, name: str, change: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]
) -> None:
    """Give a node another weight as an input: what `change` makes of the initialiser, behind the same casts.

    Args:
        imp: the import.
        node: whose input is replaced.
        place: of the input, a weight behind nothing but Cast and Transpose.
        name: added to the initialiser's.
        change: from the numbers of the initialiser, as it is stored, to others of the same type.
        shape: of the result.
    """
    around, value = [], node.inputs[place]
    while value.producer() is not None:
        around.append(value.producer())
        value = value.producer().inputs[0]
    old = initializer_of(value).const_value

    def made() -> Any:
        return ir.tensor(np.ascontiguousarray(change(old.numpy())), dtype=old.dtype)

    new = lazy_weight(imp, f"{value.name}.{name}", made, old.dtype, shape)
    stem = new.name
    for step, maker in enumerate(reversed(around)):
        attributes = {key: attribute(maker, key) for key in maker.attributes}
        new = emit(node, maker.op_type, [new], attributes, outputs=[f"{stem}.{step}"]).outputs[0]
    node.replace_input_with(place, new)
