"""Llama-shaped ONNX files of any size with random weights, in the form onnxruntime-genai's builder writes.

For benchmarks and for memory tests: what real checkpoints of that shape would cost, without downloading one. A caller
may give weights of its own. Weights
go to external data tensor by tensor, so a file larger than memory can be written. Pairs with a real acceptance come
from one model: its first layers and its head draft, its later layers change the residual stream by little.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

_ALIGN = 4096
_MS = "com.microsoft"
_BLOCK = 32  # weights that share a scale
_QUANTISED = {"int4": 4, "int8": 8}  # bits of a weight
_REPEATED = 1 << 20  # random numbers of a tensor before they repeat
Given = Callable[[str, tuple[int, ...]], np.ndarray]  # name and shape of a float tensor -> its values


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama-shaped decoder; without a `head_width`, heads are hidden / heads wide."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    context: int = 2048
    head_width: int | None = None

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads if self.head_width is None else self.head_width

    @property
    def parameters(self) -> int:
        """Number of weights; embedding and head count separately."""
        qkv = self.hidden * (self.heads + 2 * self.kv_heads) * self.head_dim
        layer = qkv + self.heads * self.head_dim * self.hidden + 3 * self.hidden * self.ffn + 2 * self.hidden
        return self.layers * layer + 2 * self.vocab * self.hidden + self.hidden


LLAMA_100M = LlamaShape(layers=12, hidden=768, heads=12, kv_heads=4, ffn=2048, vocab=16000)
LLAMA_500M = LlamaShape(layers=24, hidden=1280, heads=20, kv_heads=4, ffn=3584, vocab=32000)
LLAMA_1B = LlamaShape(layers=16, hidden=2048, heads=32, kv_heads=8, ffn=8192, vocab=64128)
LLAMA_3B = LlamaShape(layers=28, hidden=3072, heads=24, kv_heads=8, ffn=8192, vocab=128256)


class _Writer:
    def __init__(self, path: Path, dtype: str, seed: int, file_bytes: int | None, given: Given | None):
        self.path, self.bits = path, _QUANTISED.get(dtype, 0)
        self.dtype = np.dtype("float32" if self.bits else dtype)
        self.file_bytes, self.files = file_bytes, 1
        self.data = (path.parent / (path.name + ".data")).open("wb")
        self.seed, self.given = seed, given
        self.tensors: list[Any] = []
        self.nodes: list[Any] = []

    def weight(self, name: str, *shape: int, centre: float = 0.0, times: float = 1.0) -> str:
        """A tensor in the external file: the given one, else a random one, the same for the same seed and name.

        Rows of a random one repeat a block of random numbers, which is fast to make.
        """
        if self.given is not None:
            return self.external(name, shape, self.given(name, shape).astype(self.dtype).ravel())
        scale = times * (shape[0] ** -0.5 if len(shape) > 1 else 0.1)
        dtype = np.float16 if self.bits and len(shape) > 1 else self.dtype  # there only the embedding is a plain matrix
        block = centre + scale * self.rng(name).standard_normal(min(int(np.prod(shape)), _REPEATED))
        return self.external(name, shape, block.astype(dtype))

    def rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def external(self, name: str, shape: tuple[int, ...], block: np.ndarray) -> str:
        """A tensor in an external file that repeats a block."""
        if self.file_bytes is not None and self.data.tell() > self.file_bytes:
            self.data.close()
            self.data = (self.path.parent / f"{self.path.name}.data_{self.files}").open("wb")
            self.files += 1
        count = int(np.prod(shape))
        offset = -(-self.data.tell() // _ALIGN) * _ALIGN
        self.data.seek(offset)
        for start in range(0, count, block.size):
            self.data.write(block[: count - start].tobytes())
        tensor = TensorProto(name=name, dims=shape, data_location=TensorProto.EXTERNAL)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(block.dtype)
        facts = {"location": Path(self.data.name).name, "offset": offset, "length": count * block.itemsize}
        for key, value in facts.items():
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
        return name

    def small(self, name: str, array: np.ndarray) -> str:
        self.tensors.append(onnx.numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attrs: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], domain=domain, **attrs))
        return outputs[0]

    def linear(self, x: str, name: str, k: int, n: int, times: float = 1.0, output: str = "") -> str:
        outputs = [output or f"{name}/out"]
        if not self.bits:
            return self.op("MatMul", [x, self.weight(f"{name}.weight", k, n, times=times)], outputs)
        blocks, rng = k // _BLOCK, self.rng(name)
        q = rng.integers(0, 256, min(n * k * self.bits // 8, _REPEATED), np.uint8)
        scale = times * (0.2 + 0.1 * rng.random(min(n * blocks, _REPEATED))) * k**-0.5 * 2.0 ** (4 - self.bits)
        inputs = [x, self.external(f"{name}.q", (n, blocks, _BLOCK * self.bits // 8), q)]
        inputs += [self.external(f"{name}.scale", (n, blocks), scale.astype(np.float32))]
        facts = dict(K=k, N=n, bits=self.bits, block_size=_BLOCK, accuracy_level=4)
        return self.op("MatMulNBits", inputs, outputs, _MS, **facts)


def write_early_exit_pair(
    target: Path, draft: Path, shape: LlamaShape, draft_layers: int, residual_scale: float, dtype: str, seed: int = 0
) -> LlamaShape:
    """Write a target and a drafter that is its first layers and its head; return the drafter's shape.

    What the target's other layers add to the residual stream is scaled down, which sets how often both choose the same
    token: always at 0, almost never at 1.

    Args:
        target: its .onnx file.
        draft: its .onnx file.
        shape: the target's.
        draft_layers: layers that both have.
        residual_scale: of the outputs of the target's other layers.
        dtype: "float32" or "float16".
        seed: of the weights.
    """
    small = replace(shape, layers=draft_layers)
    write_llama(target, shape, dtype, seed, (draft_layers, residual_scale))
    write_llama(draft, small, dtype, seed)
    return small


def write_llama(
    path: Path,
    shape: LlamaShape,
    dtype: str = "float32",
    seed: int = 0,
    scaled: tuple[int, float] | None = None,
    file_bytes: int | None = None,
    given: Given | None = None,
) -> None:
    """Write `path` and `path`.data; logits have a scale of a few units.

    Args:
        path: the .onnx file.
        shape: sizes.
        dtype: "float32" or "float16", of weights and activations; "int4" and "int8" have matrices in blocks of 32 with
            float32 scales (MatMulNBits), a float16 embedding and float32 activations that may be rounded to int8.
        seed: of the weights.
        scaled: (layer, scale): from that layer on, what is added to the residual stream is scaled.
        file_bytes: start another external file after so many bytes; None writes one.
        given: the weights, where they are not random; with "float32" and "float16".
    """
    w = _Writer(path, dtype, seed, file_bytes, given)
    angle = np.outer(np.arange(shape.context), 10000.0 ** -(np.arange(0, shape.head_dim, 2) / shape.head_dim))
    w.small("cos_cache", np.cos(angle).astype(w.dtype))
    w.small("sin_cache", np.sin(angle).astype(w.dtype))
    w.small("one", np.array([1], np.int64))
    w.small("axis", np.array(1, np.int64))
    w.op("ReduceSum", ["attention_mask", "one"], ["mask/sum"], keepdims=0)
    w.op("Sub", ["mask/sum", "one"], ["mask/last"])
    w.op("Cast", ["mask/last"], ["seqlens_k"], to=TensorProto.INT32)
    w.op("Shape", ["attention_mask"], ["mask/shape"])
    w.op("Gather", ["mask/shape", "axis"], ["mask/total"], axis=0)
    w.op("Cast", ["mask/total"], ["total"], to=TensorProto.INT32)
    x = w.op("Gather", [w.weight("embed.weight", shape.vocab, shape.hidden), "input_ids"], ["embed/out"])
    x = w.op("Cast", [x], ["embed/float"], to=TensorProto.FLOAT) if w.bits else x
    first = w.weight("layers.0.input_norm", shape.hidden, centre=1.0)
    y = w.op("SimplifiedLayerNormalization", [x, first], ["norm.0/out"], axis=-1, stash_type=1, epsilon=1e-5)
    skip = x
    attention = dict(num_heads=shape.heads, kv_num_heads=shape.kv_heads, scale=shape.head_dim**-0.5, do_rotary=1)
    for i in range(shape.layers):
        p, past = f"layers.{i}.", f"past_key_values.{i}."
        times = scaled[1] if scaled is not None and i >= scaled[0] else 1.0
        following = p + "next_norm" if i + 1 < shape.layers else "final_norm"
        qkv = w.linear(y, p + "qkv", shape.hidden, (shape.heads + 2 * shape.kv_heads) * shape.head_dim)
        inputs = [qkv, "", "", past + "key", past + "value", "seqlens_k", "total", "cos_cache", "sin_cache"]
        outputs = [p + "attention", f"present.{i}.key", f"present.{i}.value"]
        w.op("GroupQueryAttention", inputs, outputs, _MS, **attention)
        o = w.linear(p + "attention", p + "o", shape.heads * shape.head_dim, shape.hidden, times)
        y, skip = _add_norm(w, skip, o, p + "post_norm", shape.hidden)
        gate, up = (w.linear(y, p + name, shape.hidden, shape.ffn) for name in ("gate", "up"))
        silu = w.op("Mul", [gate, w.op("Sigmoid", [gate], [p + "sigmoid"])], [p + "silu"])
        down = w.linear(w.op("Mul", [silu, up], [p + "gated"]), p + "down", shape.ffn, shape.hidden, times)
        y, skip = _add_norm(w, skip, down, following, shape.hidden)
    w.linear(y, "head", shape.hidden, shape.vocab, output="logits")
    w.data.close()
    onnx.save(_model(w, shape), path)


def _add_norm(w: _Writer, x: str, y: str, name: str, width: int) -> tuple[str, str]:
    inputs = [x, y, w.weight(name, width, centre=1.0)]
    outputs = [name + "/out", "", "", name + "/sum"]
    w.op("SkipSimplifiedLayerNormalization", inputs, outputs, _MS, epsilon=1e-5)
    return name + "/out", name + "/sum"


def _model(w: _Writer, shape: LlamaShape) -> Any:
    value, real = helper.make_tensor_value_info, helper.np_dtype_to_tensor_dtype(w.dtype)
    inputs = [
        value("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
        value("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
    ]
    outputs = [value("logits", real, ["batch_size", "sequence_length", shape.vocab])]
    for i in range(shape.layers):
        for kind in ("key", "value"):
            past = ["batch_size", shape.kv_heads, "past_sequence_length", shape.head_dim]
            present = ["batch_size", shape.kv_heads, "total_sequence_length", shape.head_dim]
            inputs.append(value(f"past_key_values.{i}.{kind}", real, past))
            outputs.append(value(f"present.{i}.{kind}", real, present))
    graph = helper.make_graph(w.nodes, "llama", inputs, outputs, w.tensors)
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid(_MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
