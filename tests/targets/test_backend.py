"""The registry of processor kinds: what is registered, what importing it costs, and what its base class does."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy_backend
import pytest

from targets import backend as backends
from targets.backend import HOST, Backend, backend, names
from targets.boards import load_board
from targets.errors import UserError
from targets.kernels.signatures import MAKERS, Makers

ROOT = Path(__file__).parents[2]
_WITHOUT_A_COMPILER = """
import sys
for name in ("tvm", "tvm_ffi", "onnx", "numpy"):
    sys.modules[name] = None
from targets.backend import backend, names
print(*(backend(name).name for name in names()))
"""


def kinds() -> list[Backend]:
    return [*(backend(name) for name in names()), numpy_backend.NumpyBackend()]


def test_names() -> None:
    assert names() == ("cpu", "gpu")
    assert names()[0] == HOST
    assert [backend(name).name for name in names()] == list(names())
    assert backend("gpu") is backend("gpu")


def test_a_third_kind_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError):
        backend("test")
    monkeypatch.setitem(backends.REGISTRY, "test", numpy_backend.WHERE)
    assert names() == ("cpu", "gpu", "test")
    assert backend("test").title() == "the TEST"


def test_the_registry_imports_no_compiler() -> None:
    command = [sys.executable, "-c", _WITHOUT_A_COMPILER]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={"PYTHONPATH": "."})
    assert done.stdout.split() == list(names()), done.stderr


def test_a_bundle_carries_what_runs_and_not_what_compiles(tmp_path: Path) -> None:
    from hetero_sd.compile.bundle import copy_device_python

    copy_device_python(tmp_path)
    use = "from targets.backend import backend, names\nfor n in names(): print(backend(n).name)\nbackend(n).makers()"
    command = [sys.executable, "-S", "-c", use]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env={"PYTHONPATH": "."})
    assert done.stdout.split() == list(names()), done.stderr
    assert "No module named 'targets.opencl.kernels'" in done.stderr


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_makers_have_the_shared_signatures(kind: Backend) -> None:
    def parameters(function: Any) -> list[tuple[str, Any]]:
        return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]

    makers = kind.makers()
    assert set(makers) <= set(MAKERS)
    told_slot = set() if kind.slot_views else {"attention_in_slot"}
    assert kind.name == "test" or set(makers) == set(MAKERS) - {"attention_in_slot"} | told_slot
    for name, maker in makers.items():
        assert parameters(maker) == parameters(getattr(Makers, name)), name
    assert parameters(makers["linear"]) != parameters(makers["argmax"])  # the negative control


def test_what_a_board_lacks() -> None:
    assert backend("gpu").missing_on(load_board("rpi5")) == "board rpi5 has no GPU"
    assert backend("gpu").missing_on(load_board("rk3566")) == ""
    assert backend(HOST).missing_on(load_board("rpi5")) == ""


def test_titles() -> None:
    assert backend(HOST).title() == "the CPU"
    assert backend("gpu").title() == "the GPU by OpenCL"
    assert backend("gpu").title("Mali-G52") == "Mali-G52 by OpenCL"


def test_weight_types() -> None:
    assert [backend("gpu").weight_type(t) for t in ("float32", "uint16")] == ["float32", "float16"]
    assert backend(HOST).weight_type("bfloat16") == "bfloat16"
    with pytest.raises(UserError, match="bfloat16 weights have no GPU kernel"):
        backend("gpu").weight_type("bfloat16")
    with pytest.raises(UserError, match="float16 weights have no GPU kernel"):  # its bits, or nothing
        backend("gpu").weight_type("float16")


def test_values_on_the_host_stay_where_they_are() -> None:
    import tvm

    kind = backend(HOST)
    tensor = tvm.runtime.tensor(np.arange(4, dtype=np.float32))
    assert kind.host_view(tensor) is tensor


def test_values_elsewhere_are_copied_into_kept_memory() -> None:
    import tvm

    kind, device = numpy_backend.NumpyBackend(), tvm.cpu()
    first = tvm.runtime.tensor(np.arange(4, dtype=np.float32))
    kept = kind.to_device(first, device, None)
    second = tvm.runtime.tensor(np.full(4, 7, np.float32))
    assert kind.to_device(second, device, kept) is kept
    assert kept.numpy().tolist() == [7] * 4
    view = kind.host_view(kept)
    kind.to_device(first, device, kept)
    assert view.numpy().tolist() == [7] * 4  # a copy
    assert kind.import_weight(np.ones(3, np.float16), "w", device).numpy().dtype == np.float16
