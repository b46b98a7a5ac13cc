"""Canonical ONNX decoder -> DecoderSpec: one operator of the cost model for each kernel that the lowering will call.

Node by node, in order: sizes and formats are the node's own, its part is the label that the importer wrote. Nodes that
a kernel computes together are one operator, as the fusions of the pipeline make them:

    Add, RMSNormalization of the sum      -> add_rms_norm      (passes/relax/fuse_add_norm.py)
    Sigmoid, Mul, Mul                     -> silu_mul          (passes/relax/fuse_gated_ffn.py)
    Gelu, Mul                             -> gelu_mul          (likewise)

check_vocabulary has refused what would have no kernel. Nothing is changed and no weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from costmodel.decoder import DecoderSpec
from costmodel.format import Format
from costmodel.operators import Operator
from costmodel.place import HEAD, Part
from passes.analysis.operator_names import OperatorNames, labelled_part
from passes.onnx import Decoder
from passes.onnx.facts import of_layers
from passes.onnx.label_parts import computed_nodes, row_inputs
from passes.onnx.pass_context import attribute, describe
from passes.onnx.prove.gate import gate_of, is_gate_alone, sigmoid_of_silu
from passes.onnx.prove.weight_expression import initializer_of
from passes.onnx.rewrite.blocks_of_columns import BNB4_TABLES
from passes.onnx.rewrite.write_attention import seen_keys
from passes.onnx.weight_sizes import linear_size, table_size
from targets.errors import UserError


def count_work(decoder: Decoder, name: str) -> DecoderSpec:
    """The operators of a decoder, its weights as the kernels store them.

    Args:
        decoder: in canonical form.
        name: of the result, usually the file's.
    """
    counter = _Counter(computed_nodes(decoder.model.graph), decoder.facts.head_dim)
    argmax = Operator("argmax", "argmax", Part(HEAD), decoder.facts.vocab)
    return DecoderSpec(name, (*counter.operators(), argmax), decoder.facts.tied)


class _Counter:
    """Walks the nodes; knows how wide each row is and which nodes a later one's kernel computes."""

    def __init__(self, nodes: list[Any], head_dim: int) -> None:
        self.nodes, self.head_dim = nodes, head_dim
        self.width: dict[Any, int] = {}  # value -> numbers of a row
        self.groups: dict[Any, int] = {}  # value seen by head -> heads
        inner = {inner for node in nodes for inner in _inside(node)}
        self.fused = {node for node in inner if node.op_type != "Gelu" or is_gate_alone(node)}
        self.names = OperatorNames(nodes)

    def operators(self) -> Iterator[Operator]:
        """The operators in order."""
        for node in self.nodes:
            for op in _COUNT[node.op_type](self, node):
                self.width.setdefault(node.outputs[0], op.columns)
                if node not in self.fused:
                    yield op

    def row(self, node: Any) -> int:
        """Numbers of a row that a node reads.

        Raises:
            UserError: it reads none that a kernel computes.
        """
        widths = [self.width[value] for value in row_inputs(node) if value in self.width]
        if not widths:
            raise UserError(f"{describe(node)} reads no row that a kernel computes: export the model again")
        return widths[0]

    def operator(self, node: Any, kind: str, columns: int, **more: Any) -> Operator:
        """An operator of a node's part."""
        return Operator(kind, self.names(node, kind), labelled_part(node), columns, **more)


def _table(c: _Counter, node: Any) -> Iterator[Operator]:
    if node.op_type == "GatherBlockQuantized":
        stored = _blocks(node)
    else:
        stored = Format(_dtype(initializer_of(node.inputs[0])))
    rows, columns = table_size(node)
    kind = (
        "positions" if node.inputs[1].name != "input_ids" else "embedding_by_layer" if of_layers(node) else "embedding"
    )
    yield c.operator(node, kind, columns, k=rows, format=stored)


def _linear(c: _Counter, node: Any) -> Iterator[Operator]:
    quantised = node.op_type != "MatMul"
    k, columns = linear_size(node)
    stored = _blocks(node) if quantised else Format(_dtype(initializer_of(node.inputs[1])))
    made = c.operator(node, "linear", columns, k=k, format=stored)
    yield made
    if quantised and _given(node, 5):
        yield Operator("bias", f"{made.name}_bias", made.part, columns)


def _add(c: _Counter, node: Any) -> Iterator[Operator]:
    kind = "add" if len(row_inputs(node)) == 2 else "bias"
    yield c.operator(node, kind, c.row(node))


def _mul(c: _Counter, node: Any) -> Iterator[Operator]:
    rows = row_inputs(node)
    if len(rows) == 1:
        factor = next(value for value in node.inputs if value is not rows[0])
        kind = "scale" if initializer_of(factor).const_value.size == 1 else "scale_columns"
        yield c.operator(node, kind, c.row(node))
        return
    gate = gate_of(node)
    yield c.operator(node, "gelu_mul" if gate is not None and gate.op_type == "Gelu" else "silu_mul", c.row(node))


def _gelu(c: _Counter, node: Any) -> Iterator[Operator]:
    yield c.operator(node, "gelu", c.row(node))


def _sigmoid(c: _Counter, node: Any) -> Iterator[Operator]:
    yield c.operator(node, "silu_mul", c.row(node))


def _relu(c: _Counter, node: Any) -> Iterator[Operator]:
    yield c.operator(node, "squared_relu" if node.domain else "relu", c.row(node))


def _tanh(c: _Counter, node: Any) -> Iterator[Operator]:
    yield c.operator(node, "tanh", c.row(node))


def _clip(c: _Counter, node: Any) -> Iterator[Operator]:
    yield c.operator(node, "clip", c.row(node))


def _xielu(c: _Counter, node: Any) -> Iterator[Operator]:
    yield c.operator(node, "xielu", c.row(node))


def _rms_norm(c: _Counter, node: Any) -> Iterator[Operator]:
    source = node.inputs[0]
    kind = "add_rms_norm" if source.producer() in c.fused else "rms_norm"
    yield c.operator(node, kind, c.width[source], groups=c.groups.get(source, 1))
    c.groups[node.outputs[0]] = c.groups.get(source, 1)


def _layer_norm(c: _Counter, node: Any) -> Iterator[Operator]:
    source, own = node.inputs[0], len(initializer_of(node.inputs[1]).const_value.shape) == 2
    yield c.operator(node, "layer_norm", c.width[source], groups=c.groups.get(source, 1), own=own)
    c.groups[node.outputs[0]] = c.groups.get(source, 1)


def _reshape(c: _Counter, node: Any) -> Iterator[Operator]:
    """Only how a row is seen: no kernel."""
    shape = [int(d) for d in node.inputs[1].const_value.numpy()]
    c.groups[node.outputs[0]] = shape[2] if len(shape) == 4 else 1
    c.width[node.outputs[0]] = c.row(node)
    yield from ()


def _rope(c: _Counter, node: Any) -> Iterator[Operator]:
    yield c.operator(node, "rope", c.row(node))


def _attention(c: _Counter, node: Any) -> Iterator[Operator]:
    heads, kv_heads = attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")
    window, slopes = seen_keys(node)
    yield c.operator(
        *(node, "attention", heads * c.head_dim),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=c.head_dim,
        window=window,
        softcap=float(attribute(node, "softcap", 0.0)) > 0,
        alibi=bool(slopes),
    )


def _split(c: _Counter, node: Any) -> Iterator[Operator]:
    for value, size in zip(node.outputs, node.inputs[1].const_value.numpy(), strict=True):
        c.width[value] = int(size)
        if value.uses():
            yield Operator("take", c.names.taken(value), labelled_part(node), int(size))


def _concat(c: _Counter, node: Any) -> Iterator[Operator]:
    yield c.operator(node, "join_columns", sum(c.width[value] for value in node.inputs))


def _streams(c: _Counter, node: Any) -> Iterator[Operator]:
    kind = {"AltUpPredict": "altup_predict", "AltUpCorrect": "altup_correct", "AltUpAdd": "altup_add"}[node.op_type]
    yield c.operator(node, kind, c.width[node.inputs[0]], groups=attribute(node, "streams"))


def _statistics(c: _Counter, node: Any) -> Iterator[Operator]:
    kind = "match_magnitude" if node.op_type == "MatchMagnitude" else "gaussian_top_k"
    yield c.operator(node, kind, c.width[node.inputs[0]])


_COUNT: dict[str, Callable[[_Counter, Any], Iterator[Operator]]] = {
    "Gather": _table,
    "GatherBlockQuantized": _table,
    "MatMul": _linear,
    "MatMulNBits": _linear,
    "MatMulBnb4": _linear,
    "Add": _add,
    "Mul": _mul,
    "Gelu": _gelu,
    "Sigmoid": _sigmoid,
    "Relu": _relu,
    "SquaredRelu": _relu,
    "Tanh": _tanh,
    "Clip": _clip,
    "XIELU": _xielu,
    "Concat": _concat,
    **dict.fromkeys(("AltUpPredict", "AltUpCorrect", "AltUpAdd"), _streams),
    **dict.fromkeys(("MatchMagnitude", "GaussianTopK"), _statistics),
    "RMSNormalization": _rms_norm,
    "LayerNormalization": _layer_norm,
    "Reshape": _reshape,
    "RotaryEmbedding": _rope,
    "Attention": _attention,
    "Split": _split,
}


def _inside(node: Any) -> list[Any]:
    """The nodes before this one that its kernel computes, too."""
    if node.op_type == "RMSNormalization":
        source = node.inputs[0].producer()
        first = next((user for user, _ in node.inputs[0].uses() if user.op_type == node.op_type), None)
        added = source is not None and source.op_type == "Add" and len(row_inputs(source)) == 2
        return [source] if added and first is node else []
    if node.op_type != "Mul" or len(row_inputs(node)) != 2:
        return []
    gate = gate_of(node)
    if gate is None:
        return []
    sigmoid = sigmoid_of_silu(gate)
    return [gate] if sigmoid is None else [sigmoid, gate]


def _given(node: Any, i: int) -> bool:
    return len(node.inputs) > i and node.inputs[i] is not None


def _blocks(node: Any) -> Format:
    """The format of a block-quantised matrix or table: bits and block are attributes, the rest is in the tensors."""
    if node.op_type == "MatMulBnb4":
        table = BNB4_TABLES[attribute(node, "quant_type")]
        return Format(table, int(attribute(node, "block_size")), _dtype(initializer_of(node.inputs[2])))
    bits, zeros = int(attribute(node, "bits", 4)), _given(node, 3)
    zero = _dtype(initializer_of(node.inputs[3])) if zeros else "uint8"
    scale = _dtype(initializer_of(node.inputs[2]))
    return Format(f"int{bits}", int(attribute(node, "block_size", 128)), scale, zeros, zero)


def _dtype(value: Any) -> str:
    name = str(value.const_value.dtype.name).lower()
    return {"float": "float32"}.get(name, name)
