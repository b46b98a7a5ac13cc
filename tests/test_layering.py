"""The arrows between packages: targets <- costmodel <- passes <- hetero_sd <- tests; none to the right, no circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Container, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ["targets", "costmodel", "passes", "hetero_sd", "tests"]
RUNTIME_MAY_IMPORT = {"numpy", "tvm", "tvm_ffi", "tokenizers", "jinja2", "cryptography", "starlette", "uvicorn"}
RUNTIME_MAY_IMPORT |= {"costmodel", "targets"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def modules(root: Path) -> dict[str, Path]:
    """Name -> file of every module of the four packages."""
    found = {}
    for package in ORDER[:-1]:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_modules(name: str, path: Path, known: Container[str]) -> set[str]:
    """What a module imports of ours, inside functions too, but not for type checkers only."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            node.body = []
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{module}.{alias.name}"
                found.add(submodule if submodule in known else module)
    return {n for n in found if n in known and n != name}


def circles(root: Path) -> list[list[str]]:
    """Modules that import one another, directly or through others."""
    known = modules(root)
    arrows = {name: imported_modules(name, path, known) for name, path in known.items()}
    reached: dict[str, set[str]] = {}
    for start in arrows:
        seen, to_do = set(), [start]
        while to_do:
            new = arrows[to_do.pop()] - seen
            seen |= new
            to_do += new
        reached[start] = seen
    groups = {frozenset(b for b in reached[a] if a in reached[b]) for a in arrows if a in reached[a]}
    return sorted(sorted(group) for group in groups)


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


def test_no_module_imports_itself_through_others() -> None:
    assert circles(ROOT) == []


@pytest.mark.parametrize(
    ("there", "back", "found"),
    [
        ("from targets import b", "from targets.a import X", True),
        ("import targets.b", "def f():\n    from targets import a", True),
        ("from . import b", "from .c import Y", True),  # through a third
        ("from targets import b", "if TYPE_CHECKING:\n    from targets.a import X", False),
        ("from targets import b", "", False),
    ],
)
def test_a_circle_is_found(tmp_path: Path, there: str, back: str, found: bool) -> None:
    (tmp_path / "targets").mkdir()
    files = {"__init__": "", "a": there, "b": back, "c": "import targets.a"}
    for name, text in files.items():
        (tmp_path / "targets" / f"{name}.py").write_text(text + "\n")
    through = [["targets.a", "targets.b", *(["targets.c"] if ".c" in back else [])]]
    assert circles(tmp_path) == (through if found else [])


def at_the_edge(path: str) -> bool:
    """Whether a file reads a command line and prints what comes of it."""
    return path.startswith(("hetero_sd/commands/", "hetero_sd/cli.py", "hetero_sd/__main__.py"))


def reads_options(root: Path) -> list[str]:
    """The files of the packages that import argparse, but for the command lines of the host and of the device."""
    device = ("hetero_sd/runtime/options.py", "hetero_sd/runtime/parser.py")
    return [
        str(path.relative_to(root))
        for path in modules(root).values()
        if not at_the_edge(name := path.relative_to(root).as_posix()) and name not in device
        if "argparse" in imported(path)
    ]


def prints(root: Path) -> list[str]:
    """The calls of `print` in hetero_sd, but for the commands and for what runs on the device."""
    found = []
    for path in sorted((root / "hetero_sd").rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not at_the_edge(name) and not name.startswith("hetero_sd/runtime/"):
            calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
            found += [f"{name}:{call.lineno}" for call in calls if ast.unparse(call.func) == "print"]
    return found


def test_only_the_edge_reads_options_and_prints() -> None:
    assert reads_options(ROOT) == []
    assert prints(ROOT) == []


def test_options_and_prints_elsewhere_are_found(tmp_path: Path) -> None:
    """The negative control: in a core module, and the same in a command, which may."""
    text = "def f():\n    from argparse import Namespace\n    print(Namespace)\n"
    for name in ("core.py", "commands/some.py", "runtime/decode/loop.py"):
        (tmp_path / "hetero_sd" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hetero_sd" / name).write_text(text)
    assert reads_options(tmp_path) == ["hetero_sd/core.py", "hetero_sd/runtime/decode/loop.py"]
    assert prints(tmp_path) == ["hetero_sd/core.py:3"]


def test_siblings_are_ours() -> None:
    import costmodel
    import hetero_sd
    import passes
    import targets

    for module in (targets, costmodel, passes, hetero_sd):
        assert Path(str(module.__file__)).resolve().parent.parent == ROOT


def test_runtime_imports_what_a_device_has() -> None:
    for path in sorted((ROOT / "hetero_sd" / "runtime").rglob("*.py")):
        for name in imported(path):
            top = name.split(".")[0]
            inside = name == "hetero_sd.runtime" or name.startswith("hetero_sd.runtime.")
            allowed = inside or top in RUNTIME_MAY_IMPORT or top in sys.stdlib_module_names
            assert allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("package", ["targets", "costmodel", "hetero_sd.runtime"])
def test_imports_without_tvm(package: str) -> None:
    """The device and the cost model need the first two where TVM's compiler is not installed; the third chooses the
    number of threads before TVM is imported."""
    code = (
        "import sys, pkgutil, importlib\n"
        "sys.modules['tvm'] = None\n"
        f"import {package}\n"
        f"skip = ('targets.kernels', 'targets.cpu.kernels', 'targets.opencl.kernels')\n"
        f"for m in pkgutil.walk_packages({package}.__path__, '{package}.'):\n"
        "    if not m.name.startswith(skip): importlib.import_module(m.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
