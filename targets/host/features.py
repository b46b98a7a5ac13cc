"""CPU flags: the kernel's names in /proc/cpuinfo and LLVM's names for the same instructions."""

from __future__ import annotations

# Only what a code generator can use; flags of privileged instructions and of tuning are left out.
X86_FLAGS = {  # LLVM feature: /proc/cpuinfo flag
    "sse3": "pni",
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "sse4a": "sse4a",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "fma4": "fma4",
    "xop": "xop",
    "tbm": "tbm",
    "f16c": "f16c",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "lzcnt": "abm",
    "popcnt": "popcnt",
    "movbe": "movbe",
    "adx": "adx",
    "cx16": "cx16",
    "aes": "aes",
    "vaes": "vaes",
    "pclmul": "pclmulqdq",
    "vpclmulqdq": "vpclmulqdq",
    "gfni": "gfni",
    "sha": "sha_ni",
    "rdrnd": "rdrand",
    "rdseed": "rdseed",
    "clwb": "clwb",
    "clflushopt": "clflushopt",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avx512vp2intersect": "avx512_vp2intersect",
    "avxvnni": "avx_vnni",
    "avxifma": "avx_ifma",
    "avxvnniint8": "avx_vnni_int8",
    "avxvnniint16": "avx_vnni_int16",
    "avxneconvert": "avx_ne_convert",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
    "amx-fp16": "amx_fp16",
}
AARCH64_FLAGS = {
    "neon": "asimd",
    "fullfp16": "asimdhp",
    "fp16fml": "asimdfhm",
    "dotprod": "asimddp",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "lse": "atomics",
    "rdm": "asimdrdm",
    "rcpc": "lrcpc",
    "crc": "crc32",
    "aes": "aes",
    "sha2": "sha2",
    "complxnum": "fcma",
    "jsconv": "jscvt",
}


def flag_names(isa: str) -> dict[str, str]:
    """LLVM feature -> /proc/cpuinfo flag of that instruction set (``x86-64`` or ``aarch64``)."""
    return X86_FLAGS if isa == "x86-64" else AARCH64_FLAGS


def present_features(isa: str, cpuinfo_flags: set[str]) -> tuple[str, ...]:
    """``+name`` for each LLVM feature whose flag the machine reports, sorted."""
    return tuple(sorted(f"+{llvm}" for llvm, flag in flag_names(isa).items() if flag in cpuinfo_flags))


def masked_features(isa: str, present: tuple[str, ...], implied: set[str]) -> tuple[str, ...]:
    """``-name`` for each feature that LLVM's core name implies and the machine does not report, sorted.

    A virtual machine may hide instructions that every physical core of that name has.
    """
    return tuple(sorted(f"-{name}" for name in implied & set(flag_names(isa)) if f"+{name}" not in present))
