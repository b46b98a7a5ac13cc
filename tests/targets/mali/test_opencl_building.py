from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from requirements import need, need_program

from targets import elf
from targets.errors import UserError
from targets.mali import opencl_runtime
from targets.mali.opencl_runtime import building

SOURCES = opencl_runtime.SOURCES


def test_library_for_this_machine_loads_on_old_systems(runtime_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert elf.machine(runtime_library) == opencl_runtime.machine()
    assert building.newer_than_oldest(runtime_library) == []
    monkeypatch.setattr(building, "OLDEST_GLIBCXX", (3, 4, 20))  # the check can fail
    assert building.newer_than_oldest(runtime_library) == ["GLIBCXX_3.4.21"]


def test_symbols_stay_inside(runtime_library: Path) -> None:
    command = [need_program("nm"), "-D", "--defined-only", runtime_library]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if " A " not in line] == []


def test_no_compiler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no C\+\+ compiler for x86-64 .*: apt-get install g\+\+$") as caught:
        opencl_runtime.build(tmp_path / "out", target="x86-64")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="apt-get install g\\+\\+-aarch64-linux-gnu"):
        opencl_runtime.build(tmp_path / "out", target="aarch64")
    with pytest.raises(UserError, match="for x86-64 and aarch64, not riscv64"):
        opencl_runtime.build(tmp_path / "out", target="riscv64")
    assert not (tmp_path / "out").exists()


def test_failed_compilation_leaves_nothing(tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'x.cc:1: error: no' >&2\nexit 1\n")
    compiler.chmod(0o755)
    with pytest.raises(UserError, match=r"failed to build the OpenCL runtime: x\.cc:1: error: no"):
        opencl_runtime.build(tmp_path / "out", str(compiler), "x86-64")
    assert list((tmp_path / "out").iterdir()) == []


def test_cache_key_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = opencl_runtime.build_key("x86-64")
    assert opencl_runtime.build_key("aarch64") != before
    shutil.copytree(SOURCES, tmp_path / "src")
    monkeypatch.setattr(opencl_runtime, "SOURCES", tmp_path / "src")
    assert opencl_runtime.build_key("x86-64") == before
    with (tmp_path / "src" / "api.cc").open("a") as file:
        file.write("\n")
    assert opencl_runtime.build_key("x86-64") != before


def test_autoload_is_quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HSD_OPENCL_RUNTIME", str(tmp_path / "absent.so"))
    opencl_runtime.autoload()
    monkeypatch.delenv("HSD_OPENCL_RUNTIME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert opencl_runtime.find() is None
    opencl_runtime.autoload()
    assert list(tmp_path.iterdir()) == []  # nothing was built


def declared() -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """What abi.h says: constants, and functions as (return type, parameters)."""
    text = (SOURCES / "abi.h").read_text().replace("\\\n", " ")
    constants = dict(re.findall(r"X\((CL_\w+), ([^)]+)\)", text))
    status, handle = text.split("CL_STATUS_FUNCTIONS(X)")[1].split("CL_HANDLE_FUNCTIONS(X)")
    handle, optional = handle.split("CL_OPTIONAL_FUNCTIONS(X)")
    optional, extension = optional.split("CL_EXTENSION_FUNCTIONS(X)")
    functions = {}
    for line in re.findall(r"X\((cl\w+,.*?)\)(?=\s+X\(|\s*\n)", status):
        name, parameters = line.split(",", 1)
        functions[name] = ("cl_int", parameters)
    for part, last in ((handle, ", cl_int*"), (optional, ""), (extension, ", cl_int*")):
        for line in re.findall(r"X\((cl\w+,.*?)\)(?=\s+X\(|\s*\n)", part):
            name, returned, parameters = line.split(",", 2)
            functions[name] = (returned.strip(), parameters + last)
    return constants, functions


def test_declarations_agree_with_khronos(tmp_path: Path) -> None:
    """abi.h against Debian's opencl-c-headers, by the compiler."""
    need(Path("/usr/include/CL/cl.h").is_file(), "no CL/cl.h")
    constants, functions = declared()
    assert len(constants) > 35
    assert len(functions) == 35
    checks = [f"static_assert((long long)({name}) == (long long)({value}));" for name, value in constants.items()]
    checks += [
        f"static_assert(std::is_same_v<decltype(&{name}), {returned} (*)({parameters})>);"
        for name, (returned, parameters) in functions.items()
    ]
    headers = "".join(f"#include <{name}>\n" for name in ("CL/cl.h", "CL/cl_ext.h", "cstdint", "type_traits"))
    head = f"#define CL_TARGET_OPENCL_VERSION 120\n{headers}"
    program = tmp_path / "check.cc"
    command = ["g++", "-std=c++17", "-fsyntax-only", "-w", str(program)]
    program.write_text(head + "\n".join(checks))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    program.write_text(head + "\n".join(checks).replace("== (long long)(-54)", "== (long long)(-53)"))
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
