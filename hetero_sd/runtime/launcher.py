"""The text of ``DIR/run.py``, the command a user runs on the device.

On another machine it says so before it imports anything: what lies in ``site/`` is compiled for the device, too. Before
it imports anything of the bundle, the functions of trust.py, which it carries, compare the code with the manifest.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from targets.memory import is_short

_MACHINES = {"aarch64": ("aarch64", "arm64"), "x86-64": ("x86_64", "amd64")}  # as `uname -m` and Python say


def launcher(isa: str, board: str) -> str:
    """The script of a bundle for an instruction set, ``aarch64`` or ``x86-64``, and a board's name."""
    text = _LAUNCHER.replace("MACHINES", repr(_MACHINES[isa])).replace("BOARD", repr(f"{isa} (board {board})"))
    _, _, trust = Path(__file__).with_name("trust.py").read_text("utf-8").partition(_TRUST_BEGINS)
    text = text.replace("IS_SHORT", inspect.getsource(is_short)).replace("LEAST_BYTES", f"({_LEAST_BYTES >> 20} << 20)")
    return text.replace("TRUST", trust.strip())


_LEAST_BYTES = 192 << 20  # of address space: Python, numpy, TVM's runtime and the tokenizers
_TRUST_BEGINS = "from __future__ import annotations\n"
_LAUNCHER = '''\
#!/usr/bin/env python3
"""Run the models of this folder: python run.py --help."""

from __future__ import annotations

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", sys.flags.isolated):
    del sys.path[0]  # this folder, in which nothing was compared yet

import platform
import shlex

if platform.machine().lower() not in MACHINES:
    what = "run.py: error: this bundle is for " + BOARD
    sys.exit(print(f"{what}, this machine is {platform.machine()}: copy it to the board", file=sys.stderr) or 2)


IS_SHORT

if is_short(LEAST_BYTES):
    what = f"out of memory: the system allows this process less than the {LEAST_BYTES >> 20} MiB that it begins with"
    sys.exit(print(f"run.py: error: {what}", file=sys.stderr) or 2)

sys.dont_write_bytecode = True  # the folder may be read-only
sys.pycache_prefix = "/dev/null"  # and what lies in a __pycache__ of it is not compared: none is read

TRUST


here = Path(__file__).resolve().parent
try:
    for key in stated_keys(sys.argv[1:]):
        check_signature(here, key)
    check_code(here)
except BundleRefused as error:
    print(f"run.py: error: {error}", file=sys.stderr)
    sys.exit(2)
for name in FOLDERS:
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
    if is_short(LEAST_BYTES >> 1):
        sys.exit(print(f"run.py: error: out of memory (starting): {reason}", file=sys.stderr) or 2)
    print(f"run.py: internal error (starting): {reason}; HSD_DEBUG=1 shows the traceback", file=sys.stderr)
    sys.exit(70)
'''
