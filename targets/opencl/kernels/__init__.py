"""TIR kernels for OpenCL: a work-item owns its outputs, so nothing is shared and no local memory is used.

They keep the promises of the CPU kernels: one order of reduction for every number of rows, explicit fused
multiply-add (the runtime switches contraction off), weights read once and in order from the same panels.
Float16 is storage: its bits travel as uint16 and are read with vload_half, which needs no extension. Where the tile
says native_half, matrix multiplications load it as half and unpack whole numbers in half arithmetic, which is exact;
sums stay float32.

A PrimFunc may hold several kernels; TVM enqueues them in order. What one leaves for the next are scratch outputs, so
that their memory is planned with everything else.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx.op import register_intrin_lowering

from targets.kernels.code_tables import code_bits

register_intrin_lowering("tirx.fma", "opencl", f=lambda call: tirx.call_pure_extern(call.ty.dtype, "fma", *call.args))


def storage(dtype: str) -> str:
    """The type of a buffer of `dtype` inside a kernel: float16 travels as its bits."""
    return "uint16" if dtype == "float16" else dtype


def load_half(buffer: Any, *index: Any, lanes: int = 1) -> Any:
    """`lanes` float16 values from `index` on, as float32."""
    if lanes == 1:
        return T.call_pure_extern("float32", "vload_half", 0, _half_pointer(buffer, index))
    return T.call_pure_extern(f"float32x{lanes}", f"vload_half{lanes}", 0, _half_pointer(buffer, index))


def store_half(value: Any, buffer: Any, *index: Any) -> Any:
    """A call that stores a float32 as float16, rounded to the nearest, halfway to even."""
    pointer = T.call_pure_extern("int32", "(__global half*)", T.address_of(buffer[index]))
    return T.call_extern("void", "vstore_half_rte", value, 0, pointer)


def load_native_half(buffer: Any, *index: Any, lanes: int) -> Any:
    """`lanes` (more than one) float16 values from `index` on as they are, for devices with cl_khr_fp16."""
    return T.call_pure_extern(f"float16x{lanes}", f"vload{lanes}", 0, _half_pointer(buffer, index))


def table_number(code: Any, table: str) -> Any:
    """The float32 number that a code, an int32 expression, stands for (targets/kernels/code_tables.py)."""
    return T.call_pure_extern("float32", "as_float", code_bits(code, table)) if table else T.float32(0)


def _half_pointer(buffer: Any, index: Any) -> Any:
    # The cast is written as a call, "(const __global half*)(&w[i])"; its TIR type is never used.
    return T.call_pure_extern("int32", "(const __global half*)", T.address_of(buffer[index]))
