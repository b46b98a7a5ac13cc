"""Where compiled GPU kernels are kept between starts; the OpenCL runtime itself reads and writes them."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def cache_folder() -> Path | None:
    """Return $HSD_OPENCL_CACHE, else $XDG_CACHE_HOME/hetero_sd/opencl, else ~/.cache/hetero_sd/opencl, else None."""
    stated = os.environ.get("HSD_OPENCL_CACHE")
    if stated is not None:
        return Path(stated) if stated else None
    xdg, home = os.environ.get("XDG_CACHE_HOME", ""), os.environ.get("HOME", "")
    if xdg.startswith("/"):
        return Path(xdg) / "hetero_sd" / "opencl"
    return Path(home) / ".cache" / "hetero_sd" / "opencl" if home.startswith("/") else None


def writable(folder: Path) -> bool:
    """Whether files can be made in ``folder``, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def use_cache(folder: Path) -> None:
    """Keep them in ``folder``, for the runtime that is loaded after; one that cannot be written is no error."""
    os.environ["HSD_OPENCL_CACHE"] = str(folder.absolute())
    if not writable(folder):
        text = f"--cache-dir {folder} cannot be written: GPU kernels that are not in it are compiled at every start"
        print(f"run.py: note: {text}", file=sys.stderr)
