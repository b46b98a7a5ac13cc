"""The partition as ONNX files, for Netron and for onnxruntime: one file per segment, the processor at every node.

Each file is a piece of the canonical decoder: what crosses a border is its input or output, masks and positions are
computed in every piece that needs them. Run one after the other the pieces are the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from passes.onnx import Decoder
from passes.place.place_ops import PlacedOp


def write_subgraphs(decoder: Decoder, origins: Sequence[Any], placed: Sequence[PlacedOp], folder: Path) -> list[Path]:
    """Write `<number>_<processor>.onnx` for each segment, weights beside it in `.onnx.data`.

    Args:
        decoder: the canonical decoder.
        origins: the ONNX node of each placed operator (RelaxDecoder.origins).
        placed: the operators in order; those without a node, at the end, are the runtime's.
        folder: made where it does not exist.

    Returns:
        The files in order.
    """
    graph = decoder.model.graph
    runs: list[tuple[str, list[Any]]] = []
    for node, op in zip(origins, placed, strict=False):
        if not runs or runs[-1][0] != op.processor:
            runs.append((op.processor, []))
        if node not in runs[-1][1]:
            runs[-1][1].append(node)
        node.metadata_props.update({"hetero_sd.processor": op.processor, "hetero_sd.reason": op.reason})
    folder.mkdir(parents=True, exist_ok=True)
    results = set(graph.outputs)
    made_in = {value: i for i, (_, nodes) in enumerate(runs) for node in nodes for value in node.outputs}
    paths = []
    for i, (processor, nodes) in enumerate(runs):
        made = [value for node in nodes for value in node.outputs]
        outputs = [v for v in made if v in results or any(_segment(n, made_in) != i for n, _ in v.uses())]
        borders = [v for n in nodes for v in n.inputs if v is not None and made_in.get(v, i) != i]
        for value in (*borders, *outputs):  # rows are float32, whatever the exporter computed in
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        piece = ir.convenience.extract(graph, [*graph.inputs, *dict.fromkeys(borders)], outputs)
        for value in [v for v in piece.inputs if not v.uses()]:
            piece.inputs.remove(value)
        piece.name = f"segment {i} on the {processor.upper()}"
        model = ir.Model(piece, ir_version=decoder.model.ir_version, functions=list(decoder.model.functions.values()))
        paths.append(folder / f"{i}_{processor}.onnx")
        ir.save(model, paths[-1], external_data=paths[-1].name + ".data")
    return paths


def _segment(node: Any, made_in: dict[Any, int]) -> int:
    return next((made_in[v] for v in node.outputs if v in made_in), -1)
