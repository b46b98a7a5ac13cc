"""`hetero-sd doctor`: what this machine has, what is missing, and what fixes it."""

from __future__ import annotations

import argparse
from pathlib import Path

from hetero_sd.commands.parser import Subparsers, subcommand

EXAMPLE = """\
example:
  hetero-sd doctor            (on the device: python bundle/run.py --doctor)

Exit code 1 if there is a problem.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand and its options."""
    p = subcommand(subparsers, "doctor", "what this machine has, what is missing, and what fixes it", EXAMPLE)
    p.add_argument("bundle", metavar="DIR", type=Path, nargs="?", help="also look at the file system of this bundle")
    p.add_argument("--opencl-lib", metavar="FILE", help="the OpenCL library to open (default: the usual names)")
    p.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(options: argparse.Namespace) -> int:
    """Look, and print the findings; 1 where one is a problem."""
    from hetero_sd.runtime.doctor.doctor import doctor_report

    text, code = doctor_report(options.bundle, options.opencl_lib, options.json)
    print(text)
    return code
