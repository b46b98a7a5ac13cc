"""The house's arrows: targets <- costmodel <- passes <- hetero_sd <- tests; nobody imports to the right."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ["targets", "costmodel", "passes", "hetero_sd", "tests"]
ISLAND_MAY_IMPORT = {"numpy", "tvm", "tvm_ffi", "tokenizers", "jinja2", "costmodel", "targets"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def offences(root: Path) -> list[str]:
    found = []
    for rank, package in enumerate(ORDER[:-1]):
        right = set(ORDER[rank + 1 :])
        for path in sorted((root / package).rglob("*.py")):
            found += [
                f"{path.relative_to(root)} imports {name}" for name in imported(path) if name.split(".")[0] in right
            ]
    return found


def test_imports_point_left() -> None:
    assert offences(ROOT) == []


def test_an_import_to_the_right_is_found(tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "planted.py").write_text("import hetero_sd\n")
    assert offences(tmp_path) == ["targets/planted.py imports hetero_sd"]


def test_siblings_are_ours() -> None:
    import costmodel
    import hetero_sd
    import passes
    import targets

    for module in (targets, costmodel, passes, hetero_sd):
        assert Path(str(module.__file__)).resolve().parent.parent == ROOT


def test_runtime_is_an_island() -> None:
    for path in sorted((ROOT / "hetero_sd" / "runtime").rglob("*.py")):
        for name in imported(path):
            top = name.split(".")[0]
            inside = name == "hetero_sd.runtime" or name.startswith("hetero_sd.runtime.")
            allowed = inside or top in ISLAND_MAY_IMPORT or top in sys.stdlib_module_names
            assert allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("package", ["targets", "costmodel"])
def test_imports_without_tvm(package: str) -> None:
    """The device and the cost model need these packages where TVM's compiler is not installed."""
    code = (
        "import sys, pkgutil, importlib\n"
        "sys.modules['tvm'] = None\n"
        f"import {package}\n"
        f"skip = ('targets.cortex_a.kernels', 'targets.mali.kernels')\n"
        f"for m in pkgutil.walk_packages({package}.__path__, '{package}.'):\n"
        "    if not m.name.startswith(skip): importlib.import_module(m.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
