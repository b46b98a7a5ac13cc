"""How a wheel of this project is built: setuptools, and the OpenCL runtime compiled for x86-64 and AArch64.

A wheel carries both libraries, because a host puts the board's one into bundles. They are compiled with Zig against the
headers of the TVM wheel; both packages are therefore asked for when a wheel is built, and not for an editable install.
Where that fails the wheel lacks the library and the build says so; ``HSD_WHEEL_LIBRARIES=require`` makes it an error,
as for a release. No binary is part of the repository.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import tomllib
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that stay as they are)
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
COMPILED_WITH = ("apache-tvm", "ziglang")


def get_requires_for_build_wheel(config_settings: dict[str, str] | None = None) -> list[str]:
    """Ask for the TVM that the project depends on, whose wheel has the headers, and for the compiler."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    needed = [name for name in dependencies if name.startswith(COMPILED_WITH)]
    return [*build_meta.get_requires_for_build_wheel(config_settings), *needed]


class BuildWithRuntime(build_py):
    """The packages, and ``targets/opencl/runtime/lib/TARGET`` beside them; an editable install gets none."""

    def run(self) -> None:
        """Copy the packages, then compile into the copy."""
        super().run()
        if not self.editable_mode:
            self._build_runtime(Path(self.build_lib) / "targets" / "opencl" / "runtime" / "lib")

    def _build_runtime(self, folder: Path) -> None:
        sys.path.insert(0, str(ROOT))
        from targets.errors import UserError
        from targets.opencl import runtime as opencl_runtime
        from targets.opencl.runtime.building import TARGETS

        for target in TARGETS:
            print(f"compiling the OpenCL runtime for {target}", file=sys.stderr)
            try:
                opencl_runtime.build(folder / target, target=target)
            except UserError as error:
                if os.environ.get("HSD_WHEEL_LIBRARIES") == "require":
                    raise SystemExit(f"error: {error}") from None
                print(f"warning: this wheel has no OpenCL runtime for {target}: {error}", file=sys.stderr)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Name the libraries too, so that an uninstall removes them."""
        built = Path(self.build_lib).glob("targets/opencl/runtime/lib/*/*.so")
        return [*super().get_outputs(include_bytecode), *map(str, built)]
