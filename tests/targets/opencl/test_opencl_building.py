from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from requirements import need, need_program

from targets import elf, zig
from targets.errors import UserError
from targets.opencl import runtime as opencl_runtime
from targets.opencl.runtime import building

SOURCES = opencl_runtime.SOURCES


def test_library_for_this_machine_loads_on_old_systems(runtime_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert elf.machine(runtime_library) == opencl_runtime.machine()
    assert building.newer_than_oldest(runtime_library) == []
    monkeypatch.setattr(building, "OLDEST_GLIBC", (2, 2))  # the check can fail
    assert "GLIBC_2.2.5" in building.newer_than_oldest(runtime_library)


def test_symbols_stay_inside(runtime_library: Path) -> None:
    command = [need_program("nm"), "-D", "--defined-only", runtime_library]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if " A " not in line] == []


def test_no_compiler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="for x86-64 and aarch64, not riscv64"):
        opencl_runtime.build(tmp_path / "out", target="riscv64")
    monkeypatch.setattr(zig, "has_zig", lambda: False)
    with pytest.raises(UserError, match="nothing compiles for aarch64 here: pip install ziglang") as caught:
        opencl_runtime.build(tmp_path / "out", target="aarch64")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Build from a copy of the headers and one source, with something added to that."""

    def change(name: str, text: str) -> None:
        others = [path.name for path in SOURCES.glob("*.cc") if path.name != name]
        shutil.copytree(SOURCES, tmp_path / "src", ignore=shutil.ignore_patterns(*others))
        with (tmp_path / "src" / name).open("a") as file:
            file.write(text)
        monkeypatch.setattr(building, "SOURCES", tmp_path / "src")

    return change


@pytest.mark.slow
def test_failed_compilation_leaves_nothing(tmp_path: Path, changed: Callable[[str, str], None]) -> None:
    changed("sha256.cc", "int broken = ;\n")
    with pytest.raises(UserError, match=r"failed to build the OpenCL runtime: .*sha256\.cc:\d+:\d+: error: ") as caught:
        opencl_runtime.build(tmp_path / "out", opencl_runtime.machine())
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_both_machines_without_any_compiler_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh machine: no g++, no cross compiler, no linker. The same bytes each time, loadable by old systems."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for target in building.TARGETS:
        first, second = (opencl_runtime.build(tmp_path / where / target, target) for where in ("a", "another folder"))
        assert first.read_bytes() == second.read_bytes()
        assert str(tmp_path).encode() not in first.read_bytes()
        assert elf.machine(first) == target
        assert building.newer_than_oldest(first) == []
        assert set(elf.needed_versions(first)) >= {"libstdc++.so.6", "libgcc_s.so.1"}  # exceptions are TVM's, too


@pytest.mark.slow
def test_an_exception_machinery_of_its_own_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: linked as Zig does it by itself, TVM could not catch what the runtime throws."""
    (tmp_path / "src").mkdir()
    for name in ("exceptions.cc", "exports.map"):
        shutil.copyfile(SOURCES / name, tmp_path / "src" / name)
    throws = '#include <stdexcept>\n[[gnu::constructor]] void f() { throw std::runtime_error("x"); }\n'
    (tmp_path / "src" / "throws.cc").write_text(throws)
    monkeypatch.setattr(building, "SOURCES", tmp_path / "src")
    built = opencl_runtime.build(tmp_path / "with the stand-ins", opencl_runtime.machine())
    assert set(elf.needed_versions(built)) >= {"libstdc++.so.6", "libgcc_s.so.1"}
    (tmp_path / "src" / "exceptions.cc").unlink()
    monkeypatch.setattr(building, "_stand_in", lambda *given: "-lm")
    with pytest.raises(UserError, match=r"linked without libgcc_s\.so\.1 and libstdc\+\+\.so\.6"):
        opencl_runtime.build(tmp_path / "out", opencl_runtime.machine())
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
    command = [*zig.zig("c++", opencl_runtime.machine()), "-isystem/usr/include", "-std=c++17", "-w", "-c"]
    command = [*command, str(program), "-o", str(tmp_path / "check.o")]
    program.write_text(head + "\n".join(checks))
    environment = zig.zig_environment(str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    program.write_text(head + "\n".join(checks).replace("== (long long)(-54)", "== (long long)(-53)"))
    assert subprocess.run(command, capture_output=True, check=False, env=environment).returncode != 0
