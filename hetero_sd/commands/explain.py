"""`hetero-sd explain`: what each kernel of an entry point moves, and how it is cut."""

from __future__ import annotations

import argparse
from pathlib import Path

from hetero_sd.commands.parser import Subparsers, add_variant, fetch_models, subcommand
from hetero_sd.runtime.manifest import MANIFEST
from targets.boards import board_names, load_board
from targets.errors import UserError

EXAMPLE = """\
example:
  hetero-sd explain target/model.onnx --board rk3588 --place gpu --width 5

`moved` counts every load and store that the kernels issue, `needed` each byte once: caches decide how much of the
difference reaches the DRAM. Nothing is measured and no weight is read.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand and its options."""
    p = subcommand(subparsers, "explain", "what each kernel moves, and how it is cut", EXAMPLE)
    p.add_argument("model", metavar="MODEL.onnx", type=Path, help="the export")
    add_variant(p)
    p.add_argument(
        "--board", metavar="NAME|PATH.toml", required=True, help=f"{', '.join(board_names())}, or a board file"
    )
    p.add_argument("--place", metavar="WHERE", default="cpu", help="cpu, gpu, gpu:0-3, gpu:ffn, ... (default cpu)")
    p.add_argument("--width", metavar="N", type=int, default=1, help="new tokens of the step (default 1)")
    p.add_argument("--past", metavar="N", type=int, help="tokens in the cache before (default: half the context)")
    p.add_argument("--context", metavar="N", type=int, help="tokens the cache holds (default 1024 at most)")
    p.add_argument("--prefill", action="store_true", help="a prompt chunk: the head computes one row only")
    p.add_argument("--json", action="store_true", help="print everything, by buffer, as JSON")


def run(options: argparse.Namespace) -> int:
    """Lower the model, and print the table."""
    from hetero_sd.explain import ExplainRequest, explain
    from hetero_sd.explain_text import explain_json, explain_text

    if (options.model / MANIFEST).is_file():
        inspect = f"`hetero-sd inspect {options.model}` says how it is stored"
        raise UserError(f"{options.model} is a bundle: give the .onnx file that it was compiled from; {inspect}")
    load_board(options.board, measure=False)  # before anything is fetched
    fetch_models(options, "model", quiet=options.json)
    request = ExplainRequest(
        model=options.model,
        board=options.board,
        place=options.place,
        width=options.width,
        past=options.past,
        context=options.context,
        prefill=options.prefill,
    )
    found = explain(request)
    print(explain_json(found) if options.json else explain_text(found))
    return 0
