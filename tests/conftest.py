"""What tests share: unpacked exports, an environment of their own, an OpenCL device for those that need one.

The OpenCL runtime is built once; a missing driver is a printed reason.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from unpack_families import unpack_families

INSTALL = "run tests/opencl/setup.sh"
unpack_families(Path(__file__).parent / "data")  # tests are named by its folders, so before they are collected


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `pytest -n`: a file's tests share a process, and so its fixtures; those of the emulated board go first.

    The board's have one process of their own, because they are the longest.
    """
    board = "the emulated board"
    for item in items:
        on_board = {"virtual_board", "opencl_board"} & set(getattr(item, "fixturenames", ()))
        item.add_marker(pytest.mark.xdist_group(board if on_board else str(item.path)))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group").args[0] != board)  # type: ignore[union-attr]


def absent(what: str) -> None:
    """Skip with the reason; with CI set, where everything must be there, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}: {INSTALL}")
    pytest.skip(f"{what}: {INSTALL}")


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Take back what a test sets: run.py sets TVM's variables, and a later test's child process would see them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def runtime_library() -> Path:
    """The runtime, built for this machine."""
    from targets.errors import UserError
    from targets.mali import opencl_runtime

    try:
        return opencl_runtime.ensure()
    except UserError as error:
        absent(str(error))
        raise


@pytest.fixture(scope="session")
def opencl(runtime_library: Path) -> Any:
    """The module `targets.mali.opencl`, with the runtime loaded and a device there; no binaries on disk."""
    import tvm  # noqa: F401

    from targets.mali import opencl, opencl_runtime

    assert opencl_runtime.load(runtime_library) == "ours"
    try:
        opencl.devices()
    except opencl_runtime.OpenCLError as error:
        absent(str(error))
    opencl.set_cache_folder(None)
    return opencl


@pytest.fixture
def released(opencl: Any) -> Iterator[None]:
    """Give back what the test's machines held on the device, so that the next one starts with no buffers."""
    import tvm_ffi

    yield
    gc.collect()
    tvm_ffi.get_global_func("vm.builtin.memory_manager.clear")()
