"""A pair of 146 M and 17 M parameters whose drafts are accepted as a trained pair's are: the example's, widened.

    python benchmarks/widened_pair.py FOLDER

Net2Net (Chen et al. 2016, arXiv 1511.05641): every unit of hidden state, heads and FFN is there several times, and what
reads them shares its weight among the copies. Each weight is shared by shares of its own, drawn at random, so no two
columns of a matrix are alike and nothing can be left out; layers are added whose outputs are small and random. All
matrices are full, and are computed. What the models say is what the trained pair says, up to rounding and to what the
added layers change; how much is accepted is measured (``hetero-sd acceptance``), on sentences that were not trained on.

The target has 6 trained layers and 4 added ones, 4 times as wide: 146 M parameters; the drafter 2 and 1, 4 times: 17 M.
The vocabulary is the example's, 2048, so the head's share of the work is smaller than in most models of that size.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from passes.synthetic import LlamaShape, write_llama  # noqa: E402

PAIR = ROOT / "examples" / "translation"
TRAINED = {
    "target": LlamaShape(layers=6, hidden=256, heads=8, kv_heads=4, ffn=896, vocab=2048, head_width=32),
    "draft": LlamaShape(layers=2, hidden=160, heads=4, kv_heads=2, ffn=512, vocab=2048, head_width=32),
}
COPIES, ADDED = 4, {"target": 4, "draft": 1}
_SPREAD = 0.5  # standard deviation of a copy's share, over the mean share
_ADDED_SCALE = 0.02  # of the outputs of an added layer, over those of random weights
_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")  # of a layer, in the order of the file
Weights = dict[str, np.ndarray]


def trained(path: Path, layers: int) -> Weights:
    """The weights of a model of the example: those of a layer as "0.q", and "embed", "norm"; matrices [in, out]."""
    import onnx

    graph = onnx.load(path).graph
    tensors = {t.name: onnx.numpy_helper.to_array(t).astype(np.float32) for t in graph.initializer if t.dims}
    matrices = [tensors[n.input[1]] for n in graph.node if n.op_type == "MatMul" and n.input[1] in tensors]
    names = [f"{i}.{name}" for i in range(layers) for name in _MATRICES]
    found = dict(zip(names, matrices, strict=True))
    for i in range(layers):
        for name, own in (("input_norm", "input_layernorm"), ("post_norm", "post_attention_layernorm")):
            found[f"{i}.{name}"] = tensors[f"model.model.layers.{i}.{own}.weight"]
    return {**found, "embed": tensors["model.lm_head.weight"], "norm": tensors["model.model.norm.weight"]}


class Widened:
    """A trained model with copies of each unit and with more layers; gives the weights of its file by name."""

    def __init__(self, weights: Weights, shape: LlamaShape, copies: int, added: int, seed: int) -> None:
        """Take the weights of a model of that shape."""
        self._weights, self._trained, self._copies, self._seed = weights, shape.layers, copies, seed
        sizes = {name: copies * getattr(shape, name) for name in ("hidden", "heads", "kv_heads", "ffn")}
        self.shape = replace(shape, layers=shape.layers + added, **sizes)

    def __call__(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor as passes/synthetic.py names it."""
        copies, weights, (head, _, rest) = self._copies, self._weights, name.partition(".")
        if name == "embed.weight":
            return np.tile(weights["embed"], (1, copies))
        if name == "head.weight":
            return self._shared(name, weights["embed"].T, 1)
        if name == "final_norm":
            return np.tile(weights["norm"], copies)
        assert head == "layers"
        number, _, kind = rest.removesuffix(".weight").partition(".")
        layer = int(number)
        if kind == "next_norm":
            layer, kind = layer + 1, "input_norm"
        if layer >= self._trained:
            return self._added(name, kind, shape)
        if kind == "qkv":
            return np.concatenate([self._shared(name + part, weights[f"{layer}.{part}"]) for part in "qkv"], axis=1)
        own = weights[f"{layer}.{kind}"]
        return np.tile(own, copies) if own.ndim == 1 else self._shared(name, own)

    def _shared(self, name: str, matrix: np.ndarray, outputs: int | None = None) -> np.ndarray:
        """A matrix for inputs and outputs that are there several times: shares of the inputs' copies sum to one."""
        outputs = self._copies if outputs is None else outputs
        rows, columns = matrix.shape
        noise = self._rng(name).standard_normal((self._copies, rows, outputs * columns), np.float32)
        shares = (1 + _SPREAD * (noise - noise.mean(axis=0))) / self._copies
        return (shares * np.tile(matrix, (1, outputs))).reshape(self._copies * rows, outputs * columns)

    def _added(self, name: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        scale = shape[0] ** -0.5 * (_ADDED_SCALE if kind in ("o", "down") else 1.0)
        return scale * self._rng(name).standard_normal(shape, np.float32)

    def _rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, zlib.crc32(name.encode())])


def write_widened_pair(folder: Path, dtype: str = "float16", copies: int = COPIES, seed: int = 5) -> dict[str, int]:
    """Write target.onnx and draft.onnx with the example's tokenizer; their numbers of parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for which, shape in TRAINED.items():
        weights = trained(PAIR / which / "model.onnx", shape.layers)
        wide = Widened(weights, shape, copies, ADDED[which], seed)
        write_llama(folder / f"{which}.onnx", wide.shape, dtype, given=wide)
        sizes[which] = wide.shape.parameters
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):  # the last one: all is there
        shutil.copy(PAIR / name, folder / name)
    return sizes


def main() -> int:
    """Write the pair."""
    parser = argparse.ArgumentParser(description="write the example pair, widened to 146 M and 17 M parameters")
    parser.add_argument("folder", type=Path)
    for which, count in write_widened_pair(parser.parse_args().folder).items():
        print(f"{which}: {count / 1e6:.1f} M parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
