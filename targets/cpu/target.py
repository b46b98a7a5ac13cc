"""A core as TVM's target; also for the x86-64 cores of the host, so that one function serves every CPU.

The features are spelled out instead of trusted to LLVM's table of cores, so the same board gives the same code.
"""

from __future__ import annotations

from typing import Any

from targets.cpu.dot import DOTS
from targets.cpu.tile import cpu_tile
from targets.device import Core
from targets.errors import UserError
from targets.host.features import masked_features

_TRIPLES = {"aarch64": "aarch64-linux-gnu", "x86-64": "x86_64-linux-gnu"}
_GENERAL = {("x86-64", 256): "x86-64-v3", ("x86-64", 512): "x86-64-v4"}  # cores that LLVM schedules for none in special
# Instructions of targets/cpu/dot.py: the features with which LLVM selects them, one set of these. It aborts without.
_NEEDED = {
    "sdot": [{"dotprod"}],
    "smmla": [{"dotprod", "i8mm"}],
    "vnni 256": [{"avxvnni"}, {"avx512vnni", "avx512vl"}],
    "vnni 512": [{"avx512vnni"}],
}


def tvm_target(core: Core) -> Any:
    """The ``tvm.target.Target`` for code that runs on this core.

    Raises:
        UserError: the LLVM inside this tvm does not know the core, or knows it without what the board says it has.
    """
    from tvm.target import Target, codegen

    triple = _TRIPLES[core.isa]
    target = Target(_native(core, triple) if core.llvm_cpu == "native" else _named(core, triple))
    known = {str(name) for name in codegen.llvm_get_cpu_features(target)}
    needed = _NEEDED.get(DOTS[cpu_tile(core).dot].instruction, [set()])
    if not any(features <= known for features in needed):
        lacking = " or ".join(" and ".join(sorted(features - known)) for features in needed)
        without = f"llvm_cpu {core.llvm_cpu!r} with its llvm_features has no {lacking}"
        raise UserError(f"core {core.name}: the board gives it int8 dot products, {without}")
    return target


def _named(core: Core, triple: str) -> dict[str, Any]:
    from tvm.target import codegen

    if not codegen.llvm_is_valid_cpu(core.llvm_cpu, triple):
        raise UserError(f"core {core.name}: the LLVM of this tvm does not know llvm_cpu {core.llvm_cpu!r} for {triple}")
    return {"kind": "llvm", "mtriple": triple, "mcpu": core.llvm_cpu, "mattr": list(core.llvm_features)}


def _native(core: Core, triple: str) -> dict[str, Any]:
    """This machine, less what it does not report (a virtual machine hides some), on x86-64 in a general order.

    LLVM's models of AMD's cores move all prefetches of a loop to its beginning, where they wait for each other and hold
    up the loads behind them: integer kernels of 4 rows took a sixth more time on Zen 5.
    """
    from tvm.target import Target, codegen

    cpu = str(codegen.llvm_get_system_cpu())
    if not codegen.llvm_is_valid_cpu(cpu, triple):
        raise UserError(
            f"core {core.name} is described as this machine's ({core.isa}), and this machine is another kind"
        )
    cpu = _GENERAL.get((core.isa, core.vector_bits), cpu)
    implied = {
        str(name) for name in codegen.llvm_get_cpu_features(Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu}))
    }
    features = [*core.llvm_features, *masked_features(core.isa, core.llvm_features, implied)]
    if core.vector_bits == 512:
        features.append("-prefer-256-bit")  # else LLVM halves the 512-bit vectors that the kernels are written in
    return {"kind": "llvm", "mtriple": triple, "mcpu": cpu, "mattr": features}
