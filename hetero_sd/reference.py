"""The reference of `hetero-sd verify`: the ONNX file as the user gave it, in float32, run by onnxruntime unoptimised.

Nothing of the canonical form is used: the graph keeps the exporter's operators, weights of half precision are cast up,
block-quantised ones are used as they are with accuracy_level 0, activations that the file rounds to 8 bits are left as
they are (passes/onnx/rewrite/float_activations.py, drop_fake_quantisation.py), and onnxruntime's optimiser is off. Of
int8 activations it computes what they mean, in floats (passes/onnx/rewrite/round_activations.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from costmodel.format import FLOAT, INT8
from hetero_sd.early_exit import EarlyExit
from hetero_sd.reference_session import make_session
from hetero_sd.stored_kv import as_stored
from passes.analysis.count_work import count_work
from passes.onnx import canonicalise
from passes.onnx.load.load import load
from passes.onnx.pass_context import Importing, run_pass
from passes.onnx.quantise.recipe import Recipe
from passes.onnx.rewrite.cache_axes import cache_axes
from passes.onnx.rewrite.drop_fake_quantisation import drop_fake_quantisation
from passes.onnx.rewrite.exact_quantised import exact_quantised
from passes.onnx.rewrite.fake_quantise import fake_quantise
from passes.onnx.rewrite.find_head_dim import find_head_dim
from passes.onnx.rewrite.float_activations import float_activations
from passes.onnx.rewrite.normalise_io_names import normalise_io_names
from passes.onnx.rewrite.plain_inputs import plain_inputs
from passes.onnx.rewrite.plain_token_ids import plain_token_ids
from passes.onnx.rewrite.round_activations import round_activations
from passes.onnx.rewrite.unfuse_linear import unfuse_linear
from passes.onnx.rewrite.unstack_caches import unstack_caches
from passes.onnx.rewrite.upcast_to_float32 import upcast_to_float32
from targets.errors import UserError
from targets.kv_format import DEFAULT_KV

_CHUNK = 256  # tokens run at a time, so that intermediate results stay bounded
_AS_FLOATS = (
    unstack_caches,
    plain_inputs,
    cache_axes,
    normalise_io_names,
    unfuse_linear,
    upcast_to_float32,
    plain_token_ids,
    fake_quantise,
    drop_fake_quantisation,
    float_activations,
    find_head_dim,
    exact_quantised,
)


@dataclass
class Cache:
    """Keys and values of the tokens so far: past_key_values.{i}.key / .value, [batch, kv_heads, n, head_dim].

    An export without a cache is run on the whole text each time: `tokens` are those so far.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return next((int(a.shape[2]) for a in self.arrays.values()), len(self.tokens))


class ReferenceModel:
    """A decoder export in float32 on the CPU.

    Attributes:
        path: the ONNX file.
        layers: number of layers in the cache; 0: the export has no cache.
    """

    def __init__(
        self,
        path: Path,
        threads: int = 0,
        activations: str = FLOAT,
        recipe: Recipe | None = None,
        scales: dict[Any, Any] | None = None,
        kv: str = DEFAULT_KV,
        lean: bool = False,
    ) -> None:
        """Load the file.

        Args:
            path: the ONNX file.
            threads: of onnxruntime, 0: its own choice.
            activations: of block-quantised matrix multiplications.
            recipe: the formats that float weights get; what they stand for then is computed from the file.
            scales: those that were searched for the file before, which is added to; None knows of none.
            kv: the type to which keys and values are rounded when a token is in the cache; its own step has them as
                they are.
            lean: weights are in memory once; onnxruntime keeps a copy of most of them else, which is faster.

        Raises:
            UserError: not a readable decoder export, onnxruntime cannot run it on a CPU, or it has no cache to round.
        """
        self.path = path
        imp = Importing(load(path), context=1, recipe=recipe)
        imp.scales = imp.scales if scales is None else scales
        try:
            rounded = [round_activations] if activations == INT8 else []
            for run in (*_AS_FLOATS, *rounded):
                run_pass(run, imp)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        self.layers = imp.facts.layers
        if kv != DEFAULT_KV and not self.layers:
            raise UserError(
                f"{path}: an export without a cache cannot show what a KV cache in {kv} does; export with one"
            )
        self._kv_shape = (imp.facts.kv_heads, imp.facts.head_dim)
        self._dtypes = {v.name: v.dtype.numpy() for v in imp.graph.inputs}
        self._names = [v.name for v in imp.graph.outputs]
        self._kv = kv
        self._one_at_a_time = False
        self._session = make_session(imp.model, path, threads, lean)

    def rows(self, token_ids: Sequence[int], at_once: int) -> Iterator[np.ndarray]:
        """Logits of a text, of so many tokens at a time.

        Raises:
            UserError: as `forward`.
        """
        past = Cache()
        for start in range(0, len(token_ids), at_once):
            yield self.forward(token_ids[start : start + at_once], past)

    def forward(self, token_ids: Sequence[int], past: Cache | None = None) -> np.ndarray:
        """Logits float32 [n, vocab] of n tokens, each seeing those before it and `past`, which they are added to.

        Raises:
            UserError: no tokens, or onnxruntime cannot run the file.
        """
        cache = Cache() if past is None else past
        ids = np.asarray(token_ids, np.int64).reshape(-1)
        if not ids.size:
            raise UserError("there are no tokens to run the reference on")
        if not self.layers:
            cache.tokens += ids.tolist()
            return np.asarray(self.run(np.array([cache.tokens], np.int64))["logits"][0][-len(ids) :])
        logits, done = [], 0
        while done < len(ids):
            rounds = self._kv != DEFAULT_KV
            width = 1 if rounds or (self._one_at_a_time and cache.length) else _CHUNK
            chunk = ids[done : done + width]
            try:
                outputs = self.run(chunk[None], cache.arrays)
            except UserError:
                if self._one_at_a_time or not cache.length or len(chunk) == 1:
                    raise
                self._one_at_a_time = True  # some exports take several tokens only at the start of a text
                continue
            logits.append(outputs["logits"][0])
            past_names = {n: n.replace("present", "past_key_values") for n in outputs if n != "logits"}
            cache.arrays.update({name: as_stored(outputs[n], self._kv) for n, name in past_names.items()})
            done += len(chunk)
        return np.concatenate(logits)

    def run(
        self,
        input_ids: np.ndarray,
        past: dict[str, np.ndarray] | None = None,
        attention_mask: np.ndarray | None = None,
        position_ids: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """One run of the graph: all outputs by their normalised names.

        Args:
            input_ids: int64 [batch, n].
            past: past_key_values.{i}.key / .value, float32 [batch, kv_heads, p, head_dim]; empty: none before.
            attention_mask: int64 [batch, p + n]; None: all tokens are real.
            position_ids: int64 [batch, n]; None: p, p + 1, ...

        Raises:
            UserError: onnxruntime fails.
        """
        (batch, new), past = input_ids.shape, past or {}
        length = next((a.shape[2] for a in past.values()), 0)
        if attention_mask is None:
            attention_mask = np.ones((batch, length + new), np.int64)
        if position_ids is None:
            position_ids = np.broadcast_to(np.arange(length, length + new, dtype=np.int64), (batch, new))
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids, **past}
        heads, dim = self._kv_shape
        feed = {
            name: np.ascontiguousarray(given[name] if name in given else np.zeros((batch, heads, 0, dim)), dtype)
            for name, dtype in self._dtypes.items()
        }
        try:
            return dict(zip(self._names, self._session.run(None, {**feed, **self._session.fed}), strict=True))
        except Exception as error:  # onnxruntime has a dozen exception classes without a common base
            raise UserError(f"{self.path}: onnxruntime cannot run it: {' '.join(str(error).split())[:300]}") from error


class EarlyExitReference(ReferenceModel):
    """The first layers of an export with its head: of the canonical form, since an export says nothing of layers."""

    def __init__(self, path: Path, early: EarlyExit, context: int, recipe: Recipe | None = None) -> None:
        """Load the file, for texts of at most ``context`` tokens.

        Raises:
            UserError: as `canonicalise` and `EarlyExit.cut`; onnxruntime cannot run it on a CPU.
        """
        whole = canonicalise(path, context, recipe)
        decoder, _ = early.cut((whole, count_work(whole, path.name)))
        self.path, self.layers = path, decoder.facts.layers
        self._kv_shape = (decoder.facts.kv_heads, decoder.facts.head_dim)
        self._dtypes = {v.name: v.dtype.numpy() for v in decoder.model.graph.inputs}
        self._names = [v.name for v in decoder.model.graph.outputs]
        self._kv, self._one_at_a_time = DEFAULT_KV, False
        self._session = make_session(decoder.model, path)
