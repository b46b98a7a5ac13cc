"""Weights of linears, heads and embeddings get the panel layout their kernels stream.

The pass changes types only; `PackedWeight` says how the array is made, some panels at a time, when the bundle is
written: an embedding is a large part of a small model. A weight that embedding and head both read (tied) is stored
once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from passes.packed_codes import unpack_codes
from passes.place.partition import weights_of
from passes.relax import dialect as D
from passes.relax.rebuild import bindings, each_function, rebuild
from targets.backend import Tile

Array = npt.NDArray[Any]

_WEIGHT_ARGS = {
    "hsd.linear": (1,),
    "hsd.embedding": (0,),
    "hsd.linear_nbits": (1, 2, 3),
    "hsd.embedding_nbits": (0, 1, 2),
}
_PARTS = ("q", "scale", "zero")
_PIECE_VALUES = 1 << 24  # packed at once


@dataclass(frozen=True)
class PackedWeight:
    """How one parameter of the packed function is made from the tensor of the ONNX file.

    Attributes:
        name: parameter and tensor name.
        shape: packed shape.
        dtype: numpy dtype name; packing makes words, uint32, of quantised values and changes no other.
        part: (source array, columns) -> their panels; the columns begin with a panel.
        columns: of the matrix; of what has no panels, 1.
        panel: columns of a panel.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    part: Callable[[Array, slice], Array]
    columns: int = 1
    panel: int = 1

    def pack(self, source: Array) -> Array:
        """The packed array."""
        return self.part(source, slice(0, self.columns))

    def pieces(self, source: Array) -> Iterator[Array]:
        """Arrays whose bytes in a row are those of the packed one."""
        of_panel = max(1, int(np.prod(self.shape[1:], dtype=np.int64)))
        step = max(1, _PIECE_VALUES // of_panel) * self.panel
        for start in range(0, self.columns, step):
            yield self.part(source, slice(start, min(start + step, self.columns)))


def to_panels(w: Array, panel: int) -> Array:
    """[K, N] -> [ceil(N / panel), K, panel], columns past N zero."""
    k, n = w.shape
    blocks = -(-n // panel)
    out = np.zeros((blocks, k, panel), w.dtype)
    full = n // panel
    out[:full] = w[:, : full * panel].reshape(k, full, panel).transpose(1, 0, 2)
    if full < blocks:
        out[full, :, : n - full * panel] = w[:, full * panel :]
    return out


def swap_nibbles(q: Array, swap: bool = True) -> Array:
    """Bytes with the low four bits high and the high ones low, or as they are."""
    return q >> 4 | q << 4 if swap else q


def pack_quantised(q: Array, bits: int, k: int, panel: int) -> Array:
    """MatMulNBits' B [N, blocks, bytes] -> words [ceil(N / panel), ceil(K / steps), panel] of steps = 32 / bits values.

    A word has a column's next values of k. Of its bytes t = 0..3, lowest first, 8 bit: value t less 128 in two's
    complement; 4 bit: value t in the low and value t + 4 in the high nibble; 2 bit: value t + 4 p in bits 2 p and
    2 p + 1. What lies past K is not read.
    """
    steps = 32 // bits
    values = unpack_codes(q, bits, k)
    n, groups = len(values), -(-k // steps)
    padded = np.zeros((n, groups * steps), np.uint8)
    padded[:, :k] = values
    parts = padded.reshape(n, groups, steps // 4, 4)
    octets = parts[:, :, 0] ^ (128 if bits == 8 else 0)
    for part in range(1, 8 // bits):
        octets |= parts[:, :, part] << part * bits
    return to_panels(np.ascontiguousarray(octets).view("<u4")[..., 0].T, panel)


@tvm.transform.module_pass(opt_level=0, name="PackWeights")
class PackWeights:
    """Retype the weights of all functions to panels; `packed` has every weight parameter afterwards, once."""

    def __init__(self, tile: Tile):
        self.panel = tile.panel
        self.packed: list[PackedWeight] = []

    def transform_module(self, mod: Any, ctx: Any) -> Any:
        """Rewrite all functions."""
        self.packed = []
        return each_function(mod, self._rewrite)

    def _rewrite(self, func: Any) -> Any:
        uses: dict[Any, tuple[str, Any]] = {}
        for b in bindings(func):
            name = D.op_name(b.value)
            for part, i in zip(_PARTS, _WEIGHT_ARGS.get(name, ()), strict=False):
                if isinstance(b.value.args[i], relax.Var):
                    kind = part if name.endswith("nbits") else "w"
                    self._agree(uses, b.value.args[i], kind, b.value.attrs)
        replaced = {}
        known = {packed.name for packed in self.packed}
        for p in weights_of(func):
            if p in uses:
                packed = self._packed(p, *uses[p])
                replaced[p] = relax.Var(p.name, D.tensor(packed.shape, packed.dtype))
            else:
                shape = tuple(int(d) for d in D.shape_of(p))
                packed = PackedWeight(p.name, shape, str(p.ty.dtype), lambda w, _: np.array(w))
            if p.name not in known:
                self.packed.append(packed)

        def packed_layout(bb: Any, call: Any) -> Any:
            return relax.Call(call.op, call.args, {**dict(call.attrs.items()), "layout": "panels"})

        table = dict.fromkeys(_WEIGHT_ARGS, packed_layout)
        return rebuild(func, [replaced.get(p, p) for p in func.params], replaced, table)

    @staticmethod
    def _agree(uses: dict[Any, tuple[str, Any]], var: Any, kind: str, attrs: Any) -> None:
        seen = uses.setdefault(var, (kind, attrs))
        same = seen[0] == kind and str(seen[1]["layout"]) == str(attrs["layout"])
        assert same, f"{var.name} is read in two layouts"

    def _packed(self, var: Any, kind: str, attrs: Any) -> PackedWeight:
        panel = self.panel
        shape = [int(d) for d in D.shape_of(var)]
        dtype, name = str(var.ty.dtype), var.name
        if kind == "w":
            transposed = str(attrs["layout"]) == "NK"
            k, n = (shape[1], shape[0]) if transposed else (shape[0], shape[1])
            packed = (-(-n // panel), k, panel)
            return PackedWeight(
                name, packed, dtype, lambda w, some: to_panels(w[some].T if transposed else w[:, some], panel), n, panel
            )
        bits, block = int(attrs["bits"]), int(attrs["block"])
        n = int(attrs["columns"] if "columns" in attrs else attrs["vocab"])
        k = int(attrs["k"] if "k" in attrs else attrs["width"])
        blocks, k_blocks = -(-n // panel), -(-k // block)
        if kind == "q":
            words = (blocks, -(-k * bits // 32), panel)
            high_first = "table" in attrs  # as MatMulBnb4 stores the codes of a byte
            return PackedWeight(
                name,
                words,
                "uint32",
                lambda q, some: pack_quantised(swap_nibbles(q.reshape(n, -1)[some], high_first), bits, k, panel),
                n,
                panel,
            )
        packed = (blocks, k_blocks, panel)
        if kind == "scale" or dtype != "uint8":  # zero points of HQQ are floats, stored as the scales are
            return PackedWeight(
                name, packed, dtype, lambda s, some: to_panels(s.reshape(n, k_blocks)[some].T, panel), n, panel
            )
        return PackedWeight(
            name,
            packed,
            dtype,
            lambda z, some: to_panels(unpack_codes(z.reshape(n, -1)[some], bits, k_blocks).T, panel),
            n,
            panel,
        )
