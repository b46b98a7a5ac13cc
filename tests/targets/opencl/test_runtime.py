from __future__ import annotations

import ctypes
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heap import heap_bytes
from requirements import only_where

from costmodel.schema.measured import GpuDevice
from targets.opencl.runtime import OpenCLError

pytestmark = pytest.mark.usefixtures("settled")

POINTER, INT64, FLOAT32 = (3, 64), (0, 64), (2, 32)
SCALE = (
    [POINTER, POINTER, FLOAT32],
    ["blockIdx.x", "threadIdx.x"],
    "__kernel void scale(__global float* y, __global const float* x, float by) {\n"
    "  y[get_global_id(0)] = x[get_global_id(0)] * by;\n}",
)


@pytest.fixture
def device(opencl: Any) -> Any:
    import tvm

    return tvm.opencl()


@pytest.fixture
def vm(library: Path, device: Any) -> Any:
    import tvm
    from tvm.runtime.vm import VirtualMachine

    return VirtualMachine(tvm.runtime.load_module(str(library)), [device, tvm.cpu()])


def tensor(array: np.ndarray, device: Any) -> Any:
    import tvm

    return tvm.runtime.tensor(array, device)


def data_pointer(tensor: Any) -> Any:
    """The kernel argument of a tensor, as TVM's host code passes it."""
    return ctypes.c_void_p(tensor.data_ptr())


def inputs(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, 64)).astype("float32"), rng.standard_normal((64, 32)).astype("float32")


def relu_sum(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wanted = np.maximum(x @ w, 0)
    return wanted, wanted.sum(1)


def close(got: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.allclose(got, wanted, rtol=1e-5, atol=1e-4))


@pytest.mark.parametrize("rows", [1, 2, 7, 33, 64])
def test_compiled_module_equals_numpy(vm: Any, device: Any, rows: int) -> None:
    x, w = inputs(rows)
    y, z = vm["main"](tensor(x, device), tensor(w, device))
    for got, wanted in zip((y.numpy(), z.numpy()), relu_sum(x, w), strict=True):
        assert close(got, wanted)
    assert not close(y.numpy(), relu_sum(x, w * 1.01)[0])


def test_device_facts(opencl: Any, device: Any) -> None:
    facts = opencl.devices()[0]
    assert device.exist
    assert device.device_name == facts["name"]
    assert device.max_threads_per_block == facts["max_work_group"] >= 1
    assert facts["version"].startswith("OpenCL ")
    assert facts["type"] in ("gpu", "accelerator", "cpu")
    assert facts["max_alloc_bytes"] >= 64 << 20
    said = GpuDevice.of(facts)  # what a calibration keeps of them
    assert (said.name, said.driver) == (device.device_name, facts["driver_version"])
    assert said.driver
    assert said.compute_units == facts["compute_units"]


@pytest.mark.parametrize("size", [1, 4095, 256 << 10, (256 << 10) + 1, 1 << 20])
def test_copy_there_and_back(device: Any, size: int) -> None:
    import tvm

    array = np.random.default_rng(size).integers(0, 255, size).astype("uint8")
    on_device = tvm.runtime.empty((size,), "uint8", device)
    source = array.copy()
    on_device.copyfrom(source)
    source[:] = 0
    other = tvm.runtime.empty((size,), "uint8", device)
    on_device.copyto(other)
    np.testing.assert_array_equal(other.numpy(), array)


def test_host_view_is_handed_over(opencl: Any, vm: Any, device: Any) -> None:
    x, w = inputs(3)
    x_device, w_device = tensor(x, device), tensor(w, device)
    view = opencl.host_view(x_device)
    address = np.from_dlpack(view).ctypes.data
    np.testing.assert_array_equal(view.numpy(), x)
    for scale in (2, 3):
        opencl.to_host(x_device, "write")
        view.copyfrom((x * scale).astype("float32"))
        opencl.to_device(x_device)
        assert close(vm["main"](x_device, w_device)[0].numpy(), relu_sum(x * scale, w)[0])
    opencl.to_host(x_device, "read")
    np.testing.assert_array_equal(view.numpy(), x * 3)
    assert np.from_dlpack(opencl.host_view(x_device)).ctypes.data == address
    opencl.to_device(x_device)


def test_unified_memory_is_not_copied(opencl: Any, vm: Any, device: Any) -> None:
    only_where(opencl.devices()[0]["unified_memory"], "the device has no unified memory")
    x, w = inputs(2)
    x_device = tensor(x, device)
    view = np.from_dlpack(opencl.host_view(x_device))
    opencl.to_device(x_device)
    x_device.copyfrom(x * 5)
    opencl.to_host(x_device, "read")
    np.testing.assert_array_equal(view, x * 5)  # the same bytes, though nobody copied to the view
    opencl.to_device(x_device)
    assert close(vm["main"](x_device, tensor(w, device))[0].numpy(), relu_sum(x * 5, w)[0])


def aligned(count: int, offset: int = 0) -> np.ndarray:
    """float32 that begin `offset` values after a multiple of 64 bytes."""
    memory = np.zeros(count + 32, "float32")
    start = -memory.ctypes.data % 64 // 4 + offset
    return memory[start : start + count]


def test_a_weight_is_read_where_it_lies(opencl: Any, load_kernels: Callable[..., Any], device: Any) -> None:
    only_where(opencl.devices()[0]["type"] == "cpu", "only a CPU's driver is sure to share memory with the host")
    scale = load_kernels({"scale": SCALE}).get_function("scale")
    x = aligned(64)
    x[:] = np.arange(64)
    y = tensor(np.zeros(64, "float32"), device)
    weight = opencl.import_host(x, "x")
    assert opencl.memory()["imported_bytes"] == 256
    x[5] = 50  # the same bytes; a program must not do this
    scale(data_pointer(y), data_pointer(weight), 2.0, 4, 16)
    np.testing.assert_array_equal(y.numpy(), x * 2)
    np.testing.assert_array_equal(weight.numpy(), x)
    with pytest.raises(OpenCLError, match="shares 256 bytes of the host is read alone"):
        weight.copyfrom(np.zeros(64, "float32"))
    with pytest.raises(OpenCLError, match="read alone"):
        opencl.host_view(weight)
    opencl.to_host(weight, "read")
    opencl.to_device(weight)
    kept = x.copy()
    del x
    np.testing.assert_array_equal(weight.numpy(), kept)  # the tensor keeps the memory
    for _ in range(20):  # released while a kernel may still read it
        big = opencl.import_host(aligned(1 << 16), "big")
        scale(data_pointer(y), data_pointer(big), 2.0, 4, 16)
        del big
    assert not y.numpy().any()
    del weight
    assert opencl.memory()["imported_bytes"] == 0


def test_a_weight_that_cannot_be_shared_is_copied(opencl: Any, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = aligned(64, 1)
    x[:] = np.arange(64)

    def copied(array: np.ndarray) -> bool:
        weight = opencl.import_host(array, "x")
        np.testing.assert_array_equal(weight.numpy(), array.view("uint16") if array.dtype == "float16" else array)
        return opencl.memory()["imported_bytes"] == 0

    assert copied(x)  # not at a multiple of 64 bytes
    assert copied(aligned(64).reshape(8, 8).T)
    halves = aligned(64).view("float16")
    halves[:] = 1.5
    assert not copied(halves) or opencl.devices()[0]["type"] != "cpu"
    opencl.inject_failure("clCreateBuffer", 1, "CL_INVALID_HOST_PTR")
    assert copied(halves)
    opencl.inject_failure("*", 0, "CL_SUCCESS")
    monkeypatch.setenv("HSD_OPENCL_IMPORT", "0")
    assert copied(halves)
    opencl.inject_failure("clCreateBuffer", 1, "CL_MEM_OBJECT_ALLOCATION_FAILURE")
    message = r"^OpenCL: tensor head: clCreateBuffer returned CL_MEM_OBJECT_ALLOCATION_FAILURE \(-4\) for a buffer of"
    with pytest.raises(OpenCLError, match=message):
        opencl.import_host(x, "head")


def test_kernels_refuse_a_tensor_with_the_host(opencl: Any, vm: Any, device: Any) -> None:
    x, w = inputs(2)
    x_device = tensor(x, device)
    opencl.to_host(x_device)
    with pytest.raises(OpenCLError, match="a buffer of 512 bytes is with the host: give it to the device first"):
        vm["main"](x_device, tensor(w, device))
    with pytest.raises(OpenCLError, match="with the host"):
        x_device.numpy()
    opencl.to_device(x_device)
    vm["main"](x_device, tensor(w, device))


def test_view_keeps_the_tensor(opencl: Any, device: Any) -> None:
    view = opencl.host_view(tensor(np.arange(5, dtype="float32"), device))
    np.testing.assert_array_equal(view.numpy(), np.arange(5))


def test_view_of_a_cpu_tensor_is_refused(opencl: Any) -> None:
    import tvm

    with pytest.raises(OpenCLError, match="not on an opencl device"):
        opencl.host_view(tensor(np.zeros(3, "float32"), tvm.cpu()))


def test_allocation_above_the_limit_is_refused_with_both_numbers(opencl: Any, device: Any) -> None:
    import tvm

    limit = opencl.devices()[0]["max_alloc_bytes"]
    message = f"a buffer of {limit + 4} bytes is larger than CL_DEVICE_MAX_MEM_ALLOC_SIZE = {limit} bytes of "
    with pytest.raises(OpenCLError, match=message):
        tvm.runtime.empty((limit // 4 + 1,), "float32", device)


@pytest.mark.parametrize(
    ("function", "status"),
    [
        ("clCreateBuffer", "CL_MEM_OBJECT_ALLOCATION_FAILURE"),
        ("clSetKernelArg", "CL_INVALID_ARG_VALUE"),
        ("clEnqueueNDRangeKernel", "CL_OUT_OF_RESOURCES"),
        ("clEnqueueWriteBuffer", "CL_OUT_OF_HOST_MEMORY"),
        ("clEnqueueReadBuffer", "CL_INVALID_MEM_OBJECT"),
        ("clFinish", "CL_OUT_OF_RESOURCES"),
    ],
)
def test_failure_is_named_and_passes(opencl: Any, vm: Any, device: Any, function: str, status: str) -> None:
    x, w = inputs(4)

    def run() -> np.ndarray:
        return vm["main"](tensor(x, device), tensor(w, device))[0].numpy()

    run()
    opencl.inject_failure(function, 1, status)
    with pytest.raises(OpenCLError, match=rf"^OpenCL: {function} returned {status} \(-\d+\)"):
        run()
    assert close(run(), relu_sum(x, w)[0])


def test_failed_kernel_is_named(opencl: Any, vm: Any, device: Any) -> None:
    x, w = (tensor(a, device) for a in inputs(4))
    opencl.inject_failure("clEnqueueNDRangeKernel", 2, "CL_INVALID_WORK_GROUP_SIZE")
    with pytest.raises(OpenCLError, match=r"kernel \w*sum\w* on .* with work-groups of \d+.*allows this kernel \d+"):
        vm["main"](x, w)


def test_lost_device_fails_until_it_is_back(opencl: Any, vm: Any, device: Any) -> None:
    x, w = inputs(4)
    x_device, w_device = tensor(x, device), tensor(w, device)
    opencl.inject_failure("clEnqueueNDRangeKernel", 1, "CL_OUT_OF_RESOURCES", forever=True)
    for _ in range(3):
        with pytest.raises(OpenCLError, match="CL_OUT_OF_RESOURCES"):
            vm["main"](x_device, w_device)
    opencl.inject_failure("*", 0, "CL_SUCCESS")
    assert close(vm["main"](x_device, w_device)[0].numpy(), relu_sum(x, w)[0])


def test_unknown_status_and_environment_are_refused(opencl: Any) -> None:
    with pytest.raises(OpenCLError, match="no OpenCL status is called CL_TIRED"):
        opencl.inject_failure("clFinish", 1, "CL_TIRED")


def test_random_failures_never_give_a_wrong_number(opencl: Any, vm: Any, device: Any) -> None:
    x, w = inputs(5)
    wanted = relu_sum(x, w)[0]

    def run() -> np.ndarray:
        x_device = tensor(x, device)
        opencl.to_host(x_device)
        opencl.to_device(x_device)
        return vm["main"](x_device, tensor(w, device))[0].numpy()

    run()
    before = opencl.call_count()
    run()
    calls = opencl.call_count() - before
    draw, failed = random.Random(1), 0
    for _ in range(100):
        k = draw.randint(1, calls + 5)
        opencl.inject_failure("*", k, "CL_OUT_OF_RESOURCES")
        try:
            assert close(run(), wanted)
        except OpenCLError as error:
            failed += 1
            assert "CL_OUT_OF_RESOURCES" in str(error)  # noqa: PT017
        opencl.inject_failure("*", 0, "CL_SUCCESS")
    assert failed > 30
    assert close(run(), wanted)


def test_no_leak_over_ten_thousand_launches(opencl: Any, load_kernels: Callable[..., Any], device: Any) -> None:
    scale = load_kernels({"scale": SCALE}).get_function("scale")
    x = tensor(np.ones(64, "float32"), device)
    handle = data_pointer(x)

    def launch(count: int) -> None:
        for i in range(count):
            y = tensor(np.zeros(64, "float32"), device)
            scale(data_pointer(y), handle, float(i), 4, 16)
            if i % 100 == 99:
                np.testing.assert_array_equal(y.numpy(), np.full(64, i, "float32"))

    launch(1000)
    live, heap = opencl.memory(), heap_bytes()
    launch(10000)
    assert opencl.memory()["bytes"] == live["bytes"]
    assert heap_bytes() - heap < 1_000_000  # 100 bytes a launch
    kept = [np.zeros(32, "float32") for _ in range(10000)]
    assert len(kept) == 10000
    assert heap_bytes() - heap > 1_000_000  # the negative control: 128 bytes a launch


def test_two_machines_in_two_threads(library: Path, device: Any) -> None:
    import tvm
    from tvm.runtime.vm import VirtualMachine

    wrong: list[str] = []

    def work(seed: int) -> None:
        vm = VirtualMachine(tvm.runtime.load_module(str(library)), [device, tvm.cpu()])
        for i in range(100):
            x, w = inputs(1 + i % 9, seed * 1000 + i)
            if not close(vm["main"](tensor(x, device), tensor(w, device))[0].numpy(), relu_sum(x, w)[0]):
                wrong.append(f"thread {seed}, call {i}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_two_threads_share_a_kernel(load_kernels: Callable[..., Any], device: Any) -> None:
    scale = load_kernels({"scale": SCALE}).get_function("scale")
    wrong: list[float] = []

    def work(sign: int) -> None:
        x, y = (tensor(np.full(16, v, "float32"), device) for v in (1, 0))
        for i in range(300):
            scale(data_pointer(y), data_pointer(x), float(sign * i), 1, 16)
            if not (y.numpy() == sign * i).all():
                wrong.append(sign * i)

    threads = [threading.Thread(target=work, args=(sign,)) for sign in (1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_profile_and_timer(opencl: Any, vm: Any, device: Any) -> None:
    x, w = (tensor(a, device) for a in inputs(8))
    with opencl.profile() as commands:
        vm["main"](x, w)
        vm["main"](x, w)
    assert len(commands) == 4
    assert commands[0].name == commands[2].name != commands[1].name
    for command in commands:
        assert 0 < command.seconds < 10
        assert command.queued_ns <= command.submitted_ns <= command.started_ns
    assert 0 < vm.time_evaluator("main", device, number=3)(x, w).mean < 10
    vm["main"](x, w)  # and the queue without timestamps is back
    with opencl.profile() as commands:
        pass
    assert commands == []


def test_mark(opencl: Any, vm: Any, device: Any) -> None:
    x, w = (tensor(a, device) for a in inputs(8))
    vm["main"](x, w)
    opencl.flush()
    mark = opencl.Mark()
    mark.wait()
    assert mark.reached()


def test_streams(opencl: Any, load_kernels: Callable[..., Any], device: Any) -> None:
    scale = load_kernels({"scale": SCALE}).get_function("scale")
    x, y = (tensor(np.full(16, v, "float32"), device) for v in (3, 0))
    stream = device.create_raw_stream()
    device.sync()
    device.set_raw_stream(stream)
    scale(data_pointer(y), data_pointer(x), 2.0, 1, 16)
    device.sync(stream)
    device.set_raw_stream(0)
    np.testing.assert_array_equal(y.numpy(), np.full(16, 6, "float32"))
    device.free_raw_stream(stream)


def test_module_without_work_launches_nothing(load_kernels: Callable[..., Any], device: Any) -> None:
    scale = load_kernels({"scale": SCALE}).get_function("scale")
    y = tensor(np.full(16, 7, "float32"), device)
    scale(data_pointer(y), data_pointer(y), 2.0, 0, 16)
    np.testing.assert_array_equal(y.numpy(), np.full(16, 7, "float32"))


def test_products_are_not_contracted(load_kernels: Callable[..., Any], device: Any) -> None:
    """x * x - r with r = round(x * x) is 0 unless the compiler made an fma of it."""
    source = (
        "__kernel void residue(__global float* y, __global const float* x, __global const float* r) {\n"
        "  int i = get_global_id(0); y[i] = x[i] * x[i] - r[i];\n}"
    )
    x = np.random.default_rng(3).standard_normal(64).astype("float32")
    allowed = "#pragma OPENCL FP_CONTRACT ON\n" + source
    explicit = source.replace("x[i] * x[i] - r[i]", "fma(x[i], x[i], -r[i])")
    for body, contracted in ((source, False), (allowed, True), (explicit, True)):
        kernel = load_kernels({"residue": ([POINTER] * 3, ["threadIdx.x"], body)}).get_function("residue")
        arrays = [tensor(a, device) for a in (np.ones(64, "float32"), x, x * x)]
        kernel(*(data_pointer(a) for a in arrays), 64)
        assert bool(arrays[0].numpy().any()) is contracted


def test_build_kernels_names_those_that_fail(opencl: Any, load_kernels: Callable[..., Any], library: Path) -> None:
    import tvm

    assert opencl.build_kernels(tvm.runtime.load_module(str(library))) == []
    broken = ([POINTER], ["threadIdx.x"], "__kernel void broken(__global float* y) { y[0] = nothing; }")
    module = load_kernels({"scale": SCALE, "broken": broken})
    [(name, reason)] = opencl.build_kernels(module)
    assert name == "broken"
    assert reason.startswith("clBuildProgram returned CL_BUILD_PROGRAM_FAILURE (-11) for broken on ")
    assert "nothing" in reason


def test_damaged_modules_are_refused(load_kernels: Callable[..., Any], serialized: Callable[..., bytes]) -> None:
    for cut in range(len(serialized({"scale": SCALE}))):
        with pytest.raises(OpenCLError, match="damaged"):
            load_kernels({"scale": SCALE}, cut=cut)
    with pytest.raises(OpenCLError, match="format spv; only OpenCL C"):
        load_kernels({"scale": SCALE}, fmt="spv")
    with pytest.raises(OpenCLError, match="no source for other"):
        load_kernels({"scale": SCALE}, swap=(b"scale", b"other", 1))


def test_wrong_calls_are_refused(load_kernels: Callable[..., Any], device: Any) -> None:
    scale = load_kernels({"scale": SCALE}).get_function("scale")
    zeros = tensor(np.zeros(16, "float32"), device)
    x = data_pointer(zeros)
    with pytest.raises(OpenCLError, match="wrong number of arguments"):
        scale(x, x, 1.0)
    with pytest.raises(OpenCLError, match=r"CL_INVALID_WORK_(GROUP|ITEM)_SIZE"):
        scale(x, x, 1.0, 1, 1 << 20)
