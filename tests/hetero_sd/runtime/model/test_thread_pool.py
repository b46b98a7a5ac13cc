"""Our thread pool under libraries that TVM compiled: the same bits, errors that arrive, threads that sleep."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from hetero_sd.runtime.manifest import Bundle, write_manifest
from hetero_sd.runtime.model.thread_pool import LIBRARY, PoolError, ThreadPool, why_tvms_pool
from targets.boards import load_board
from targets.cpu import pool as pool_library
from targets.cpu.linker import host_isa, link_function
from targets.cpu.pool.building import build
from targets.cpu.target import tvm_target
from targets.errors import UserError

ROOT = Path(__file__).resolve().parents[4]
EXPORT = ROOT / "tests" / "data" / "exports" / "llama-drafter-dynamo-fp32" / "model.onnx"
N = 4096


@T.prim_func(s_tir=True)
def scaled(x: T.Buffer((N,), "float32"), y: T.Buffer((N,), "float32")):
    """y = 3 x through a local buffer; an element below 0 is an error."""
    T.func_attr({"tirx.noalias": True})
    for i in T.parallel(N // 8):
        with T.sblock("part"):
            vi = T.axis.spatial(N // 8, i)
            assert x[vi * 8] >= T.float32(0), "an element is below 0"
            local = T.sblock_alloc_buffer((8,), "float32", scope="local")
            for j in T.serial(8):
                local[j] = x[vi * 8 + j] * T.float32(3)
            for j in T.serial(8):
                y[vi * 8 + j] = local[j]


@pytest.fixture(scope="module")
def library() -> Path:
    return pool_library.ensure(host_isa())


@pytest.fixture
def module(tmp_path: Path) -> tuple[Path, Callable[[Any, Any], None]]:
    """The kernel above in a library of its own, and the function in it."""
    core = load_board("host", measure=False).clusters[0].core
    path = tmp_path / "kernel.so"
    built = tvm.compile(scaled.with_attr("global_symbol", "main"), target=tvm_target(core))
    built.export_library(str(path), fcompile=link_function(core))
    return path, tvm.runtime.load_module(str(path))["main"]


@pytest.fixture(autouse=True)
def no_other_pools() -> None:
    """Models that other tests in this process have left keep their threads until they are collected."""
    gc.collect()


def workers(count: int) -> list[Path]:
    """The pools' threads, of which there are `count`; one that was joined stays in /proc for a moment."""
    found: list[Path] = []
    for _ in range(6000):
        found = [t for t in Path("/proc/self/task").iterdir() if name_of(t) == "hsd-pool"]
        if len(found) == count:
            break
        time.sleep(0.01)
    assert len(found) == count
    return sorted(found)


def name_of(thread: Path) -> str:
    try:
        return (thread / "comm").read_text().strip()
    except OSError:
        return ""


def cpu_ns(threads: list[Path]) -> int:
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads)


def settled_cpu_ns(threads: list[Path]) -> int:
    """CPU time of threads once a fifth of a second passed in which it did not grow."""
    before = -1
    for _ in range(100):
        now = cpu_ns(threads)
        if now == before:
            return now
        before = now
        time.sleep(0.2)
    raise AssertionError("the threads do not sleep")


def run(kernel: Callable[[Any, Any], None], x: np.ndarray) -> np.ndarray:
    y = tvm.runtime.tensor(np.zeros_like(x))
    kernel(tvm.runtime.tensor(x), y)
    result: np.ndarray = y.numpy()
    return result


@pytest.mark.parametrize(("threads", "tasks"), [(1, 0), (2, 1), (2, 0), (3, 7), (4, 4)])
def test_regions_of_a_library_run_through_the_pool(
    library: Path, module: tuple[Path, Callable[[Any, Any], None]], threads: int, tasks: int
) -> None:
    path, kernel = module
    x = np.arange(N, dtype=np.float32)
    pool = ThreadPool(library, [], threads)
    pool.attach(path)
    pool.set(threads, tasks)
    for _ in range(20):
        assert np.array_equal(run(kernel, x), 3 * x)
    counts = pool.counts()
    assert counts["regions"] == (20 if threads > 1 else 0)
    if tasks:
        assert counts["tasks"] == 20 * threads * tasks * (threads > 1)
    pool.close()
    assert np.array_equal(run(kernel, x), 3 * x)  # TVM's pool has it again
    workers(0)
    pool.close()


@pytest.mark.parametrize("at", [0, N // 2, N - 8])
def test_an_error_of_any_task_arrives(library: Path, module: tuple[Path, Callable[[Any, Any], None]], at: int) -> None:
    path, kernel = module
    pool = ThreadPool(library, [], 4)
    pool.attach(path)
    pool.set(4, 3)
    x = np.ones(N, np.float32)
    for i in range(200):
        x[at] = -1.0
        with pytest.raises(Exception, match="an element is below 0"):
            run(kernel, x)
        x[at] = 1.0
        if i % 50 == 0:
            assert np.array_equal(run(kernel, x), 3 * x)
    assert pool.counts()["worker_tasks"] > 0
    pool.close()


def test_a_pool_that_is_not_there_is_one_line(library: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged.so").write_bytes(library.read_bytes()[:500])
    for path in (tmp_path / "missing.so", tmp_path / "damaged.so"):
        with pytest.raises(PoolError, match="cannot be loaded") as caught:
            ThreadPool(path, [], 2)
        assert "\n" not in str(caught.value)
    with pytest.raises(PoolError, match="no pool of 99 threads"):
        ThreadPool(library, [], 99)
    with pytest.raises(PoolError, match="no pool of 2 threads"):
        ThreadPool(library, [5000], 2)
    pool = ThreadPool(library, [], 2)
    with pytest.raises(PoolError, match=r"nothing\.so is not loaded"):
        pool.attach(tmp_path / "nothing.so")
    for threads, tasks in ((3, 1), (0, 1), (2, -1), (2, 5000)):
        with pytest.raises(ValueError, match="threads of 2"):
            pool.set(threads, tasks)
    pool.close()


def test_a_library_that_uses_the_barrier_is_refused(library: Path, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    seen = '__attribute__((visibility("default")))'
    text = f"{seen} void* __TVMBackendParallelLaunch;\n{seen} void* __TVMBackendParallelBarrier;\n"
    (tmp_path / "src" / "barrier.c").write_text(text)
    other = build(host_isa(), tmp_path / "src", tmp_path / "barrier.so")
    loaded = ctypes.CDLL(str(other))
    pool = ThreadPool(library, [], 2)
    with pytest.raises(PoolError, match="uses TVM's barrier"):
        pool.attach(other)
    assert ctypes.c_void_p.in_dll(loaded, "__TVMBackendParallelLaunch").value is None
    pool.close()


def test_threads_sleep_after_the_last_region(library: Path, module: tuple[Path, Callable[[Any, Any], None]]) -> None:
    """CPU time decides: a worker takes less than 5 ms of it after the last region, and then none."""
    path, kernel = module
    x = np.ones(N, np.float32)
    pool = ThreadPool(library, [], 3)
    pool.attach(path)
    try:
        for spin_ns, sleeps in ((1_000_000, True), (60_000_000_000, False)):
            pool._library.hsd_pool_spin(spin_ns)
            for _ in range(50):
                run(kernel, x)
            threads = workers(2)
            after_region = cpu_ns(threads)
            if sleeps:
                assert settled_cpu_ns(threads) - after_region < 2 * 5e6
            else:  # negative control
                deadline = time.monotonic() + 60
                while cpu_ns(threads) - after_region < 2 * 5e6 and time.monotonic() < deadline:
                    time.sleep(0.05)
                assert cpu_ns(threads) - after_region >= 2 * 5e6
    finally:
        pool._library.hsd_pool_spin(1_000_000)
        pool.close()


def test_a_switch_of_threads_starts_none(library: Path, module: tuple[Path, Callable[[Any, Any], None]]) -> None:
    path, kernel = module
    pool = ThreadPool(library, [], 2, capacity=4)
    pool.attach(path)
    x = np.ones(N, np.float32)
    threads = workers(3)
    for count in (1, 4, 2, 3, 1, 4):
        pool.set(count)
        run(kernel, x)
        assert workers(3) == threads
    pool.close()


def test_pools_on_the_same_cpus_share_threads(library: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    first, second = ThreadPool(library, cpus, 2), ThreadPool(library, cpus[::-1], 3)
    workers(2)
    other = ThreadPool(library, [], 2)
    workers(3)
    first.close()
    workers(3)
    second.close()
    workers(1)
    other.close()
    workers(0)


def test_workers_stay_on_their_cpus(library: Path) -> None:
    last = max(os.sched_getaffinity(0))
    pool = ThreadPool(library, [last], 3)
    assert [os.sched_getaffinity(int(worker.name)) for worker in workers(2)] == [{last}, {last}]
    pool.close()


_FORK = """
import os, sys
import numpy as np
import tvm
from pathlib import Path
from hetero_sd.runtime.model.thread_pool import ThreadPool

kernel = tvm.runtime.load_module(sys.argv[2])["main"]
pool = ThreadPool(Path(sys.argv[1]), [], 3)
pool.attach(Path(sys.argv[2]))
x = np.arange(4096, dtype=np.float32)

def right():
    y = tvm.runtime.tensor(np.zeros_like(x))
    kernel(tvm.runtime.tensor(x), y)
    return np.array_equal(y.numpy(), 3 * x)

for _ in range(20):
    assert right()
    child = os.fork()
    if child == 0:
        ok = all(right() for _ in range(20)) and len(os.listdir("/proc/self/task")) == 3
        pool.close()
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert right()
print("same")
"""


def test_a_forked_child_starts_threads_of_its_own(
    library: Path, module: tuple[Path, Callable[[Any, Any], None]]
) -> None:
    environment = {**os.environ, "TVM_USE_RUNTIME_LIB": "1"}
    command = [sys.executable, "-c", _FORK, str(library), str(module[0])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False, timeout=600)
    assert done.stdout == "same\n", done.stderr


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model, as target and as draft."""
    from costmodel.place import Place, ReasonedPlace
    from hetero_sd.compile.build import ModelRequest, Sizes, build_model
    from passes.onnx import canonicalise

    folder = tmp_path_factory.mktemp("bundle")
    core = load_board("host", measure=False).clusters[0].core
    place, sizes = ReasonedPlace(Place("cpu")), Sizes(48, (1, 4), 32)
    models = {
        role: build_model(ModelRequest(role, canonicalise(EXPORT, 48), core, place, sizes), folder).facts
        for role in ("target", "draft")
    }
    write_manifest(folder, models)
    return folder


def all_logits(model: Any) -> np.ndarray:
    ids = [(7 * i + 3) % 64 for i in range(40)]
    model.extend(ids, 0)
    rows = [model.forward(ids[at : at + n], at) for at, n in ((0, 1), (1, 4), (5, 3), (8, 4), (39, 1))]
    return np.concatenate(rows)


@pytest.mark.slow
def test_bits_do_not_depend_on_pool_threads_or_tasks(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hetero_sd.runtime.model.model import CompiledModel

    monkeypatch.setenv("HSD_THREAD_POOL", "tvm")
    tvms = CompiledModel("target", Bundle(bundle))
    assert tvms.thread_facts["pool"] == "tvm"
    assert tvms.thread_facts["why_tvms"] == "HSD_THREAD_POOL=tvm"
    wanted = all_logits(tvms)
    del tvms
    monkeypatch.setenv("HSD_THREAD_POOL", "")
    models = {role: CompiledModel(role, Bundle(bundle)) for role in ("target", "draft")}
    assert models["target"].thread_facts["pool"] == "ours"
    for threads in (1, 2, 3, 5):
        for role, model in models.items():  # two models with a pool each, at the same time
            pool = ThreadPool(bundle / LIBRARY, [], threads)
            pool.attach(bundle / f"lib/{role}_cpu.so")
            model.pool = pool
        for tasks in (0, 1, 4, 9):
            for model in models.values():
                model.pool.set(threads, tasks)
                assert np.array_equal(all_logits(model).view(np.uint32), wanted.view(np.uint32)), (threads, tasks)
    for _ in range(1000):  # on a busy machine the caller may be done before a worker wakes
        if models["target"].thread_facts["worker_share"] > 0:
            break
        all_logits(models["target"])
    else:
        pytest.fail("no worker ever took a task")
    other = wanted.copy()
    other[0, 0] = np.nextafter(other[0, 0], np.float32(np.inf))
    assert not np.array_equal(other.view(np.uint32), wanted.view(np.uint32))  # negative control: one bit


@pytest.mark.slow
def test_chunks_of_a_prompt_have_threads_of_their_own(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is opened for most of them, and changes between calls; the bits are those of one number."""
    from hetero_sd.runtime.model import model as model_file

    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    wanted = all_logits(model_file.CompiledModel("target", Bundle(bundle)))
    monkeypatch.setattr(model_file, "choose_prompt_threads", lambda threads, plan: 3)
    model = model_file.CompiledModel("target", Bundle(bundle))
    assert model.pool is not None
    assert (model.pool.threads, model.pool.capacity) == (1, 3)
    seen, change = list[int](), model.pool.set
    monkeypatch.setattr(model.pool, "set", lambda threads: (seen.append(threads), change(threads)))
    assert np.array_equal(all_logits(model).view(np.uint32), wanted.view(np.uint32))
    assert seen == [3, 1]  # the prompt, then steps
    model.read_with(1)
    all_logits(model)
    assert seen == [3, 1, 1]  # the control: they are the same


@pytest.mark.slow
def test_whose_pool_is_used_and_why(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from hetero_sd.runtime.doctor.doctor import examine
    from hetero_sd.runtime.model.model import CompiledModel

    monkeypatch.delenv("HSD_THREAD_POOL", raising=False)
    assert why_tvms_pool(Bundle(bundle)) is None
    lines = [f.text for f in examine(bundle) if f.subject == "threads"]
    assert len(lines) == 1
    assert lines[0].startswith("our thread pool")

    monkeypatch.setenv("HSD_THREAD_POOL", "mine")
    with pytest.raises(UserError, match="HSD_THREAD_POOL=mine: say tvm"):
        why_tvms_pool(Bundle(bundle))
    monkeypatch.delenv("HSD_THREAD_POOL")

    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    models = Bundle(copy).models
    data = (copy / LIBRARY).read_bytes()
    (copy / LIBRARY).write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(UserError, match=r"thread_pool\.so does not match its SHA-256"):
        CompiledModel("target", Bundle(copy))
    write_manifest(copy, models)  # a library that is listed and does not load
    target = CompiledModel("target", Bundle(copy))
    assert target.thread_facts["pool"] == "tvm"
    assert "cannot be loaded" in target.thread_facts["why_tvms"]
    target.argmax([1], 0)
    lines = [f"{f.level} {f.text}" for f in examine(copy) if f.subject == "threads"]
    assert len(lines) == 1
    assert lines[0].startswith("note TVM's thread pool is used")
    (copy / LIBRARY).unlink()
    write_manifest(copy, models)
    assert CompiledModel("target", Bundle(copy)).thread_facts["why_tvms"] == f"the bundle has no {LIBRARY}"
