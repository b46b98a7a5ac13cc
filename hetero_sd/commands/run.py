"""`hetero-sd run`: a bundle runs on a board that ssh reaches."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hetero_sd.commands.parser import Subparsers, subcommand

EXAMPLE = """\
example:
  hetero-sd run --on pi@rpi5 bundle -- --prompt "The dog sleeps." --stats
  hetero-sd run --on ssh://root@10.0.0.7:2222 bundle

The bundle is copied to ~/hetero_sd/NAME there first; files that are there with the right hash are not copied again.
What stands behind -- is for run.py on the board, whose files are the board's; `python bundle/run.py --help` lists it.
Exit codes are run.py's.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand and its options."""
    p = subcommand(subparsers, "run", "copy a bundle to a board by ssh and run it there", EXAMPLE)
    p.hint = ": options of run.py stand behind --"
    p.add_argument("bundle", metavar="DIR", type=Path, help="what `compile` made")
    p.add_argument("arguments", metavar="-- ARGUMENT", nargs="*", help="options of run.py")
    p.add_argument("--on", metavar="USER@BOARD", required=True, help="the board, as ssh knows it")


def run(options: argparse.Namespace) -> int:
    """Copy what is missing and run it; run.py's exit code."""
    from hetero_sd.on_board.copy import copy_bundle
    from hetero_sd.on_board.ssh import Board
    from hetero_sd.progress import Progress
    from hetero_sd.runtime.manifest import Bundle

    board = Board(options.on)
    folder = copy_bundle(board, Bundle(options.bundle), Progress())
    sys.stdout.flush()
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    return board.run(["python3", "run.py", *options.arguments], folder, terminal)
