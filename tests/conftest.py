"""What tests share: unpacked exports, an environment of their own, an OpenCL device for those that need one.

The OpenCL runtime is built once; a missing driver is a printed reason.
"""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cpu_times import CpuTimes
from golden import Golden
from requirements import missing
from unpack_families import unpack_families

BOARD, BY_EXPORT = "virtual_board", ("test_coverage.py", "test_operator_rules.py")
LONGEST = (BOARD, "test_wheel.py", "test_fuzz.py", "test_place.py", *BY_EXPORT, "test_compile.py", "test_kernels.py")
unpack_families(Path(__file__).parent / "data")  # tests are named by its folders, so before they are collected
unpack_families(Path(__file__).parent / "data", "cases")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files; review them with git diff")
    parser.addoption("--cpu-times", type=Path, metavar="FILE", help="append the CPU seconds of each test to FILE")


def pytest_configure(config: pytest.Config) -> None:
    empty = tempfile.TemporaryDirectory(prefix="hsd-no-configuration-", ignore_cleanup_errors=True)
    config.add_cleanup(empty.cleanup)
    os.environ["XDG_CONFIG_HOME"] = empty.name  # a user may have calibrated; browsers write there
    if file := config.getoption("--cpu-times"):
        config.pluginmanager.register(CpuTimes(file.absolute()))


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compares text with a file of tests/golden."""
    return Golden(request.config.getoption("--update-golden"))


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A deep test is a slow test, too; the longest files go first."""
    for item in items:
        if item.get_closest_marker("deep"):
            item.add_marker(pytest.mark.slow)
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    names = (item.path.name, item.path.parent.name)
    return next((i for i, name in enumerate(LONGEST) if name in names), len(LONGEST))


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `pytest -n`: a file's tests share a process, and so its fixtures.

    The board's tests have one process of their own. Tests of one export after the other have no fixtures: each is on
    its own. (pytest-xdist 3.8 reads its own groups from a field that pytest 9.2 no longer has.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path = Path(nodeid.split("::")[0])
            return BOARD if path.parent.name == BOARD else nodeid if path.name in BY_EXPORT else str(path)

    config.option.loadscopereorder = False
    return ByFile(config, log)


@contextlib.contextmanager
def _kept_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module", autouse=True)
def _environment_of_a_file() -> Iterator[None]:
    """Take back what the fixtures of a file set."""
    with _kept_environment():
        yield


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Take back what a test sets: run.py sets TVM's variables, and a later test's child process would see them."""
    with _kept_environment():
        yield


@pytest.fixture(scope="session")
def runtime_library() -> Path:
    """The runtime, built for this machine."""
    from targets.errors import UserError
    from targets.opencl import runtime as opencl_runtime

    try:
        return opencl_runtime.ensure()
    except UserError as error:
        missing(str(error))


@pytest.fixture(scope="session")
def opencl(runtime_library: Path) -> Any:
    """The module `targets.opencl.interface`, with the runtime loaded and a device there; no binaries on disk."""
    import tvm  # noqa: F401

    from targets.opencl import interface as opencl
    from targets.opencl import runtime as opencl_runtime

    assert opencl_runtime.load(runtime_library) == "ours"
    try:
        opencl.devices()
    except opencl_runtime.OpenCLError as error:
        missing(str(error))
    opencl.set_cache_folder(None)
    return opencl


@pytest.fixture
def released(opencl: Any) -> Iterator[None]:
    """Give back what the test's machines held on the device, so that the next one starts with no buffers."""
    import tvm_ffi

    yield
    gc.collect()
    tvm_ffi.get_global_func("vm.builtin.memory_manager.clear")()
