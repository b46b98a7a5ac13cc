"""What translates a node has in hand: the function that is written, the values so far, weights as parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from tvm import relax

from passes.lower.check_finite import check_attributes
from passes.onnx.prove.weight_expression import initializer_of
from passes.relax import dialect as D


@dataclass(frozen=True)
class Value:
    """What an ONNX value became: an expression [1, n, width], seen as `groups` equal parts of a row."""

    expr: Any
    groups: int = 1


def _in_one_row(tensor: Any) -> Any:
    """A lazy tensor as a vector."""
    if len(tensor.shape) == 1:
        return tensor

    def made() -> Any:
        return ir.tensor(tensor.numpy().reshape(-1), dtype=tensor.dtype)

    return ir.LazyTensor(made, dtype=tensor.dtype, shape=ir.Shape([int(tensor.size)]), name=tensor.name)


@dataclass
class Emitter:
    """The Relax function while it is written; what nodes became so far.

    Attributes:
        bb: the builder that is inside the function.
        n, past: the symbolic number of new tokens, and of those before them.
        values: by name of the ONNX value.
        params, weights: parameters of the function, and their lazy tensors, by name.
        node: that is being translated.
        origins: the node of each binding.
    """

    bb: Any
    n: Any
    past: Any
    values: dict[str, Value] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    node: Any = None
    origins: list[Any] = field(default_factory=list)

    def expr(self, value: Any) -> Any:
        """The [1, n, width] expression of an ONNX value computed so far."""
        return self.values[value.name].expr

    def weight(self, value: Any) -> tuple[Any, bool]:
        """(parameter, transposed) of a weight expression: an initialiser behind Cast, Transpose or Reshape."""
        transposed = False
        while value.producer() is not None:
            node = value.producer()
            transposed ^= node.op_type == "Transpose"
            value = node.inputs[0]
        name = value.name
        if name not in self.params:
            tensor = value.const_value
            self.weights[name] = tensor
            self.params[name] = relax.Var(name, D.tensor([int(d) for d in tensor.shape], str(tensor.dtype.numpy())))
        return self.params[name], transposed

    def vector(self, value: Any) -> Any:
        """The parameter of a weight expression whose numbers lie in one row, whatever their shape in the file."""
        name = initializer_of(value).name
        if name not in self.params:
            tensor = initializer_of(value).const_value
            self.weights[name] = _in_one_row(tensor)
            self.params[name] = relax.Var(name, D.tensor([int(tensor.size)], str(tensor.dtype.numpy())))
        return self.params[name]

    def emit(self, call: Any) -> Any:
        """Bind a call in the function and return its variable."""
        if isinstance(call, relax.Call) and call.attrs is not None:
            check_attributes(dict(call.attrs.items()), self.node)
        self.origins.append(self.node)
        return self.bb.emit(call)
