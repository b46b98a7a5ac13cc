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

from passes.import_onnx.shapes import Point, input_shape
from passes.import_onnx.state import Declined, Importing, describe

_LARGEST_CONSTANT_BYTES = 64 << 20  # rope caches of long contexts


class Piece:
    """The subgraph from `cuts` (and graph inputs) to `output`, ready to run."""

    def __init__(self, imp: Importing, cuts: Iterable[Any], output: Any) -> None:
        """Collect the nodes between; `Declined` if a weight or a cache's contents are among what they need."""
        self._imp = imp
        self._cuts = list(cuts)
        self._output = output
        nodes, self.uses, initializers = _collect(imp, self._cuts, output)
        self._session = _session(imp, self._cuts, output, nodes, self.uses, initializers)

    def run(self, at: Point, cuts: Mapping[Any, np.ndarray] | None = None, **inputs: np.ndarray) -> np.ndarray:
        """The output at a point; graph inputs not given are unpadded and positions go on from the past.

        Raises:
            Declined: onnxruntime cannot run the piece at these sizes; the message has its reason.
        """
        feed = {v.name: np.asarray(x) for v, x in (cuts or {}).items()}
        for name in self.uses:
            feed[name] = inputs[name] if name in inputs else default_input(self._imp, name, at)
        if not self._session:  # a cut is the output
            return feed[self._output.name]
        try:
            return self._session.run(None, feed)[0]
        except Exception as error:  # onnxruntime has a dozen exception classes without a common base
            reason = str(error).replace("\n", " ")[:200]
            raise Declined(
                f"onnxruntime cannot run the export with {at.new} new and {at.past} past tokens: {reason}"
            ) from error


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
    imp: Importing, cuts: list[Any], output: Any, nodes: list[Any], uses: list[str], initializers: list[Any]
) -> Any:
    if output in cuts:
        return None
    inputs = [onnx.helper.make_tensor_value_info(v.name, onnx.TensorProto.FLOAT, None) for v in cuts]
    for name in uses:
        inputs.append(onnx.helper.make_tensor_value_info(name, int(imp.input(name).dtype), None))
    result = onnx.ValueInfoProto(name=output.name)
    tensors = []
    for value in initializers:
        tensor = onnx.numpy_helper.from_array(value.const_value.numpy(), value.name)
        tensors.append(tensor)
    graph = onnx.helper.make_graph([ir.to_proto(n) for n in nodes], "piece", inputs, [result], tensors)
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
