"""The text of ``DIR/run.py``, the command a user runs on the device.

On another machine it says so before it imports anything: what lies in ``site/`` is compiled for the device, too.
"""

from __future__ import annotations

_MACHINES = {"aarch64": ("aarch64", "arm64"), "x86-64": ("x86_64", "amd64")}  # as `uname -m` and Python say


def launcher(isa: str, board: str) -> str:
    """The script of a bundle for an instruction set, ``aarch64`` or ``x86-64``, and a board's name."""
    return _LAUNCHER.replace("MACHINES", repr(_MACHINES[isa])).replace("BOARD", repr(f"{isa} (board {board})"))


_LAUNCHER = '''\
#!/usr/bin/env python3
"""Run the models of this folder: python run.py --help."""

import platform
import shlex
import sys

if platform.machine().lower() not in MACHINES:
    what = "run.py: error: this bundle is for " + BOARD
    sys.exit(print(f"{what}, this machine is {platform.machine()}: copy it to the board", file=sys.stderr) or 2)

sys.dont_write_bytecode = True  # the folder may be read-only

from pathlib import Path

here = Path(__file__).resolve().parent
for name in ("site", "python"):
    if (here / name).is_dir():
        sys.path.insert(0, str(here / name))

try:
    from hetero_sd.runtime.run import main

    sys.exit(main(here))
except KeyboardInterrupt:
    sys.exit(130)
except ModuleNotFoundError as error:
    listed = shlex.quote(str(here / "requirements.txt"))
    print(f"run.py: error: no module {error.name}: pip install -r {listed}", file=sys.stderr)
    sys.exit(2)
except Exception as error:
    import os

    if os.environ.get("HSD_DEBUG", "0") not in ("", "0"):
        raise
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    print(f"run.py: internal error (starting): {reason}; HSD_DEBUG=1 shows the traceback", file=sys.stderr)
    sys.exit(70)
'''
