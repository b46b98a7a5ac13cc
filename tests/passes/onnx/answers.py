"""Whether an accepted export means what the file says: the canonical model against onnxruntime on the file itself.

The file goes to onnxruntime as it is, without optimisation. Two things are read as the importer promises to read them,
and no others: MatMulNBits' accuracy_level becomes 0 (it lets onnxruntime round the activations), and a file with half
precision in it runs upcast to float32 (`ReferenceModel`), because the canonical form does.

Not compared are cases that onnxruntime cannot run. A difference counts if it exceeds the bound of `verify` and thirty
times what the file's own answer moves by when each of its float weights moves by half a unit in the last place: weights
of 1e30 leave nothing of float32's digits, in any order of summation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from hetero_sd.reference import ReferenceModel
from hetero_sd.verify import logit_bound
from passes.onnx import Decoder
from passes.onnx.load.load import load
from passes.onnx.pass_context import Importing
from passes.onnx.rewrite.normalise_io_names import normalise_io_names
from passes.onnx.testing import CanonicalModel, case
from targets.errors import UserError

_HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_MOVED = 30
_UNIT = 2.0**-24


@dataclass(frozen=True)
class Answers:
    """What a comparison found.

    Attributes:
        cases: inputs that both ran.
        difference: the largest, in units of its bound; at most 1 is equal.
        where: the case and the output with the largest difference.
        reason: why onnxruntime runs nothing, where `cases` is 0.
    """

    cases: int
    difference: float = 0.0
    where: str = ""
    reason: str = ""

    @property
    def equal(self) -> bool:
        """Whether there is nothing to complain about; a NaN is."""
        return self.difference <= 1.0


class _File:
    """The file in onnxruntime, by normalised names."""

    def __init__(self, path: Path, proto: Any) -> None:
        imp = Importing(load(path), context=1)
        values = [*imp.graph.inputs, *imp.graph.outputs]
        names = [v.name for v in values]
        normalise_io_names(imp)
        kept = {*imp.graph.inputs, *imp.graph.outputs}
        self._names = {v.name: name for v, name in zip(values, names, strict=True) if v in kept}
        self._inputs = [v.name for v in imp.graph.inputs]
        self._dtypes = {v.name: v.dtype.numpy() for v in imp.graph.inputs}
        self._outputs = [v.name for v in imp.graph.outputs]
        self.has_cache = any(name.startswith("past_key_values.") for name in self._inputs)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        beside = path.with_name("answers.onnx")
        beside.write_bytes(proto.SerializeToString())
        self._session = onnxruntime.InferenceSession(str(beside), options, providers=["CPUExecutionProvider"])

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {self._names[n]: np.asarray(feed[n], self._dtypes[n]) for n in self._inputs}
        return dict(zip(self._outputs, self._session.run([self._names[n] for n in self._outputs], given), strict=True))


class _Upcast:
    def __init__(self, path: Path) -> None:
        self._model = ReferenceModel(path, threads=1)
        self.has_cache = self._model.layers > 0

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        past = {n: x for n, x in feed.items() if n.startswith("past")}
        return self._model.run(feed["input_ids"], past, feed["attention_mask"], feed["position_ids"])


def compare(path: Path, decoder: Decoder) -> Answers:
    """Compare a canonical decoder with the file it was made from, at several sizes and paddings."""
    proto = onnx.load(path, load_external_data=False)
    for node in proto.graph.node:
        for attr in node.attribute:
            if node.op_type == "MatMulNBits" and attr.name == "accuracy_level":
                attr.i = 0
    half = _is_half(proto)
    try:
        reference = _Upcast(path) if half else _File(path, proto)
    except Exception as error:  # onnxruntime has a dozen exception classes without a common base
        return Answers(0, reason=f"cannot load: {_line(error)}")
    try:
        canonical = CanonicalModel(decoder.model)
    except Exception as error:
        return Answers(1, float("inf"), f"the canonical model does not load: {_line(error)}")
    done, worst, where, reason = 0, 0.0, "", ""
    for name, feed, past in _cases(decoder.facts):
        if past and not reference.has_cache:
            continue
        try:
            expected = reference.run(feed)
        except Exception as error:
            reason = f"cannot run: {_line(error)}"
            continue
        done += 1
        try:
            actual = canonical.run(feed)
        except Exception as error:
            return Answers(done, float("inf"), f"{name}: the canonical model fails: {_line(error)}")
        found, output = _difference(actual, expected, feed["attention_mask"], past, decoder.facts)
        if not found <= 1 and not half and np.isfinite(found):
            moved = _moved(path, proto, feed, expected, past, decoder.facts)
            found = found / max(1.0, _MOVED * moved)
        if not found <= worst:
            worst, where = found, f"{name}: {output}"
    return Answers(done, worst, where, reason)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _is_half(proto: Any) -> bool:
    """Whether anything in the main graph or its functions is half precision."""
    graph = proto.graph
    if any(t.data_type in _HALF for t in graph.initializer):
        return True
    if any(v.type.tensor_type.elem_type in _HALF for v in (*graph.input, *graph.output, *graph.value_info)):
        return True
    nodes = [*graph.node, *(n for f in proto.functions for n in f.node)]
    attrs = [a for n in nodes for a in n.attribute]
    return any(a.t.data_type in _HALF or (a.name in ("to", "output_dtype") and a.i in _HALF) for a in attrs)


def _cases(facts: Any) -> Iterator[tuple[str, dict[str, np.ndarray], int]]:
    batch, longest = facts.batch or 1, facts.context
    sizes = [(min(6, longest), 0), (1, min(9, longest - 1)), (min(3, longest - 2), min(5, longest - 3))]
    sizes += [(1, longest - 1)]
    for new, past in sizes:
        if new > 0 and past >= 0:
            yield f"{new} new, {past} past", case(facts, batch, new, past), past
    if facts.padding != "none":
        side = "right" if facts.padding == "right" else "left"
        rows = facts.batch or 2
        new = min(6, longest)
        pads = (min(2, new - 1), *(0,) * (rows - 1))
        yield f"{new} new, padded on the {side}", case(facts, rows, new, 0, pads, side), 0


def _difference(
    actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], mask: np.ndarray, past: int, facts: Any
) -> tuple[float, str]:
    """(largest difference in units of the bound, name of the output) in rows of real tokens."""
    real = mask[:, past:].astype(bool)
    worst, where = 0.0, ""
    for name, reference in expected.items():
        a, e = actual[name], reference
        if a.shape != e.shape:
            return float("inf"), f"{name} has the shape {a.shape}, not {e.shape}"
        if name != "logits":  # [B, heads, past + new, dim] -> [B, new, heads, dim]
            a, e = (x[:, :, past:].transpose(0, 2, 1, 3) for x in (a, e))
        a, e = a[real].reshape(real.sum(), -1), e[real].reshape(real.sum(), -1)
        finite = np.isfinite(e).all(1)
        if (np.isfinite(a).all(1) != finite).any():
            return float("inf"), f"{name} is not finite in one of them alone"
        if not finite.any():
            continue
        scale = float(np.abs(e[finite]).max())
        bound = logit_bound(scale, max(facts.hidden, facts.ffn), facts.layers)
        apart = float(np.abs(a[finite].astype(np.float64) - e[finite]).max())
        found = apart / bound if bound > 0 else (float("inf") if apart > 0 else 0.0)  # all zeros must stay zeros
        if found > worst:
            worst, where = found, f"{name} by {found * bound:.3g} of {scale:.3g}"
    return worst, where


def _moved(
    path: Path, proto: Any, feed: dict[str, np.ndarray], expected: dict[str, np.ndarray], past: int, facts: Any
) -> float:
    """How far the file's own answer moves, in units of the bound, when its weights do by half a unit of float32."""
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    onnx.load_external_data_for_model(other, str(path.parent))
    rng = np.random.default_rng(5)
    for tensor in other.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            x = onnx.numpy_helper.to_array(tensor)
            if x.size > 1:
                x = (x * (1 + 2 * _UNIT * rng.choice([-1.0, 1.0], x.shape))).astype(np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(x, tensor.name))
    caches = {n: (x * (1 + 2 * _UNIT)).astype(np.float32) for n, x in feed.items() if n.startswith("past")}
    moved = _File(path, other).run({**feed, **caches})
    found, _ = _difference(moved, expected, feed["attention_mask"], past, facts)
    return found if np.isfinite(found) else 0.0


def accepted(path: Path, context: int) -> Decoder | str:
    """The decoder that the importer makes of a file, or its one line of refusal."""
    from passes.onnx import canonicalise

    try:
        return canonicalise(path, context)
    except UserError as error:
        return str(error)
