"""The signatures that the kernel makers of every backend share, one a kernel that passes/lower/operators.py asks for.

A maker takes the backend's tile first, then static sizes and attributes, and returns a PrimFunc. The PrimFunc's
parameters are the operator's arguments, then its outputs, then scratch buffers whose content is not read afterwards;
how many, and of which shapes, the PrimFunc itself says. The same arguments give the same PrimFunc.

Sizes: n rows are computed at once; `width` values are in a row; weights come in panels of `tile.panel` columns
(passes/lower/pack.py). `dtype`, `scale_dtype` and `zero_dtype` are the types in which weights are stored; a backend
that reads float16 from its bits gets uint16 buffers for it.
"""

from __future__ import annotations

from typing import Any

from targets.kernels.vector_math import GELU_CUBIC, GELU_SLOPE


class Makers:
    """Each method has the signature of the maker of its name; a backend has functions of these names in a table."""

    @staticmethod
    def linear(tile: Any, n: int, k: int, columns: int, dtype: str) -> Any:
        """(x[1, n, k], w, y[1, n, columns])."""

    @staticmethod
    def linear_nbits(
        tile: Any,
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
        """(x[1, n, k], q, scale, zero, y[1, n, columns]): one scale for `block` values, with `zeros` a zero point.

        With a `table` of code_tables.py 4-bit codes stand for its numbers, and there are no zero points.
        """

    @staticmethod
    def quantise_rows(tile: Any, n: int, width: int, dtype: str) -> Any:
        """(x[1, n, width], codes of `dtype`, scale[1, n, width / 32], total int32): activations as integers.

        The codes are [1, n, width], or [1, n, width / 4] of uint32, which holds four.
        """

    @staticmethod
    def linear_int(
        tile: Any,
        n: int,
        k: int,
        columns: int,
        bits: int,
        block: int,
        scale_dtype: str,
        zeros: bool,
        zero_dtype: str = "uint8",
    ) -> Any:
        """(codes, scale, total, q, scale, zero, y[1, n, columns]): linear_nbits of quantise_rows' k codes."""

    @staticmethod
    def embedding(tile: Any, n: int, vocab: int, width: int, dtype: str) -> Any:
        """(w, ids[1, n] int64, y[1, n, width])."""

    @staticmethod
    def embedding_nbits(
        tile: Any,
        n: int,
        vocab: int,
        width: int,
        bits: int,
        block: int,
        scale_dtype: str,
        zeros: bool,
        zero_dtype: str = "uint8",
    ) -> Any:
        """(q, scale, zero, ids[1, n] int64, y[1, n, width])."""

    @staticmethod
    def rms_norm(tile: Any, n: int, width: int, groups: int, eps: float) -> Any:
        """(x[1, n, width], w[width / groups], y)."""

    @staticmethod
    def add_rms_norm(tile: Any, n: int, width: int, eps: float) -> Any:
        """(x[1, n, width], r, w[width], s, y): s = x + r, y = rms_norm(s) * w."""

    @staticmethod
    def layer_norm(tile: Any, n: int, width: int, eps: float, groups: int = 1, own: bool = False) -> Any:
        """(x[1, n, width], w[width / groups], b, y); with `own` w and b are [width], a part's own."""

    @staticmethod
    def add(tile: Any, n: int, width: int) -> Any:
        """(a[1, n, width], b[1, n, width], y)."""

    @staticmethod
    def add_bias(tile: Any, n: int, width: int) -> Any:
        """(a[1, n, width], b[width], y)."""

    @staticmethod
    def silu_mul(tile: Any, n: int, width: int) -> Any:
        """(gate[1, n, width], up, y)."""

    @staticmethod
    def gelu_mul(
        tile: Any, n: int, width: int, tanh: bool, slope: float = GELU_SLOPE, cubic: float = GELU_CUBIC
    ) -> Any:
        """(gate[1, n, width], up, y); `tanh`, `slope`, `cubic`: which GELU (lanes_gelu)."""

    @staticmethod
    def gelu(tile: Any, n: int, width: int, tanh: bool, slope: float = GELU_SLOPE, cubic: float = GELU_CUBIC) -> Any:
        """(x[1, n, width], y)."""

    @staticmethod
    def relu(tile: Any, n: int, width: int) -> Any:
        """(x[1, n, width], y)."""

    @staticmethod
    def squared_relu(tile: Any, n: int, width: int) -> Any:
        """(x[1, n, width], y)."""

    @staticmethod
    def xielu(tile: Any, n: int, width: int, positive: float, negative: float, beta: float) -> Any:
        """(x[1, n, width], y)."""

    @staticmethod
    def clip(tile: Any, n: int, width: int, least: float, most: float) -> Any:
        """(x[1, n, width], y)."""

    @staticmethod
    def tanh(tile: Any, n: int, width: int) -> Any:
        """(x[1, n, width], y)."""

    @staticmethod
    def scale(tile: Any, n: int, width: int, factor: float) -> Any:
        """(x[1, n, width], y)."""

    @staticmethod
    def rope(
        tile: Any, n: int, heads: int, head_dim: int, rotary_dim: int, context: int, interleaved: bool = False
    ) -> Any:
        """(x[1, n, heads * head_dim], cos, sin[context, rotary_dim / 2], pos int64, y)."""

    @staticmethod
    def learned_positions(tile: Any, n: int, rows: int, width: int, dtype: str) -> Any:
        """(w[rows, width], ids[1, n] int64, pos int64, y[1, n, width]); ids are unread."""

    @staticmethod
    def attention_cached(
        tile: Any,
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
        """(q, k, v, keys, values, pos int64, y): appends k and v to the caches in place, then attends.

        `slopes` are ALiBi's, one a head: times (key - query) they are added to the scores.
        """

    @staticmethod
    def argmax(tile: Any, n: int, vocab: int) -> Any:
        """(logits[1, n, vocab], ids[1, n] int64); -1 for a row that is not finite."""

    @staticmethod
    def take_row(tile: Any, n: int, width: int) -> Any:
        """(x[1, n, width], row int64, y[1, 1, width])."""

    @staticmethod
    def take_columns(tile: Any, n: int, width: int, start: int, part: int) -> Any:
        """(x[1, n, width], y[1, n, part])."""

    @staticmethod
    def join_columns(tile: Any, n: int, width: int, other: int) -> Any:
        """(a[1, n, width], b[1, n, other], y[1, n, width + other])."""

    @staticmethod
    def scale_columns(tile: Any, n: int, width: int) -> Any:
        """(a[1, n, width], b[width], y)."""

    @staticmethod
    def altup_predict(tile: Any, n: int, width: int, streams: int) -> Any:
        """(x[1, n, width], c[1, n, streams^2], y); passes/onnx/rewrite/altup_functions.py has what it computes."""

    @staticmethod
    def altup_correct(tile: Any, n: int, width: int, streams: int, active: int) -> Any:
        """(x[1, n, width], a[1, n, width / streams], c[1, n, streams], y)."""

    @staticmethod
    def altup_add(tile: Any, n: int, width: int, streams: int, first: int) -> Any:
        """(x[1, n, width], a[1, n, width / streams], y)."""

    @staticmethod
    def match_magnitude(tile: Any, n: int, width: int, least: float) -> Any:
        """(x[1, n, width], r[1, n, width], y): y = x sqrt(mean(r^2)) / sqrt(max(mean(x^2), least))."""

    @staticmethod
    def gaussian_top_k(tile: Any, n: int, width: int, deviations: float) -> Any:
        """(x[1, n, width], y): y = max(x - mean - deviations * standard deviation, 0)."""

    @staticmethod
    def rope_rows(
        tile: Any, n: int, heads: int, head_dim: int, rotary_dim: int, context: int, interleaved: bool = False
    ) -> Any:
        """(x[1, n, heads * head_dim], cos, sin[context, rotary_dim / 2], pos[n] int64, y)."""

    @staticmethod
    def learned_positions_rows(tile: Any, n: int, rows: int, width: int, dtype: str) -> Any:
        """(w[rows, width], ids[1, n] int64, pos[n] int64, y[1, n, width]); ids are unread."""

    @staticmethod
    def attention_in_slot(
        tile: Any,
        n: int,
        slots: int,
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
        """(q, k, v, keys, values, slot int64, pos int64, y): attention_cached in one of `slots` slots of the caches.

        A backend needs it where a slot's part of a tensor is no tensor of its own (Backend.slot_views).
        """

    @staticmethod
    def attention_rows(
        tile: Any,
        n: int,
        slots: int,
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
        """(q, k, v, keys, values, slot[n] int64, pos[n] int64, y): attention_cached of rows of several sequences.

        The caches have `slots` slots; row t is at position pos[t] of slot[t].
        """


MAKERS = tuple(name for name in vars(Makers) if not name.startswith("_"))
