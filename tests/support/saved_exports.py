"""Committed exports as other tools save them; made where they are missing, so none is committed.

What onnxslim, onnxsim and onnxconverter-common make is packed with the families (tests/data/make_family_exports.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import helper
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.float16 import convert_float_to_float16

from tests.support.quantised_exports import DATA, Make, make_all, save

MERGED_SWITCH = "use_cache_branch"


def at_level(level: str) -> Make:
    """onnxruntime's own optimiser."""
    return lambda source, path: save(source, path, level)


def transformers(half: bool = False) -> Make:
    """onnxruntime.transformers' optimiser for GPT-2, which hubs' files were made with whatever the model."""

    def make(source: Path, path: Path) -> None:
        logging.disable(logging.WARNING)  # it tells what it could not fuse
        try:
            model = optimizer.optimize_model(str(source), "gpt2", num_heads=4, hidden_size=32, opt_level=0)
            if half:
                model.convert_float_to_float16(keep_io_types=False)
            model.save_model_to_file(str(path))
        finally:
            logging.disable(logging.NOTSET)

    return make


def float16(keep_io_types: bool = False) -> Make:
    """All floats in float16; inputs and outputs, too, unless they are kept."""

    def make(source: Path, path: Path) -> None:
        proto = onnx.shape_inference.infer_shapes(onnx.load(source))
        onnx.save(convert_float_to_float16(proto, keep_io_types=keep_io_types, op_block_list=[]), path)

    return make


def q4(symmetric: bool = True, then: Make | None = None) -> Make:
    """MatMulNBitsQuantizer in blocks of 32."""

    def make(source: Path, path: Path) -> None:
        logging.disable(logging.WARNING)
        try:
            quantiser = MatMulNBitsQuantizer(onnx.load(source), block_size=32, is_symmetric=symmetric)
            quantiser.process()
        finally:
            logging.disable(logging.NOTSET)
        onnx.save(quantiser.model.model, path)
        if then is not None:
            then(path, path)

    return make


def merged(quantise: bool = False) -> Make:
    """As optimum merges the decoder of the first tokens with the one that goes on from a cache.

    Matrices are shared and lie outside the branches, single numbers in each; every name of a value is in both.
    """

    def make(source: Path, path: Path) -> None:
        proto, first = onnx.load(source), onnx.load(source)
        pasts = [v for v in first.graph.input if v.name.startswith("past")]
        for value in pasts:  # the decoder of the first tokens has none
            dims = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
            first.graph.input.remove(value)
            empty = helper.make_tensor(value.name, 1, [1, dims[1], 0, dims[3]], [])
            first.graph.node.insert(0, helper.make_node("Constant", [], [value.name + ".none"], value=empty))
            _rename(first.graph, value.name, value.name + ".none")
        shared = [t for t in proto.graph.initializer if t.dims]
        branches = [_branch(proto.graph, "with_past"), _branch(first.graph, "no_past")]
        names = [v.name for v in proto.graph.output]
        node = helper.make_node("If", [MERGED_SWITCH], names, then_branch=branches[0], else_branch=branches[1])
        switch = helper.make_tensor_value_info(MERGED_SWITCH, onnx.TensorProto.BOOL, [1])
        inputs = [*proto.graph.input, switch]
        graph = helper.make_graph([node], "merged", inputs, list(proto.graph.output), shared)
        onnx.save(helper.make_model(graph, opset_imports=proto.opset_import, ir_version=9), path)
        if quantise:
            logging.disable(logging.WARNING)
            try:
                quantize_dynamic(path, path, extra_options={"EnableSubgraph": True})
            finally:
                logging.disable(logging.NOTSET)

    return make


def _branch(graph: onnx.GraphProto, name: str) -> onnx.GraphProto:
    single = [t for t in graph.initializer if not t.dims]
    return helper.make_graph(graph.node, name, [], graph.output, single)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


# name of a cell of the coverage table -> (export it is made of, how)
SAVED: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "llama-saved-basic": ("llama-dynamo-fp32", at_level("BASIC")),
    "gpt2-saved-extended": ("gpt2-legacy17-fp32", at_level("EXTENDED")),
    "qwen2-saved-extended": ("qwen2-dynamo23-fp32", at_level("EXTENDED")),
    "gpt2-saved-transformers": ("gpt2-optimum-fp32", transformers()),
    "llama-saved-transformers-fp16": ("llama-dynamo-fp32", transformers(half=True)),
    "mistral-saved-merged": ("mistral-optimum-fp32", merged()),
    "gpt2-saved-merged-uint8": ("gpt2-optimum-fp32", merged(quantise=True)),
    "olmo2-saved-fp16": ("olmo2-dynamo-fp32", float16()),
    "llama-saved-fp16-casts": ("llama-genai-fp32", float16(keep_io_types=True)),
    "qwen3-saved-q4f16": ("qwen3-optimum-fp32", q4(then=float16())),
    "gemma3-saved-q4f16-asymmetric": ("gemma3-dynamo-fp32", q4(False, float16(keep_io_types=True))),
    "opt-saved-extended": ("opt-legacy17-fp32", at_level("EXTENDED")),
    "gpt-neox-saved-q4-asymmetric": ("gpt-neox-dynamo-fp32", q4(False)),
    "falcon-saved-q4f16": ("falcon-legacy17-fp32", q4(then=float16())),
    "bloom-saved-q4f16": ("bloom-optimum-fp32", q4(then=float16())),
    "bloom-saved-extended": ("bloom-dynamo-fp32", at_level("EXTENDED")),
    "cohere-saved-transformers": ("cohere-dynamo-fp32", transformers()),
    "mpt-saved-transformers": ("mpt-optimum-fp32", transformers()),
    "falcon-alibi-saved-extended": ("falcon-alibi-optimum-fp32", at_level("EXTENDED")),
    "phi3-saved-q4-extended": ("phi3-legacy17-fp32", q4(then=at_level("EXTENDED"))),
}


def saved_exports(data: Path = DATA) -> Path:
    """Make all of `SAVED` in `data`/saved, each in its folder, unless that has been done; returns the folder."""
    return make_all(data, "saved", SAVED, Path(__file__))
