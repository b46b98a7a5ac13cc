"""An ONNX file of passes/synthetic.py as a GGUF file with the same weights, for llama.cpp: F32, F16, Q8_0 or Q4_0.

Every matrix has the one type, the head included, which llama.cpp's own files keep in a wider one: what is read of both
files is the same. Scales are rounded to float16, as GGUF stores them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from passes.synthetic import LlamaShape

_BLOCK = 32
_NAMES = {"o": "attn_output", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down", "head": "output"}
_NORMS = {"input_norm": "attn_norm", "post_norm": "ffn_norm"}
_Array = npt.NDArray[Any]


def write_gguf(model: Path, shape: LlamaShape, path: Path, vocabulary: bool = False) -> None:
    """Write the GGUF file.

    Args:
        model: what `write_llama` wrote.
        shape: its sizes.
        path: the file to write.
        vocabulary: the text of a token is its number, which llama.cpp's server needs; else there is none.
    """
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("llama" if vocabulary else "none")
    if vocabulary:
        kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
        writer.add_token_list([f"\u2581{i}" for i in range(shape.vocab)])
        writer.add_token_scores([0.0] * shape.vocab)
        writer.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * (shape.vocab - len(kinds))])
    for name, values, kind in _tensors(model, shape):
        writer.add_tensor(name, values, raw_dtype=None if kind == "" else gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(model: Path, shape: LlamaShape) -> Iterator[tuple[str, _Array, str]]:
    """Each tensor's name, numbers or blocks, and the type of blocks or ""."""
    graph = onnx.load(model, load_external_data=False).graph
    stored = {tensor.name: _mapped(model, tensor) for tensor in graph.initializer if tensor.external_data}
    for name, values in stored.items():
        if name.endswith("norm"):
            yield f"{_norm(name, shape.layers)}.weight", values.astype(np.float32), ""
    yield "token_embd.weight", stored["embed.weight"], ""
    for node in graph.node:
        if node.op_type not in ("MatMul", "MatMulNBits"):
            continue
        blocked = node.op_type == "MatMulNBits"
        rows = _blocks(stored[node.input[1]], stored[node.input[2]]) if blocked else stored[node.input[1]].T
        kind = "" if not blocked else "Q8_0" if rows.shape[-1] * _BLOCK == 34 * _columns(node) else "Q4_0"
        *layer, name = node.name.removesuffix("/out").removeprefix("layers.").split(".")
        if name == "qkv":
            width, kv = shape.hidden, shape.kv_heads * shape.head_dim
            q, k, v = np.split(rows, (width, width + kv))
            for part, of_part in (("attn_q", _turned(q, shape)), ("attn_k", _turned(k, shape)), ("attn_v", v)):
                yield f"blk.{layer[0]}.{part}.weight", np.ascontiguousarray(of_part), kind
        else:
            block = f"blk.{layer[0]}." if layer else ""
            yield f"{block}{_NAMES.get(name, 'output')}.weight", np.ascontiguousarray(rows), kind


def _columns(node: Any) -> int:
    return next(int(attribute.i) for attribute in node.attribute if attribute.name == "K")


def _mapped(model: Path, tensor: Any) -> _Array:
    facts = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    place = model.parent / facts["location"]
    return np.memmap(place, dtype, "r", int(facts["offset"]), tuple(tensor.dims))


def _norm(name: str, layers: int) -> str:
    """`next_norm` of a layer is the first norm of the layer after it."""
    if name == "final_norm":
        return "output_norm"
    _, layer, own = name.split(".")
    return f"blk.{int(layer) + 1}.attn_norm" if own == "next_norm" else f"blk.{layer}.{_NORMS[own]}"


def _turned(rows: _Array, shape: LlamaShape) -> _Array:
    """Rows of q or k in llama.cpp's order: it rotates neighbouring numbers of a head, the ONNX file the two halves."""
    half = shape.head_dim // 2
    return rows.reshape(-1, 2, half, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def _blocks(q: _Array, scale: _Array) -> _Array:
    """Bytes of each row's blocks: a float16 scale, then the codes; of 4 bits, code i and code i + 16 in one byte."""
    n, blocks, size = q.shape
    if size == _BLOCK:
        codes = (q ^ 128).view(np.uint8)
    else:
        low, high = q & 15, q >> 4  # codes 2 i and 2 i + 1
        whole = np.stack([low, high], -1).reshape(n, blocks, _BLOCK)
        codes = whole[..., : _BLOCK // 2] | whole[..., _BLOCK // 2 :] << 4
    scales = scale.reshape(n, blocks, 1).astype(np.float16).view(np.uint8).reshape(n, blocks, 2)
    return np.concatenate([scales, codes], -1).reshape(n, -1)
