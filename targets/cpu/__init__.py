"""Arm Cortex-A: the table of cores, their TVM targets, the cross linker and the kernels.

Importing this package does not import tvm; ``target``, ``linker`` and ``kernels`` do when they are used.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from targets.device import Core
from targets.errors import UserError
from targets.provenance import Provenance, read_table

_TABLE = Path(__file__).with_name("cores.toml")


@functools.cache
def core_tables() -> dict[str, Any]:
    """The fact tables of the known cores, by name, as ``cores.toml`` holds them."""
    import tomllib

    return tomllib.loads(_TABLE.read_text(encoding="utf-8"))


def core_names() -> list[str]:
    """Names of the known cores, sorted."""
    return sorted(core_tables())


def core(name: str) -> Core:
    """A known core.

    Raises:
        UserError: no core of that name; the known ones are listed.
    """
    if name not in core_tables():
        raise UserError(f"core {name!r} is not known; known cores: {', '.join(core_names())}")
    provenance: dict[str, Provenance] = {}
    return read_table(Core, core_tables()[name], "core", _TABLE.name, provenance)
