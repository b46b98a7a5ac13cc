"""Products of four int8 values with four, added up: what a device has for it, and the same sum where it has nothing.

A kernel calls `hsd_dot(a, b, sum)`; what that is stands before the kernel's source and is decided where a driver builds
it. So one library runs everywhere, with the same bits: the sums are exact integers. The device must say that it has an
extension (the runtime then defines HSD_HAS_...) and its compiler, too: Oclgrind's defines names that the device lacks.
Products of codes are at most 127 * 128, so two of them fit 16 bits.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm.script import tirx as T

_CALL = "hsd_dot"
_ARM, _ARM_SUM = "cl_arm_integer_dot_product_int8", "cl_arm_integer_dot_product_accumulate_int8"
_KHRONOS = "cl_khr_integer_dot_product"
PRELUDE = f"""\
#if defined(HSD_HAS_{_ARM_SUM}) && defined({_ARM_SUM})
#pragma OPENCL EXTENSION {_ARM_SUM} : enable
#define {_CALL}(a, b, sum) arm_dot_acc(as_char4(a), as_char4(b), sum)
#elif defined(HSD_HAS_{_KHRONOS}) && defined({_KHRONOS})
#define {_CALL}(a, b, sum) ((sum) + dot_4x8packed_ss_int(a, b))
#elif defined(HSD_HAS_{_ARM}) && defined({_ARM})
#pragma OPENCL EXTENSION {_ARM} : enable
#define {_CALL}(a, b, sum) ((sum) + arm_dot(as_char4(a), as_char4(b)))
#else
int {_CALL}(uint a, uint b, int sum) {{
  short4 products = convert_short4(as_char4(a)) * convert_short4(as_char4(b));
  short2 pairs = products.lo + products.hi;
  return sum + pairs.x + pairs.y;
}}
#endif
"""


def dot(a: Any, b: Any, total: Any) -> Any:
    """`total` and the four products of the bytes of two uint32, as signed numbers; those of `b` are -127 to 127."""
    return T.call_pure_extern("int32", _CALL, a, b, total)


@tvm_ffi.register_global_func("tvm_callback_opencl_postproc", override=True)
def _with_prelude(source: str, target: Any) -> str:
    return PRELUDE + source if f"{_CALL}(" in source else source
