"""Write a Llama of a GGUF file as ONNX, with its tokenizer: what a hub would hold, made without PyTorch.

    python examples/chat/export.py MODEL.gguf --out DIR

The weights stay in the blocks of the file: MatMulNBits has 4-bit blocks with a float zero point for Q4_1 and 8-bit ones
for Q8_0, GatherBlockQuantized takes the embedding's rows of the same 8-bit tensor, for head and embedding are one.
All other operators are of ONNX, but for GroupQueryAttention, which rotates q and k and keeps the KV cache.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from gguf_model import BLOCK, Blocks, GgufModel, Sizes
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
KEPT = ("key", "value")  # of a layer
CONTROL = 3  # the token type of llama.cpp that marks special tokens


class Graph:
    """Nodes and weights, added one after another."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def op(self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:
        """Add a node; the name of its first output."""
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def weight(self, name: str, array: np.ndarray) -> str:
        """Add a tensor; its name."""
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def blocks(self, name: str, blocks: Blocks) -> list[str]:
        """Add a matrix in blocks; the names of q, scale and, where it is stated, zero."""
        parts = {"q": blocks.q, "scale": blocks.scale.reshape(-1)}
        parts |= {} if blocks.zero is None else {"zero": blocks.zero.reshape(-1)}
        return [self.weight(f"{name}.{part}", array) for part, array in parts.items()]

    def linear(self, x: str, name: str, blocks: Blocks, output: str = "") -> str:
        """Add a matrix multiplication with a matrix in blocks."""
        weights = self.blocks(name, blocks)
        sizes = dict(K=blocks.columns, N=blocks.rows, bits=blocks.bits, block_size=BLOCK)
        return self.op("MatMulNBits", [x, *weights], [output or f"{name}/out"], MICROSOFT, **sizes)

    def norm(self, x: str, name: str, weight: np.ndarray, epsilon: float) -> str:
        """Add an RMS norm."""
        return self.op("RMSNormalization", [x, self.weight(name, weight)], [f"{name}/out"], axis=-1, epsilon=epsilon)


def decoder(model: GgufModel) -> Any:
    """The ONNX model; weights are in it.

    Returns:
        An onnx.ModelProto with the inputs and outputs that exporters give a decoder with a KV cache.
    """
    g, s = Graph(), model.sizes
    angle = np.outer(np.arange(s.context), s.rope_base ** -(np.arange(0, s.head_dim, 2) / s.head_dim))
    rope = [g.weight("cos_cache", np.cos(angle).astype(np.float32))]
    rope.append(g.weight("sin_cache", np.sin(angle).astype(np.float32)))
    lengths = _lengths(g)
    table = model.matrix("token_embd.weight")
    q = g.weight("embedding.q", table.q.reshape(s.vocab, s.width))
    scale = g.weight("embedding.scale", table.scale)
    facts = dict(bits=8, block_size=BLOCK, gather_axis=0, quantize_axis=1)
    x = g.op("GatherBlockQuantized", [q, "input_ids", scale], ["embedding/out"], MICROSOFT, **facts)
    for i in range(s.layers):
        block, name = f"blk.{i}.", f"layers.{i}."
        y = g.norm(x, f"{name}input_norm", model.vector(f"{block}attn_norm.weight"), s.epsilon)
        qkv = [g.linear(y, f"{name}{part}", model.matrix(f"{block}attn_{part}.weight")) for part in "qkv"]
        past, present = ([f"{which}.{i}.{part}" for part in KEPT] for which in ("past_key_values", "present"))
        attention = g.op(
            "GroupQueryAttention",
            [*qkv, *past, *lengths, *rope],
            [f"{name}attention", *present],
            MICROSOFT,
            num_heads=s.heads,
            kv_num_heads=s.kv_heads,
            scale=s.head_dim**-0.5,
            do_rotary=1,
        )
        o = g.linear(attention, f"{name}o", model.matrix(f"{block}attn_output.weight"))
        x = g.op("Add", [x, o], [f"{name}attention/sum"])
        y = g.norm(x, f"{name}post_norm", model.vector(f"{block}ffn_norm.weight"), s.epsilon)
        gate, up = (g.linear(y, f"{name}{part}", model.matrix(f"{block}ffn_{part}.weight")) for part in ("gate", "up"))
        silu = g.op("Mul", [gate, g.op("Sigmoid", [gate], [f"{name}sigmoid"])], [f"{name}silu"])
        gated = g.op("Mul", [silu, up], [f"{name}gated"])
        x = g.op("Add", [x, g.linear(gated, f"{name}down", model.matrix(f"{block}ffn_down.weight"))], [f"{name}sum"])
    y = g.norm(x, "final_norm", model.vector("output_norm.weight"), s.epsilon)
    head = [g.weight("head.q", table.q), g.weight("head.scale", table.scale.reshape(-1))]
    sizes = dict(K=s.width, N=s.vocab, bits=8, block_size=BLOCK)
    g.op("MatMulNBits", [y, *head], ["logits"], MICROSOFT, **sizes)
    return _model(g, s)


def _lengths(g: Graph) -> list[str]:
    """What GroupQueryAttention is told of the lengths: the last row of each sequence, and all rows."""
    g.weight("one", np.array([1], np.int64))
    g.weight("axis", np.array(1, np.int64))
    g.op("ReduceSum", ["attention_mask", "one"], ["mask/sum"], keepdims=0)
    g.op("Sub", ["mask/sum", "one"], ["mask/last"])
    g.op("Shape", ["attention_mask"], ["mask/shape"])
    g.op("Gather", ["mask/shape", "axis"], ["mask/total"], axis=0)
    return [
        g.op("Cast", ["mask/last"], ["seqlens_k"], to=TensorProto.INT32),
        g.op("Cast", ["mask/total"], ["total"], to=TensorProto.INT32),
    ]


def _model(g: Graph, s: Sizes) -> Any:
    value = helper.make_tensor_value_info
    inputs = [
        value("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
        value("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
    ]
    outputs = [value("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", s.vocab])]
    for i in range(s.layers):
        for part in KEPT:
            past = ["batch_size", s.kv_heads, "past_sequence_length", s.head_dim]
            present = ["batch_size", s.kv_heads, "total_sequence_length", s.head_dim]
            inputs.append(value(f"past_key_values.{i}.{part}", TensorProto.FLOAT, past))
            outputs.append(value(f"present.{i}.{part}", TensorProto.FLOAT, present))
    graph = helper.make_graph(g.nodes, "llama", inputs, outputs, g.weights)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


def tokenizer(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The tokenizer's files, by name, from the metadata of a GGUF file.

    Raises:
        ValueError: it splits texts in another way than SmolLM, whose rule is the only one here.
    """
    of = {name.removeprefix("tokenizer.ggml."): value for name, value in facts.items()}
    if (of["model"], of["pre"]) != ("gpt2", "smollm"):
        raise ValueError(f"the tokenizer is {of['model']} with rule {of['pre']}, this example knows gpt2 with smollm")
    tokens, kinds = of["tokens"], of["token_type"]
    special = [(i, token) for i, token in enumerate(tokens) if kinds[i] == CONTROL]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": i, "content": token, **plain} for i, token in special],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
            },
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": {token: i for i, token in enumerate(tokens)},
                "merges": [merge.split(" ") for merge in of["merges"]],
            },
        },
        "tokenizer_config.json": {
            "bos_token": tokens[of["bos_token_id"]],
            "eos_token": tokens[of["eos_token_id"]],
            "chat_template": facts["tokenizer.chat_template"],
        },
        "generation_config.json": {"eos_token_id": of["eos_token_id"]},
    }


def export(source: Path, out: Path) -> Path:
    """Write model.onnx, its weights beside it, and the tokenizer's files into a folder; the path of the model."""
    model = GgufModel(source)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in tokenizer(model.facts).items():
        (out / name).write_text(json.dumps(content, ensure_ascii=False) + "\n", "utf-8")
    path = out / "model.onnx"
    (out / "model.onnx.data").unlink(missing_ok=True)  # onnx would append to it
    onnx.save_model(decoder(model), path, save_as_external_data=True, location="model.onnx.data", size_threshold=1024)
    return path


def main() -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(description="write a Llama of a GGUF file as ONNX, with its tokenizer")
    parser.add_argument("source", metavar="MODEL.gguf", type=Path)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True)
    options = parser.parse_args()
    print(export(options.source, options.out))


if __name__ == "__main__":
    main()
