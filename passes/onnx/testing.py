"""Helpers of tests: graphs from ONNX text, graphs as lines, runs of a canonical decoder, a tokenizer of words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime
from tokenizers import Tokenizer, models, pre_tokenizers

from passes.onnx.pass_context import ImportFacts, Importing

_DOT = "_dot_"


def importing(text: str, context: int = 16, opset: int = 18, **facts: Any) -> Importing:
    """An `Importing` of a graph in ONNX text (`agraph (...) => (...) {...}`), with facts as normalise_io_names sets.

    Names of caches may have dots, which ONNX text itself does not allow.
    """
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    text = re.sub(r"\b(?:past|present|key|value)[\w.]*", lambda m: m.group().replace(".", _DOT), text)
    model = ir.from_proto(onnx.parser.parse_model(header + text))
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = value.name.replace(_DOT, ".")
    imp = Importing(model, context)
    imp.facts = ImportFacts(**{"kv_heads": 2, "head_dim": 4, "layers": 1, **facts})
    for node in model.graph:
        node.name = node.name or f"{node.op_type} of {node.outputs[0].name}"
    return imp


def lines(graph: Any) -> list[str]:
    """One line a node: "out = domain.Operator(inputs) {attributes}"; constants of one element by their number."""
    return [_line(node) for node in graph]


def _line(node: Any) -> str:
    attributes = {n: a.value for n, a in sorted(node.attributes.items())}
    shown = " {" + ", ".join(f"{n}: {_plain(v)}" for n, v in attributes.items()) + "}" if attributes else ""
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    outputs = ", ".join(v.name for v in node.outputs)
    return f"{outputs} = {name}({', '.join(_operand(v) for v in node.inputs)}){shown}"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    return list(value) if isinstance(value, tuple) else value


def _operand(value: Any) -> str:
    if value is None:
        return ""
    if value.const_value is not None and np.issubdtype(value.const_value.dtype.numpy(), np.integer):
        return str(value.const_value.numpy().tolist())
    return str(value.name)


class CanonicalModel:
    """A canonical decoder in onnxruntime without optimisation; external weights are read into memory."""

    def __init__(self, model: Any) -> None:
        """Load the model as it is now; later changes of it are not seen."""
        proto = ir.to_proto(model)
        for tensor, value in zip(proto.graph.initializer, model.graph.initializers.values(), strict=True):
            tensor.CopyFrom(ir.to_proto(ir.tensor(value.const_value.numpy(), name=value.name)))
        onnx.checker.check_model(proto)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=providers)
        self._inputs = [v.name for v in model.graph.inputs]
        self._outputs = [v.name for v in model.graph.outputs]

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name; `feed` may have more than the graph takes."""
        return dict(zip(self._outputs, self._session.run(None, {n: feed[n] for n in self._inputs}), strict=True))


def case(
    facts: Any, batch: int, new: int, past: int, pads: tuple[int, ...] = (), side: str = "left"
) -> dict[str, np.ndarray]:
    """Random inputs for a decoder of these facts; `pads[b]` padding tokens in row b, positions counted without them."""
    rng = np.random.default_rng([batch, new, past])
    mask = np.ones((batch, past + new), np.int64)
    for row, pad in enumerate(pads):
        if side == "left":
            mask[row, :pad] = 0
        else:
            mask[row, mask.shape[1] - pad :] = 0
    shape = (batch, facts.kv_heads, past, facts.head_dim)
    caches = {
        f"past_key_values.{i}.{kind}": rng.standard_normal(shape).astype(np.float32)
        for i in range(facts.layers)
        for kind in ("key", "value")
    }
    for layer, source in facts.copies:
        caches |= {
            f"past_key_values.{layer}.{kind}": caches[f"past_key_values.{source}.{kind}"] for kind in ("key", "value")
        }
    return {
        "input_ids": rng.integers(0, facts.vocab, (batch, new)),
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(1) - 1, 0)[:, past:],
        **caches,
    }


def worst_difference(
    actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], mask: np.ndarray, past: int
) -> float:
    """Largest difference of any output in rows of real tokens, relative to that output's largest number there."""
    real = mask[:, past:].astype(bool)
    worst = 0.0
    for name, reference in expected.items():
        a, e = actual[name], reference
        if name != "logits":  # [B, heads, past + new, dim] -> [B, new, heads, dim]; what was past must be unchanged
            if not np.array_equal(a[:, :, :past], e[:, :, :past]):
                return float("inf")
            a, e = (x[:, :, past:].transpose(0, 2, 1, 3) for x in (a, e))
        worst = max(worst, float(np.abs(a[real] - e[real]).max() / np.abs(e[real]).max()))
    return worst


def write_word_tokenizer(folder: Path, vocab: int) -> None:
    """A tokenizer.json of that many words, "w0" to the last, and a generation_config.json that ends texts with w1."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
