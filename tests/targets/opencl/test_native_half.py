"""Half arithmetic, which no driver here has: a compiler of OpenCL C takes its code, and only boards that ask get it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from requirements import need_program

from targets.boards import load_board
from targets.errors import UserError
from targets.opencl.tile import GpuTile, gpu_tile
from targets.read_board import board_from_json

TILE = GpuTile(native_half=True)


@pytest.fixture(scope="module")
def spir64() -> Any:
    """Compiles OpenCL C for spir64; returns what the compiler says."""
    clang = need_program("clang", "clang-14")
    half = ["-Xclang", "-cl-ext=+cl_khr_fp16"]
    options = [
        "-x",
        "cl",
        "-cl-std=CL1.2",
        *half,
        "-Xclang",
        "-finclude-default-header",
        "-target",
        "spir64",
        "-Werror",
    ]

    def compile_it(source: str, folder: Path) -> str:
        (folder / "k.cl").write_text(source)
        command = [clang, *options, "-emit-llvm", "-c", str(folder / "k.cl"), "-o", str(folder / "k.bc")]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stderr

    return compile_it


def source(func: Any) -> str:
    import tvm

    target = tvm.target.Target({"kind": "opencl", "device": "mali", "host": {"kind": "llvm"}})
    built = tvm.compile(func.with_attr("global_symbol", "main"), target=target)
    return "".join(str(m.inspect_source()) for m in built.mod.imports)


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("kind", ["float16", "int8", "int4"])
def test_it_compiles_for_spir64(spir64: Any, tmp_path: Path, n: int, kind: str) -> None:
    from targets.opencl.kernels.linear import linear
    from targets.opencl.kernels.linear_nbits import linear_nbits

    if kind == "float16":
        func, same = linear(TILE, n, 64, 50, kind), linear(GpuTile(), n, 64, 50, kind)
    else:
        func = linear_nbits(TILE, n, 64, 50, int(kind[3:]), 32, "float16", True)
        same = linear_nbits(GpuTile(), n, 64, 50, int(kind[3:]), 32, "float16", True)
    text = source(func)
    assert "#pragma OPENCL EXTENSION cl_khr_fp16 : enable" in text
    assert "(const __global half*)" in text
    assert "convert_half" in text or kind == "float16"
    assert "fma(((float" in text  # sums stay float32
    assert "vload_half" not in text
    assert spir64(text, tmp_path) == ""
    assert "error" in spir64(text.replace("__global half*", "__global hallf*"), tmp_path)  # the compiler looks
    plain = source(same)
    assert "cl_khr_fp16" not in plain
    assert "vload_half" in plain
    assert spir64(plain, tmp_path) == ""


def test_the_board_decides() -> None:
    board = load_board("rk3588")
    assert board.gpu is not None
    assert not gpu_tile(board.gpu).native_half
    data = board.to_json()
    assert "native_half" not in data["gpu"]
    data["gpu"]["native_half"] = {"value": True, "kind": "measured", "source": "hetero-sd doctor on this board"}
    stated = board_from_json(data)
    assert stated.gpu is not None
    assert gpu_tile(stated.gpu) == replace(gpu_tile(board.gpu), native_half=True)
    assert board_from_json(stated.to_json()) == stated
    data["gpu"]["has_fp16"]["value"], data["gpu"]["fp16_gflops"]["value"] = False, 0.0
    with pytest.raises(UserError, match=r"native_half needs gpu\.has_fp16"):
        board_from_json(data)
