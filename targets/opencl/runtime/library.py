"""What the library is called, where its source lies, and how a machine's architecture is named."""

from __future__ import annotations

import platform
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "src"
LIBRARY = "libhetero_sd_opencl.so"


def machine() -> str:
    """Return the architecture of this process as a folder name: ``x86-64`` or ``aarch64`` (else what Python says)."""
    return {"x86_64": "x86-64", "amd64": "x86-64", "arm64": "aarch64"}.get(
        platform.machine().lower(), platform.machine()
    )
