"""A third kind of processor for tests: each of its kernels calls a function of numpy_kernels.py.

Everything it needs is here and there, and the line that a test adds to targets.backend.REGISTRY. Its tile differs from
those of the other kinds, so weights and caches have another layout, and values cross to it and back by copies.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy_kernels

from targets.backend import Backend
from targets.device import Core, Gpu
from targets.errors import UserError

WHERE = "numpy_backend:NumpyBackend"
CALLS: Counter[str] = Counter()  # by kernel, in this process
TYPES = ("float32", "float16")


@dataclass(frozen=True)
class Tile:
    """Half of the CPU's smallest panel, and keys by twos."""

    panel: int = 8
    lanes: int = 2


class NumpyBackend(Backend):
    """The host's numpy, taken for a processor of its own."""

    name = "test"

    def tile(self, core: Core, gpu: Gpu | None) -> Tile:
        return Tile()

    def makers(self) -> Mapping[str, Any]:
        return {name: getattr(_Makers, name) for name in vars(_Makers) if not name.startswith("_")}

    def weight_type(self, dtype: str) -> str:
        if dtype not in TYPES:
            raise UserError(f"{dtype} weights have no numpy kernel")
        return dtype

    def tvm_target(self, core: Core) -> Any:
        from targets.cpu.target import tvm_target

        return tvm_target(core)

    def open(self, runtime: Path | None) -> Any:
        import tvm

        for name, body in vars(numpy_kernels).items():
            if callable(body) and not name.startswith("_"):
                tvm.register_global_func(f"{__name__}.{name}", _with_arrays(name), override=True)
        return tvm.cpu()

    def vm_devices(self, device: Any) -> Any:
        return device


def _with_arrays(name: str) -> Any:
    """A function of tensors that calls the kernel of that name, looked up anew, with numpy's views of them."""

    def call(*arguments: Any) -> None:
        CALLS[name] += 1
        getattr(numpy_kernels, name)(*(_view(a) if hasattr(a, "data_ptr") else a for a in arguments))

    return call


def _view(tensor: Any) -> Any:
    """The memory of a tensor that a kernel only borrows, which numpy.from_dlpack cannot take."""
    dtype = np.dtype(str(tensor.dtype))
    memory = (ctypes.c_char * (int(np.prod(tensor.shape)) * dtype.itemsize)).from_address(tensor.data_ptr())
    return np.frombuffer(memory, dtype).reshape(tensor.shape)


def _kernel(name: str, inputs: list[Any], outputs: list[Any], *attributes: float) -> Any:
    """The PrimFunc that calls a kernel.

    Args:
        name: the kernel's.
        inputs: of each the shape, float32; or the shape and type; or None for a position.
        outputs: of each the shape, float32; or the shape and type.
        attributes: numbers that come last.
    """
    from tvm import te, tirx

    def described(given: Any) -> tuple[tuple[int, ...], str]:
        return given if isinstance(given[-1], str) else (given, "float32")

    given = [
        tirx.Var(f"p{i}", "int64") if x is None else te.placeholder(*described(x), name=f"x{i}")
        for i, x in enumerate(inputs)
    ]
    numbers = [tirx.const(a, "float64" if isinstance(a, float) else "int64") for a in attributes]

    def call(read: list[Any], written: list[Any]) -> Any:
        buffers = iter(read)
        arguments = [x if inputs[i] is None else next(buffers) for i, x in enumerate(given)]
        return tirx.call_packed(f"{__name__}.{name}", *arguments, *written, *numbers)

    shapes, types = zip(*(described(y) for y in outputs), strict=True)
    tensors = [x for x, what in zip(given, inputs, strict=True) if what is not None]
    made = te.extern(list(shapes), tensors, call, name=name, dtype=list(types))
    return te.create_prim_func([*given, *(made if isinstance(made, list) else [made])])


class _Makers:
    """Of the kernels of the tests' decoders, and no others: a norm with means, GELU, tanh, scale, learned positions.

    Nor have rotations of a part of a head, or of neighbours, and attention with a window, a softcap or slopes.
    """

    @staticmethod
    def linear(tile: Tile, n: int, k: int, columns: int, dtype: str) -> Any:
        w = (-(-columns // tile.panel), k, tile.panel)
        return _kernel("linear", [(1, n, k), (w, dtype)], [(1, n, columns)], columns)

    @staticmethod
    def linear_nbits(
        tile: Tile,
        n: int,
        k: int,
        columns: int,
        bits: int,
        block: int,
        scale_dtype: str,
        zeros: bool,
        zero_dtype: str = "uint8",
        table: str = "",
    ) -> Any:
        assert not table
        weight = _quantised(tile, k, columns, bits, block, scale_dtype, zeros, zero_dtype)
        return _kernel("linear_nbits", [(1, n, k), *weight], [(1, n, columns)], columns, bits, block, int(zeros))

    @staticmethod
    def embedding(tile: Tile, n: int, vocab: int, width: int, dtype: str) -> Any:
        w = (-(-vocab // tile.panel), width, tile.panel)
        return _kernel("embedding", [(w, dtype), ((1, n), "int64")], [(1, n, width)], vocab)

    @staticmethod
    def embedding_nbits(
        tile: Tile,
        n: int,
        vocab: int,
        width: int,
        bits: int,
        block: int,
        scale_dtype: str,
        zeros: bool,
        zero_dtype: str = "uint8",
    ) -> Any:
        weight = _quantised(tile, width, vocab, bits, block, scale_dtype, zeros, zero_dtype)
        sizes = (vocab, bits, block, int(zeros))
        return _kernel("embedding_nbits", [*weight, ((1, n), "int64")], [(1, n, width)], *sizes)

    @staticmethod
    def rms_norm(tile: Tile, n: int, width: int, groups: int, eps: float) -> Any:
        return _kernel("rms_norm", [(1, n, width), (width // groups,)], [(1, n, width)], groups, eps)

    @staticmethod
    def add_rms_norm(tile: Tile, n: int, width: int, eps: float) -> Any:
        row = (1, n, width)
        return _kernel("add_rms_norm", [row, row, (width,)], [row, row], eps)

    @staticmethod
    def add(tile: Tile, n: int, width: int) -> Any:
        return _kernel("add", [(1, n, width), (1, n, width)], [(1, n, width)])

    @staticmethod
    def add_bias(tile: Tile, n: int, width: int) -> Any:
        return _kernel("add", [(1, n, width), (width,)], [(1, n, width)])

    @staticmethod
    def silu_mul(tile: Tile, n: int, width: int) -> Any:
        return _kernel("silu_mul", [(1, n, width), (1, n, width)], [(1, n, width)])

    @staticmethod
    def rope(
        tile: Tile, n: int, heads: int, head_dim: int, rotary_dim: int, context: int, interleaved: bool = False
    ) -> Any:
        assert rotary_dim == head_dim
        assert not interleaved
        row, table = (1, n, heads * head_dim), (context, rotary_dim // 2)
        return _kernel("rope", [row, table, table, None], [row], heads)

    @staticmethod
    def attention_cached(
        tile: Tile,
        n: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        context: int,
        scale: float,
        window: int,
        softcap: float,
        cache: str = "float32",
        slopes: tuple[float, ...] = (),
    ) -> Any:
        assert not window
        assert not slopes
        assert not softcap
        assert cache == "float32"
        q, kv = (1, n, heads * head_dim), (1, n, kv_heads * head_dim)
        keys = (1, kv_heads, context // tile.lanes, head_dim, tile.lanes)
        values = (1, kv_heads, context, head_dim)
        return _kernel("attention_cached", [q, kv, kv, keys, values, None], [q], heads, scale)

    @staticmethod
    def argmax(tile: Tile, n: int, vocab: int) -> Any:
        return _kernel("argmax", [(1, n, vocab)], [((1, n), "int64"), (n,)])  # the last is scratch

    @staticmethod
    def take_row(tile: Tile, n: int, width: int) -> Any:
        return _kernel("take_row", [(1, n, width), None], [(1, 1, width)])

    @staticmethod
    def take_columns(tile: Tile, n: int, width: int, start: int, part: int) -> Any:
        return _kernel("take_columns", [(1, n, width)], [(1, n, part)], start)


def _quantised(
    tile: Tile, k: int, columns: int, bits: int, block: int, scale_dtype: str, zeros: bool, zero_dtype: str
) -> list[Any]:
    """Shapes and types of values, scales and zero points."""
    panels, blocks = -(-columns // tile.panel), -(-k // block)
    zero = (panels, blocks, tile.panel) if zeros else (1, 1, 1)
    stored = (panels, -(-k * bits // 32), tile.panel)
    return [(stored, "uint32"), ((panels, blocks, tile.panel), scale_dtype), (zero, zero_dtype)]
