from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from requirements import only_where

from targets.boards import load_board
from targets.cpu import core, core_names
from targets.cpu.target import tvm_target
from targets.device import Core
from targets.errors import UserError


def llvm_features(target: Any) -> set[str]:
    from tvm.target import codegen

    return {str(name) for name in codegen.llvm_get_cpu_features(target)}


def test_the_cores_of_the_issue_are_there() -> None:
    assert {"cortex-a53", "cortex-a55", "cortex-a72", "cortex-a73", "cortex-a76", "cortex-a78", "cortex-x1"} <= set(
        core_names()
    )


def test_an_unknown_core_lists_the_known_ones() -> None:
    with pytest.raises(
        UserError, match="core 'cortex-a9' is not known; known cores: cortex-a510, cortex-a520, cortex-a53"
    ):
        core("cortex-a9")


@pytest.mark.parametrize("name", core_names())
def test_the_flags_agree_with_llvm(name: str) -> None:
    """LLVM's table of cores is another's reading of the same manuals."""
    described = core(name)
    known = llvm_features(tvm_target(described))
    assert described.has_dotprod == ("dotprod" in known)
    assert described.has_fp16 == ("fullfp16" in known)
    assert described.has_i8mm == ("i8mm" in known)
    assert "sve" not in known  # LLVM would use it for the cores that have it, and a kernel of Linux may hide it


@pytest.mark.parametrize("name", core_names())
def test_peak_rates_are_whole_vector_instructions(name: str) -> None:
    described = core(name)
    pipes = described.fp32_flops_per_cycle / (described.vector_bits / 32 * 2)  # FMLA 4S instructions a cycle
    assert pipes in (1, 2, 4)
    products = 32 if described.has_i8mm else 16 if described.has_dotprod else 8  # SMMLA, SDOT 16B, or SMLAL 8H
    assert described.int8_ops_per_cycle == pipes * products * 2


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        ({"llvm_cpu": "cortex-a53"}, "dotprod"),
        ({"llvm_cpu": "cortex-a55", "has_i8mm": True}, "i8mm"),
        ({"isa": "x86-64", "llvm_cpu": "skylake-avx512", "vector_bits": 512}, "avx512vnni"),
        ({"isa": "x86-64", "llvm_cpu": "haswell", "vector_bits": 256}, "avxvnni or avx512vl and avx512vnni"),
    ],
)
def test_dot_products_that_llvm_does_not_know_are_refused(changes: dict[str, Any], lacks: str) -> None:
    """LLVM would abort the process."""
    claimed = replace(core("cortex-a76"), llvm_features=(), **changes)
    with pytest.raises(UserError, match=f"^core cortex-a76: the board gives it int8 dot products, .* no {lacks}$"):
        tvm_target(claimed)
    tvm_target(replace(claimed, has_dotprod=False, has_i8mm=False))
    features = {"aarch64": ("+dotprod", "+i8mm"), "x86-64": ("+avx512vnni", "+avx512vl")}
    tvm_target(replace(claimed, llvm_features=features[claimed.isa]))


def test_the_target_of_a_cortex() -> None:
    target = tvm_target(core("cortex-a55"))
    assert target.attrs["mtriple"] == "aarch64-linux-gnu"
    assert target.attrs["mcpu"] == "cortex-a55"
    assert "+dotprod" in target.attrs["mattr"]
    assert "+dotprod" not in tvm_target(core("cortex-a53")).attrs["mattr"]


def test_the_target_of_the_host_has_only_what_the_machine_reports() -> None:
    import dataclasses

    from tvm.target import codegen

    host = load_board("host", measure=False).clusters[0].core
    only_where(host.llvm_cpu == "native", f"this machine is a known core, {host.name}; its target is not LLVM's guess")
    whole = tvm_target(host)
    assert whole.attrs["mcpu"] != "native"

    def known(target: Any) -> set[str]:
        return {str(name) for name in codegen.llvm_get_cpu_features(target)}

    # as if a virtual machine masked them: features that no other one needs
    hideable = [feature for feature in host.llvm_features if feature in ("+adx", "+movbe", "+crc", "+lse")]
    assert hideable
    for hidden in hideable:
        others = tuple(feature for feature in host.llvm_features if feature != hidden)
        masked: Core = dataclasses.replace(host, llvm_features=others)
        assert hidden[1:] in known(whole)
        assert hidden[1:] not in known(tvm_target(masked))


def test_a_core_unknown_to_llvm_is_refused() -> None:
    import dataclasses

    odd = dataclasses.replace(core("cortex-a55"), name="odd", llvm_cpu="cortex-a9999")
    with pytest.raises(UserError, match="core odd: the LLVM of this tvm does not know llvm_cpu 'cortex-a9999'"):
        tvm_target(odd)
