"""What an OpenCL device costs: launches, copies against shared buffers, times of our kernels, and the cold start.

    python benchmarks/opencl.py [--repeats 200] [--bundle DIR] [--json]

On PoCL the "GPU" is one core of this machine's CPU and the host has another (targets/opencl/pocl.py), so the numbers
show the runtime and the driver, not a Mali;
on a board the same command shows its GPU. The cold start compiles kernels, the
second process loads them from the program cache (PoCL's own cache is switched off). With a bundle compiled for the GPU,
both are timed to its first token.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SIZES = (4 << 10, 256 << 10, 4 << 20)  # bytes: token ids and logits, a layer's activations, a cache
ROWS, INNER, COLUMNS = 1, 1024, 1024
WIDTHS = (1, 2, 4, 5, 8, 16)  # rows computed together: one token, and what a verification has
K, N = 1024, 4096  # weights of a matrix multiplication
HEADS, KV_HEADS, HEAD_DIM, CONTEXT, PAST = 16, 4, 64, 1024, 512


def median_us(action: Callable[[], Any], repeats: int) -> float:
    """Median microseconds of one call, after three that are not counted."""
    times = []
    for i in range(repeats + 3):
        start = time.perf_counter()
        action()
        if i >= 3:
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def launches(device: Any, opencl: Any, repeats: int) -> dict[str, float]:
    """An empty kernel: the host's time to enqueue it, and the time until the host knows that it ran."""
    empty = hand_written("__kernel void empty(__global float* y) {}")
    y = new_tensor((16,), device)
    pointer = ctypes.c_void_p(y.data_ptr())

    def enqueue() -> None:
        for _ in range(100):
            empty(pointer, 1, 16)

    def enqueue_and_wait() -> None:
        empty(pointer, 1, 16)
        device.sync()

    enqueued_us = median_us(enqueue, max(3, repeats // 10)) / 100
    device.sync()
    waited_us = median_us(enqueue_and_wait, repeats)
    with opencl.profile() as commands:
        for _ in range(20):
            empty(pointer, 1, 16)
    on_device = statistics.median(command.seconds for command in commands) * 1e6
    return {"enqueue": enqueued_us, "enqueue and wait": waited_us, "on the device": on_device}


def hand_overs(device: Any, opencl: Any, repeats: int) -> dict[str, dict[str, float]]:
    """Microseconds for the host to read a tensor after the device: copied, or shared and handed over and back."""
    times: dict[str, dict[str, float]] = {}
    for size in SIZES:
        tensor = new_tensor((size // 4,), device)
        opencl.host_view(tensor)
        opencl.to_device(tensor)

        def share(tensor: Any = tensor) -> None:
            opencl.to_host(tensor, "read")
            opencl.to_device(tensor)

        times[f"{size >> 10} KiB"] = {
            "copy": median_us(tensor.numpy, repeats),
            "shared": median_us(share, repeats),
        }
    return times


def weights(opencl: Any, repeats: int) -> dict[str, float]:
    """Microseconds to give 64 MiB of the host to the device as a weight: shared where the driver shares it, copied."""
    memory = np.zeros((64 << 20) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    array = memory[start : start + (64 << 20)]
    times = {}
    for name, setting in (("as the driver can", "1"), ("copied", "0")):
        os.environ["HSD_OPENCL_IMPORT"] = setting
        times[name] = median_us(lambda: opencl.import_host(array, "weight"), max(3, repeats // 20))
    return times


def kernels(device: Any, opencl: Any, folder: Path, repeats: int) -> dict[str, dict[int, float]]:
    """Microseconds on the device of matrix multiplications and attention, by rows done together; the best repeat."""
    import tvm

    from targets.opencl.kernels.attention import attention_cached
    from targets.opencl.kernels.attention_parts import key_blocks, scratch_rows
    from targets.opencl.kernels.linear import linear
    from targets.opencl.kernels.linear_nbits import linear_nbits
    from targets.opencl.tile import GpuTile

    tile, rng = GpuTile(), np.random.default_rng(0)
    target = tvm.target.Target({"kind": "opencl", "device": "mali", "host": {"kind": "llvm"}})

    def tensor(array: Any) -> Any:
        bits = array.view(np.uint16) if array.dtype == np.float16 else array
        return tvm.runtime.tensor(np.ascontiguousarray(bits), device)

    def normal(*shape: int, dtype: str = "float32") -> Any:
        return tensor(rng.standard_normal(shape).astype(dtype))

    none = tensor(np.zeros((1, 1, 1), np.uint8))
    scale = tensor(rng.uniform(0.01, 0.1, (N // 16, K // 32, 16)).astype(np.float16))
    codes = {bits: tensor(rng.integers(0, 256, (N // 16, K, 2 * bits), np.uint8)) for bits in (4, 8)}
    weights = {dtype: normal(N // 16, K, 16, dtype=dtype) for dtype in ("float32", "float16")}
    caches = [normal(1, KV_HEADS, CONTEXT // 4, HEAD_DIM, 4), normal(1, KV_HEADS, CONTEXT, HEAD_DIM)]
    heads = (HEADS, KV_HEADS, HEAD_DIM, CONTEXT)

    def case(name: str, n: int) -> tuple[Any, list[Any]]:
        if name == "attention":
            rows = scratch_rows(n, HEADS, CONTEXT)
            qkv = [normal(1, n, count * HEAD_DIM) for count in (HEADS, KV_HEADS, KV_HEADS)]
            out = [normal(1, n, HEADS * HEAD_DIM), normal(rows, HEADS, CONTEXT)]
            scratch = normal(rows, HEADS, key_blocks(CONTEXT), 2)
            return attention_cached(tile, n, *heads, 0.125, 0, 0.0), [*qkv, *caches, PAST, *out, scratch]
        x, y = normal(1, n, K), normal(1, n, N)
        if name in weights:
            return linear(tile, n, K, N, name), [x, weights[name], y]
        bits = int(name.removeprefix("int"))
        return linear_nbits(tile, n, K, N, bits, 32, "float16", False), [x, codes[bits], scale, none, y]

    found: dict[str, dict[int, float]] = {}
    for name in (*weights, "int8", "int4", "attention"):
        for n in WIDTHS:
            func, arguments = case(name, n)
            path = folder / f"{name}_{n}.so"
            tvm.compile(func.with_attr("global_symbol", "main"), target=target).export_library(str(path))
            call = tvm.runtime.load_module(str(path))["main"]
            call(*arguments)
            device.sync()
            totals = []
            for _ in range(max(3, repeats // 20)):
                with opencl.profile() as commands:
                    call(*arguments)
                totals.append(sum(command.seconds for command in commands) * 1e6)
            found.setdefault(name, {})[n] = min(totals)
    return found


def first_results(what: Path) -> dict[str, float]:
    """Seconds to the first result of a process without and with program binaries from an earlier one.

    Args:
        what: a library, whose matrix multiplication is the result, or a bundle, whose first token is.
    """
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "HSD_OPENCL_CACHE": cache, "POCL_KERNEL_CACHE": "0", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, __file__, "--first-token" if what.is_dir() else "--first-result", str(what)]
        runs = [subprocess.run(command, env=env, capture_output=True, text=True, check=True) for _ in range(2)]
    return {name: float(run.stdout) for name, run in zip(("cold", "from the cache"), runs, strict=True)}


def first_result(library: Path) -> float:
    """Seconds from loading the module to its first result; imports are not counted."""
    import tvm
    from tvm.runtime.vm import VirtualMachine

    from targets.opencl import runtime as opencl_runtime

    opencl_runtime.load()
    device = tvm.opencl()
    arguments = [new_tensor(shape, device) for shape in ((ROWS, INNER), (INNER, COLUMNS))]
    start = time.perf_counter()
    vm = VirtualMachine(tvm.runtime.load_module(str(library)), [device, tvm.cpu()])
    vm["main"](*arguments).numpy()
    return time.perf_counter() - start


def first_token(bundle: Path) -> float:
    """Seconds from opening a bundle to the target's first token after a prompt of three; imports are not counted."""
    os.environ["TVM_USE_RUNTIME_LIB"] = "1"
    import tvm  # noqa: F401

    from hetero_sd.runtime.manifest import Bundle
    from hetero_sd.runtime.model.model import load_models

    start = time.perf_counter()
    load_models(Bundle(bundle)).target.extend([1, 2, 3], 0)
    return time.perf_counter() - start


def compile_library(folder: Path) -> Path:
    """Compile relu(x @ w) for Mali with TVM's own schedules."""
    import tvm
    import tvm.s_tir.dlight as dl
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((ROWS, INNER), "float32"))
    w = relax.Var("w", relax.TensorType((INNER, COLUMNS), "float32"))
    with builder.function("main", [x, w]):
        builder.emit_func_output(builder.emit(relax.op.nn.relu(relax.op.matmul(x, w))))
    target = tvm.target.Target({"kind": "opencl", "device": "mali", "host": {"kind": "llvm"}})
    with target:
        module = relax.get_pipeline("zero")(builder.get())
        schedules = [dl.gpu.GEMV(), dl.gpu.Matmul(), dl.gpu.Reduction(), dl.gpu.Fallback()]
        module = dl.ApplyDefaultSchedule(*schedules)(module)
    path = folder / "kernels.so"
    relax.build(module, target).export_library(str(path))
    return path


def hand_written(source: str) -> Any:
    """One kernel with one buffer, from TVM's serialized form of a module."""
    import struct

    import tvm_ffi

    def text(string: str) -> bytes:
        return struct.pack("<Q", len(string)) + string.encode()

    name, tags = source.split("(")[0].split()[-1], ["blockIdx.x", "threadIdx.x"]
    info = text(name) + struct.pack("<QBBHQ", 1, 3, 64, 1, len(tags)) + b"".join(map(text, tags))
    info += struct.pack("<Qi", 1, 0)
    code = text(f"// Function: {name}\n{source}\n")
    load = tvm_ffi.get_global_func("ffi.Module.load_from_bytes.opencl")
    return load(text("cl") + struct.pack("<Q", 1) + text(name) + info + code).get_function(name)


def new_tensor(shape: tuple[int, ...], device: Any) -> Any:
    """Uninitialised float32 on the device."""
    import tvm

    return tvm.runtime.empty(shape, "float32", device)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--bundle", type=Path, help="time the first token of this bundle, cold and from the cache")
    parser.add_argument("--first-result", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first-token", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if options.first_result is not None:
        print(first_result(options.first_result))
        return
    if options.first_token is not None:
        print(first_token(options.first_token))
        return

    import tvm

    from targets.opencl import interface as opencl
    from targets.opencl import runtime as opencl_runtime
    from targets.opencl.pocl import give_own_cores

    opencl_runtime.load()
    cores = give_own_cores()
    device = tvm.opencl()
    with tempfile.TemporaryDirectory() as folder:
        library = compile_library(Path(folder))
        result = {
            "device": opencl.devices()[0]["name"],
            "cores": {"device": cores.device, "host": cores.host},
            "launch_us": launches(device, opencl, options.repeats),
            "hand_over_us": hand_overs(device, opencl, options.repeats),
            "weight_us": weights(opencl, options.repeats),
            "kernel_us": kernels(device, opencl, Path(folder), options.repeats),
            ("first_token_s" if options.bundle else "first_result_s"): first_results(options.bundle or library),
        }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"device         {result['device']}; on PoCL its core is {cores.device}, the host's {cores.host}")
    for name, value in result["launch_us"].items():
        print(f"launch         {value:9.1f} us  {name}")
    for size, value in result["hand_over_us"].items():
        print(f"read back      {value['copy']:9.1f} us  {size} copied, {value['shared']:.1f} us shared")
    for name, value in result["weight_us"].items():
        print(f"weight         {value:9.1f} us  64 MiB {name}")
    for name, times in result["kernel_us"].items():
        what = f"{HEADS} heads of {HEAD_DIM}, {PAST} keys" if name == "attention" else f"{K} x {N} weights"
        print(f"{name:15s}{times[1]:9.1f} us  one row, {what}")
        more = ", ".join(f"{n} rows x{us / times[1]:.2f}" for n, us in times.items() if n > 1)
        print(f"                             {more}")
    for key, what in (("first_result_s", "first result"), ("first_token_s", "first token")):
        for name, value in result.get(key, {}).items():
            print(f"{what:12}   {value:9.2f} s   {name}")


if __name__ == "__main__":
    main()
