"""The kernel makers of OpenCL by name, as lowering asks for them; their signatures: targets/kernels/signatures.py."""

from __future__ import annotations

from typing import Any

from targets.opencl.kernels.altup import altup_add, altup_correct, altup_predict
from targets.opencl.kernels.argmax import argmax
from targets.opencl.kernels.attention import attention_cached, attention_in_slot, attention_rows
from targets.opencl.kernels.elementwise import (
    add,
    add_bias,
    clip,
    gelu,
    gelu_mul,
    relu,
    scale,
    scale_columns,
    silu_mul,
    squared_relu,
    tanh,
    xielu,
)
from targets.opencl.kernels.embedding import embedding, embedding_nbits
from targets.opencl.kernels.linear import linear
from targets.opencl.kernels.linear_int import linear_int, quantise_rows
from targets.opencl.kernels.linear_nbits import linear_nbits
from targets.opencl.kernels.norm import add_rms_norm, layer_norm, rms_norm
from targets.opencl.kernels.rope import rope, rope_rows
from targets.opencl.kernels.row_statistics import gaussian_top_k, match_magnitude
from targets.opencl.kernels.take import (
    join_columns,
    learned_positions,
    learned_positions_rows,
    take_columns,
    take_row,
)

MAKERS: dict[str, Any] = {
    maker.__name__: maker
    for maker in (
        *(linear, linear_nbits, linear_int, quantise_rows, embedding, embedding_nbits),
        *(rms_norm, add_rms_norm, layer_norm),
        *(add, add_bias, silu_mul, gelu_mul, gelu, relu, squared_relu, xielu, clip, tanh, scale),
        *(rope, learned_positions, attention_cached, argmax, take_row, take_columns),
        *(altup_predict, altup_correct, altup_add, match_magnitude, gaussian_top_k, join_columns, scale_columns),
        *(rope_rows, learned_positions_rows, attention_rows, attention_in_slot),
    )
}
