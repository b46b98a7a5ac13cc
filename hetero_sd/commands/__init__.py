"""The command line: one file a subcommand, `add_parser` and `run`; argparse on one side, a request on the other."""

from __future__ import annotations
