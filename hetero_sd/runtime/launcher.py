"""The text of ``DIR/run.py``, the command a user runs on the device."""

from __future__ import annotations

LAUNCHER = '''\
#!/usr/bin/env python3
"""Run the models of this folder: python run.py --help."""

import sys

sys.dont_write_bytecode = True  # the folder may be read-only

from pathlib import Path

here = Path(__file__).resolve().parent
for name in ("site", "python"):
    if (here / name).is_dir():
        sys.path.insert(0, str(here / name))

from hetero_sd.runtime.run import main

if __name__ == "__main__":
    sys.exit(main(here))
'''
