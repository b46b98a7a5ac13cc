"""Tiny canonical decoders for tests: random weights, every kind of layer, no exporter needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx import TensorProto, helper, numpy_helper

from passes.onnx import Decoder, DecoderFacts, RopeFacts
from passes.onnx.label_parts import label

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


class TinyDecoder:
    """A canonical ONNX decoder (opset 23) built node by node; weights are float32 or float16, or 4-bit blocks.

    The mask is left to Attention's is_causal with a past of any length, which is what CausalMask stands for.
    """

    def __init__(
        self,
        layers: int = 2,
        heads: int = 4,
        kv_heads: int = 2,
        head_dim: int = 16,
        ffn: int = 48,
        vocab: int = 50,
        context: int = 64,
        dtype: str = "float32",
        qk_norm: bool = False,
        qkv_bias: bool = False,
        tied: bool = False,
        bits: int = 0,
        seed: int = 0,
        parallel: bool = False,
    ):
        """Make the weights and the graph; `parallel`: x + (attention of x + feed-forward part of x), as in GPT-J."""
        self.layers, self.heads, self.kv_heads, self.head_dim = layers, heads, kv_heads, head_dim
        self.hidden, self.ffn, self.vocab, self.context = heads * head_dim, ffn, vocab, context
        self.dtype, self.bits, self.tied, self.parallel = dtype, bits, tied, parallel
        self._rng = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._init: dict[str, np.ndarray] = {}
        self._build(qk_norm, qkv_bias)

    def _name(self) -> str:
        return f"v{len(self._nodes)}"

    def _op(self, kind: str, inputs: list[str], outputs: int = 1, domain: str = "", **attrs: Any) -> Any:
        out = [f"{self._name()}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, inputs, out, name=f"n{len(self._nodes)}", domain=domain, **attrs))
        return out[0] if outputs == 1 else out

    def _weight(self, name: str, array: np.ndarray) -> str:
        """An initialiser; float16 ones are read through a Cast."""
        self._init[name] = array.astype(self.dtype)
        return name if self.dtype == "float32" else self._op("Cast", [name], to=FLOAT)

    def _normal(self, *shape: int, scale: float = 0.2) -> np.ndarray:
        return (self._rng.standard_normal(shape) * scale).astype(np.float32)

    def _linear(self, x: str, name: str, k: int, n: int) -> str:
        if not self.bits:
            return self._op("MatMul", [x, self._weight(name, self._normal(k, n))])
        block, per = 16, 8 // self.bits
        blocks = k // block
        self._init[name + ".q"] = self._rng.integers(0, 256, (n, blocks, block // per)).astype(np.uint8)
        self._init[name + ".scale"] = np.abs(self._normal(n, blocks, scale=0.02)) + np.float32(0.01)
        zeros = self._rng.integers(0, 256, (n, -(-blocks // per))).astype(np.uint8)
        self._init[name + ".zero"] = zeros
        inputs = [x, name + ".q", name + ".scale", name + ".zero"]
        sizes = dict(bits=self.bits, block_size=block, K=k, N=n, accuracy_level=0)
        return str(self._op("MatMulNBits", inputs, domain="com.microsoft", **sizes))

    def _norm(self, x: str, name: str, width: int) -> str:
        self._init[name] = 1 + self._normal(width)
        return str(self._op("RMSNormalization", [x, name], axis=-1, epsilon=1e-5))

    def _head_norm(self, x: str, name: str, heads: int) -> str:
        self._init[name + ".split"] = np.array([0, 0, heads, self.head_dim])
        self._init[name + ".join"] = np.array([0, 0, heads * self.head_dim])
        parts = self._op("Reshape", [x, name + ".split"])
        return str(self._op("Reshape", [self._norm(parts, name, self.head_dim), name + ".join"]))

    def _layer(self, x: str, i: int, qk_norm: bool, qkv_bias: bool) -> str:
        y, p = self._norm(x, f"{i}.norm", self.hidden), f"past_key_values.{i}."
        parts = []
        for part, heads in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)):
            width = heads * self.head_dim
            z = self._linear(y, f"{i}.{part}", self.hidden, width)
            if qkv_bias:
                self._init[f"{i}.{part}.bias"] = self._normal(width)
                z = self._op("Add", [z, f"{i}.{part}.bias"])
            if part != "v":
                z = self._head_norm(z, f"{i}.{part}.norm", heads) if qk_norm else z
                z = self._op("RotaryEmbedding", [z, "cos", "sin", "position_ids"], num_heads=heads)
            parts.append(z)
        o, key, value = self._op(
            "Attention",
            [*parts, "", p + "key", p + "value"],
            outputs=3,
            **dict(q_num_heads=self.heads, kv_num_heads=self.kv_heads, scale=self.head_dim**-0.5, is_causal=1),
        )
        self._present += [key, value]
        o = self._linear(o, f"{i}.o", self.hidden, self.hidden)
        if not self.parallel:
            x = self._op("Add", [x, o])
        y = self._norm(x, f"{i}.ffn_norm", self.hidden)
        gate, up = (self._linear(y, f"{i}.{n}", self.hidden, self.ffn) for n in ("gate", "up"))
        silu = self._op("Mul", [gate, self._op("Sigmoid", [gate])])
        down = self._linear(self._op("Mul", [silu, up]), f"{i}.down", self.ffn, self.hidden)
        return str(self._op("Add", [x, self._op("Add", [o, down]) if self.parallel else down]))

    def _build(self, qk_norm: bool, qkv_bias: bool) -> None:
        self._present: list[str] = []
        angle = np.outer(np.arange(self.context), 10000.0 ** -(np.arange(0, self.head_dim, 2) / self.head_dim))
        self._init |= {"cos": np.cos(angle).astype(np.float32), "sin": np.sin(angle).astype(np.float32)}
        table = self._weight("embedding", self._normal(self.vocab, self.hidden, scale=1.0))
        x = self._op("Gather", [table, "input_ids"])
        for i in range(self.layers):
            x = self._layer(x, i, qk_norm, qkv_bias)
        x = self._norm(x, "final_norm", self.hidden)
        if self.tied:
            logits = self._op("MatMul", [x, self._op("Transpose", [table], perm=[1, 0])])
        else:
            logits = self._linear(x, "head", self.hidden, self.vocab)
        self._nodes[-1].output[0] = "logits"
        del logits

    def decoder(self, proto: Any = None) -> Decoder:
        """The decoder as the importer would hand it on; `proto` stands in for the own graph where a test changed it."""
        facts = DecoderFacts(
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            hidden=self.hidden,
            ffn=self.ffn,
            vocab=self.vocab,
            context=self.context,
            rope=RopeFacts(self.head_dim, interleaved=False, positions="input"),
            tied=self.tied,
            weight_dtype=f"int{self.bits}" if self.bits else self.dtype,
            family="llama",
        )
        model = onnx_ir.from_proto(proto or self.proto())
        label(model.graph)
        return Decoder(model, facts, [])

    def proto(self) -> Any:
        """The onnx.ModelProto."""
        value, dims = helper.make_tensor_value_info, ["batch", self.kv_heads, "past", self.head_dim]
        inputs = [value(n, INT64, ["batch", "n"]) for n in ("input_ids", "position_ids")]
        outputs = [value("logits", FLOAT, ["batch", "n", self.vocab])]
        for node in self._nodes:
            for i, name in enumerate(node.output):
                if name in self._present:
                    at = self._present.index(name)
                    node.output[i] = f"present.{at // 2}.{('key', 'value')[at % 2]}"
        for i in range(self.layers):
            for kind in ("key", "value"):
                inputs.append(value(f"past_key_values.{i}.{kind}", FLOAT, dims))
                outputs.append(value(f"present.{i}.{kind}", FLOAT, ["batch", self.kv_heads, "total", self.head_dim]))
        init = [numpy_helper.from_array(a, n) for n, a in self._init.items()]
        graph = helper.make_graph(self._nodes, "tiny", inputs, outputs, init)
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=11)


def run_onnx(proto: onnx.ModelProto, ids: list[int], past: list[np.ndarray]) -> list[np.ndarray]:
    """All outputs of a decoder in onnxruntime with graph optimisation off; batch 1, no padding."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    length = past[0].shape[2]
    feeds: dict[str, np.ndarray] = {
        "input_ids": np.array([ids], np.int64),
        "position_ids": np.arange(length, length + len(ids), dtype=np.int64)[None],
        "attention_mask": np.ones((1, length + len(ids)), np.int64),
    }
    names = [i.name for i in session.get_inputs()]
    feeds |= dict(zip([n for n in names if n.startswith("past")], past, strict=True))
    return list(session.run(None, {n: feeds[n] for n in names}))
