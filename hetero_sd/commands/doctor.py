"""`hetero-sd doctor`: what this machine has, what is missing, and what fixes it."""

from __future__ import annotations

import argparse
from pathlib import Path

from hetero_sd.commands.parser import Subparsers, subcommand
from targets.errors import UserError

EXAMPLE = """\
example:
  hetero-sd doctor            (on the device: python bundle/run.py --doctor)
  hetero-sd doctor bundle --on pi@rpi5

Exit code 1 if there is a problem.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand and its options."""
    p = subcommand(subparsers, "doctor", "what this machine has, what is missing, and what fixes it", EXAMPLE)
    p.add_argument("bundle", metavar="DIR", type=Path, nargs="?", help="also look at this bundle and its file system")
    p.add_argument("--opencl-lib", metavar="FILE", help="the OpenCL library to open (default: the usual names)")
    p.add_argument("--on", metavar="USER@BOARD", help="copy the bundle to this board by ssh and look there")
    p.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(options: argparse.Namespace) -> int:
    """Look, and print the findings; 1 where one is a problem."""
    if options.on is not None:
        return _run_there(options)
    from hetero_sd.runtime.doctor.doctor import doctor_report
    from hetero_sd.runtime.manifest import MANIFEST

    folder = options.bundle
    if folder is not None and not (folder / MANIFEST).is_file():  # a damaged bundle is looked at, what is none is not
        reason = f"it has no {MANIFEST}" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{folder} is no bundle: {reason}")
    text, code = doctor_report(options.bundle, options.opencl_lib, options.json)
    print(text)
    return code


def _run_there(options: argparse.Namespace) -> int:
    """Let the bundle look at a board."""
    from hetero_sd.on_board.copy import copy_bundle
    from hetero_sd.on_board.ssh import Board
    from hetero_sd.progress import Progress
    from hetero_sd.runtime.manifest import Bundle

    board = Board(options.on)
    if options.bundle is None:
        raise UserError("--on needs a bundle, whose run.py looks at the board: give its folder")
    folder = copy_bundle(board, Bundle(options.bundle), Progress(quiet=options.json))
    library = [] if options.opencl_lib is None else ["--opencl-lib", options.opencl_lib]
    return board.run(["python3", "run.py", "--doctor", *library, *(["--json"] if options.json else [])], folder)
