"""Where compiled GPU kernels are kept between starts; the OpenCL runtime itself reads and writes them.

It uses a folder only where it belongs to the user and nobody else can write it (src/binary_cache.h says why); what is
said of a folder here follows the same rule.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from targets.files import make_private, not_private


def cache_folder() -> Path | None:
    """Return $HSD_OPENCL_CACHE, else $XDG_CACHE_HOME/hetero_sd/opencl, else ~/.cache/hetero_sd/opencl, else None."""
    stated = os.environ.get("HSD_OPENCL_CACHE")
    if stated is not None:
        return Path(stated) if stated else None
    xdg, home = os.environ.get("XDG_CACHE_HOME", ""), os.environ.get("HOME", "")
    if xdg.startswith("/"):
        return Path(xdg) / "hetero_sd" / "opencl"
    return Path(home) / ".cache" / "hetero_sd" / "opencl" if home.startswith("/") else None


def why_not_usable(folder: Path) -> str | None:
    """Why nothing is kept in ``folder``, which is made if need be; None where it is."""
    try:
        make_private(folder)
        if (reason := not_private(folder)) is not None:
            return f"{reason} and is not used"
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError:
        return f"{folder} cannot be written"


def use_cache(folder: Path) -> None:
    """Keep them in ``folder``, for the runtime that is loaded after; one that cannot be used is no error."""
    os.environ["HSD_OPENCL_CACHE"] = str(folder.absolute())
    if (reason := why_not_usable(folder)) is not None:
        text = f"--cache-dir {reason}: GPU kernels that are not in it are compiled at every start"
        print(f"run.py: note: {text}", file=sys.stderr)
