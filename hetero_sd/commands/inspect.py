"""`hetero-sd inspect`: what an ONNX file is and whether it compiles, or what a bundle is."""

from __future__ import annotations

import argparse
from pathlib import Path

from hetero_sd.commands.parser import Subparsers, add_variant, fetch_models, subcommand
from hetero_sd.runtime.manifest import MANIFEST
from targets.errors import UserError

EXAMPLE = """\
example:
  hetero-sd inspect target/model.onnx
  hetero-sd inspect hf:onnx-community/Qwen2.5-0.5B-Instruct --variant q4

  hetero-sd inspect bundle

Shows family, sizes, cache, what each import pass matched, and what is refused. Exit code 1 if it does not compile.
Of a bundle: its board and plan, and where each model runs, its KV cache, slots and prompt chunks.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand and its options."""
    p = subcommand(subparsers, "inspect", "what an ONNX file is and whether it compiles, or what a bundle is", EXAMPLE)
    p.add_argument("model", metavar="FILE.onnx|DIR", type=Path, help="the export, or a bundle that `compile` made")
    add_variant(p)
    p.add_argument(
        "--context", metavar="N", type=int, help="tokens to check it for (default 1024, fewer if the model ends before)"
    )
    p.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(options: argparse.Namespace) -> int:
    """Import the file, and print what was found; 1 where it does not compile."""
    if (options.model / MANIFEST).is_file():
        return _run_bundle(options)
    from hetero_sd.inspect import InspectRequest, inspect
    from hetero_sd.inspect_text import inspect_json, inspect_text

    fetch_models(options, "model", quiet=options.json)
    found = inspect(InspectRequest(options.model, options.context))
    print(inspect_json(found) if options.json else inspect_text(found))
    return 1 if found.refused else 0


def _run_bundle(options: argparse.Namespace) -> int:
    """Print what a bundle is."""
    from hetero_sd.inspect_bundle import bundle_json, bundle_text, inspect_bundle

    for option, value in (("--context", options.context), ("--variant", options.variant)):
        if value is not None:
            raise UserError(f"{option} {value}: {options.model} is a bundle, which was compiled already; leave it out")
    found = inspect_bundle(options.model)
    print(bundle_json(found) if options.json else bundle_text(found))
    return 0
