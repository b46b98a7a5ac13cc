"""Runs a piece of the model in onnxruntime on chosen numbers: how passes prove what a piece computes.

A piece lies between cut values, which get numbers, and one output. It may use graph inputs and small constants;
if it reaches a weight, or the contents of a cache, it is not the piece that was looked for and the pass declines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from passes.onnx.pass_context import Declined, Importing, describe
from passes.onnx.shapes import Point, constant_known, infer, input_known, input_shape

_LARGEST_CONSTANT_BYTES = 64 << 20  # rope caches of long contexts


class Piece:
    """The subgraph from `cuts` (and graph inputs) to `output`, ready to run."""

    def __init__(self, imp: Importing, cuts: Iterable[Any], output: Any) -> None:
        """Collect the nodes between; `Declined` if a weight or a cache's contents are among what they need."""
        self._imp = imp
        self._cuts = list(cuts)
        self._output = output
        self._nodes, self.uses, initializers = _collect(imp, self._cuts, output)
        self._constants = [(v, v.const_value.numpy()) for v in initializers]
        self._session = _session(imp, self._cuts, output, self._nodes, self.uses, self._constants)
        self._checked: set[Any] = set()

    def run(self, at: Point, cuts: Mapping[Any, np.ndarray] | None = None, **inputs: np.ndarray) -> np.ndarray:
        """The output at a point; graph inputs not given are unpadded and positions go on from the past.

        Raises:
            Declined: onnxruntime cannot run the piece at these sizes; the message has its reason.
        """
        feed = {v.name: np.asarray(x) for v, x in (cuts or {}).items()}
        for name in self.uses:
            given = inputs[name] if name in inputs else default_input(self._imp, name, at)
            feed[name] = np.asarray(given, self._imp.input(name).dtype.numpy())
        if not self._session:  # a cut is the output
            return feed[self._output.name]
        self._check_sizes(at, feed)
        try:
            return self._session.run(None, feed)[0]
        except Exception as error:  # onnxruntime has a dozen exception classes without a common base
            reason = str(error).replace("\n", " ")[:200]
            raise Declined(
                f"onnxruntime cannot run the export with {at.new} new and {at.past} past tokens: {reason}"
            ) from error

    def _check_sizes(self, at: Point, feed: dict[str, np.ndarray]) -> None:
        """Decline a piece that would make more of a few numbers than the file justifies."""
        shapes = tuple((name, x.shape) for name, x in feed.items())
        if shapes in self._checked:
            return
        known = {value: constant_known(self._imp, value) for value, _ in self._constants}
        named = {**{v.name: v for v in self._cuts}, **{name: self._imp.input(name) for name in self.uses}}
        for name, x in feed.items():
            known[named[name]] = input_known(self._imp, named[name], x.shape)
        for node in self._nodes:
            infer(self._imp, node, known)
            for output in node.outputs:
                size = known[output].size if output in known else 0 if not output.uses() else None
                if size is None and output is not self._output:
                    raise Declined(f"the size of {output.name} with {at.new} new and {at.past} past tokens is unknown")
                if size is not None and 4 * size > self._imp.largest_bytes:
                    raise Declined(
                        f"{output.name} would have {size} numbers with {at.new} new and {at.past} past tokens, too "
                        "many for so small a file; compile with a smaller --context"
                    )
        self._checked.add(shapes)


def shaped(numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The result of a piece in the shape that it must have.

    Raises:
        Declined: it has another number of elements.
    """
    if numbers.size != int(np.prod(shape, dtype=np.int64)):
        raise Declined(f"it computes {list(numbers.shape)} where {list(shape)} is expected")
    return numbers.reshape(shape)


def spread(numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The result of a piece broadcast to a shape, as ONNX's operators would.

    Raises:
        Declined: it cannot be.
    """
    try:
        return np.broadcast_to(numbers, shape)
    except ValueError as error:
        raise Declined(f"it computes {list(numbers.shape)} where {list(shape)} is expected") from error


def default_input(imp: Importing, name: str, at: Point) -> np.ndarray:
    """Unpadded values for a graph input: mask of ones, positions past, past + 1, ...; ids 1; empty caches."""
    shape = input_shape(imp, name, at)
    if name == "position_ids":
        return np.broadcast_to(np.arange(at.past, at.past + at.new, dtype=np.int64), shape)
    if name in ("attention_mask", "input_ids"):
        return np.ones(shape, imp.input(name).dtype.numpy())
    return np.zeros(shape, np.float32)


def _collect(imp: Importing, cuts: list[Any], output: Any) -> tuple[list[Any], list[str], list[Any]]:
    nodes, uses, initializers = set(), [], []
    todo, seen = [output], set(cuts)
    while todo:
        value = todo.pop()
        if value in seen or value is None:
            continue
        seen.add(value)
        node = value.producer()
        if node is not None:
            nodes.add(node)
            todo.extend(node.inputs)
        elif value.is_graph_input():
            uses.append(value.name)
        elif value.const_value is not None:
            if value.const_value.nbytes > _LARGEST_CONSTANT_BYTES:
                raise Declined(f"it depends on the weight {value.name}")
            initializers.append(value)
    for name in uses:
        if name.startswith("past_key_values."):
            for node in nodes:
                if imp.input(name) in node.inputs and node.op_type != "Shape":
                    raise Declined(f"it depends on the contents of {name} through {describe(node)}")
    return [n for n in imp.graph if n in nodes], uses, initializers


def _session(
    imp: Importing, cuts: list[Any], output: Any, nodes: list[Any], uses: list[str], constants: list[Any]
) -> Any:
    if output in cuts:
        return None
    inputs = [onnx.helper.make_tensor_value_info(v.name, onnx.TensorProto.FLOAT, None) for v in cuts]
    for name in uses:
        inputs.append(onnx.helper.make_tensor_value_info(name, int(imp.input(name).dtype), None))
    result = onnx.ValueInfoProto(name=output.name)
    tensors = []
    for value, numbers in constants:
        tensors.append(onnx.numpy_helper.from_array(numbers, value.name))
    graph = onnx.helper.make_graph([ir.serde.serialize_node(n) for n in nodes], "piece", inputs, [result], tensors)
    opsets = {**imp.graph.opset_imports, "com.microsoft": 1}
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise Declined(f"onnxruntime cannot load the piece before {output.name}: {str(error)[:200]}") from error
