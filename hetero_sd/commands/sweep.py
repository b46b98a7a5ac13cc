"""`hetero-sd sweep`: predictions for many pairs, boards, KV caches, acceptances and contexts, as CSV."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from hetero_sd.commands.parser import Subparsers, add_variant, subcommand
from hetero_sd.early_exit import SCHEME, EarlyExit
from hetero_sd.predict.request import DEFAULT_ALPHA, DEFAULT_CONTEXT, LARGEST_CONTEXT
from hetero_sd.sweep import SweepRequest, sweep, to_csv
from targets.boards import board_names, load_board
from targets.errors import UserError
from targets.files import check_writable, write_text
from targets.kv_format import DEFAULT_KV, KV_FORMATS

EXAMPLE = """\
example:
  hetero-sd sweep --pair 3b/config.json,1b/config.json --board imx95,rk3588 --alpha 0.6,0.7,0.8 --out sweep.csv
  hetero-sd sweep --pair 3b/config.json,1b/config.json --board rk3588 --alpha 0.3,0.4,0.5,0.6,0.7,0.8,0.9 \\
    --context 128,512,2048,4096 --kv float32,float16 --out sweep.csv --report sweep.html
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand and its options."""
    p = subcommand(subparsers, "sweep", "many predictions as a table", EXAMPLE)
    p.add_argument(
        "--pair",
        metavar="TARGET[,DRAFT]",
        action="append",
        required=True,
        help=f"model.onnx or config.json of each, the drafter {SCHEME}K, too (repeatable)",
    )
    add_variant(p)
    p.add_argument("--board", metavar="B[,B]", required=True, help=f"{', '.join(board_names())}, or board files")
    p.add_argument("--alpha", metavar="P[,P]", default=str(DEFAULT_ALPHA), help="acceptances (default 0.8)")
    p.add_argument("--context", metavar="N[,N]", default=str(DEFAULT_CONTEXT), help="contexts (default 512)")
    p.add_argument("--weights", metavar="F[,F]", default="float16", help="formats of a config.json's weights")
    p.add_argument("--kv", metavar="F[,F]", default=DEFAULT_KV, help=f"of the KV cache: {', '.join(KV_FORMATS)}")
    p.add_argument("--out", metavar="FILE.csv", type=Path, required=True, help="the table")
    p.add_argument(
        "--report",
        metavar="FILE.html",
        type=Path,
        help="a page, too: maps over acceptance and context, one a board and KV cache",
    )
    p.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Predict every point, and write the table."""
    from rich.console import Console
    from rich.progress import track

    from hetero_sd.compile.hub import files_of
    from hetero_sd.progress import Progress

    for path in (options.out, options.report):
        if path is not None:
            check_writable(path)
    request, console = request_of(options), Console(stderr=True)
    console.quiet = options.quiet or not console.is_terminal  # elsewhere the bar leaves an empty line
    for name in request.boards:
        load_board(name, measure=False)  # before anything is fetched
    models = files_of([m for pair in request.pairs for m in pair], options.variant, Progress(quiet=options.quiet))
    request = replace(request, pairs=tuple(zip(models[::2], models[1::2], strict=True)))
    rows = sweep(request, lambda points: track(points, "  predict", console=console, transient=True))
    write_text(options.out, to_csv(rows))
    if options.report is not None:
        from hetero_sd.predict.sweep_page import sweep_page

        write_text(options.report, sweep_page(rows))
    print(f"{len(rows)} points in {options.out}")
    return 0


def request_of(options: argparse.Namespace) -> SweepRequest:
    """The request that the options make.

    Raises:
        UserError: a list holds something else than it should.
    """
    return SweepRequest(
        pairs=tuple(_pair(text) for text in options.pair),
        boards=tuple(options.board.split(",")),
        alphas=tuple(_numbers(options.alpha, "--alpha", 0.0, 1.0)),
        contexts=tuple(int(c) for c in _numbers(options.context, "--context", 1, LARGEST_CONTEXT, whole=True)),
        weights=tuple(options.weights.split(",")),
        kvs=tuple(options.kv.split(",")),
    )


def _pair(text: str) -> tuple[Path, Path | EarlyExit | None]:
    target, *drafts = text.split(",")
    if len(drafts) > 1:
        raise UserError(f"--pair {text!r}: give TARGET or TARGET,DRAFT")
    try:
        return Path(target), (EarlyExit.named(drafts[0]) or Path(drafts[0])) if drafts else None
    except ValueError as error:
        raise UserError(f"--pair: {error}") from None


def _numbers(text: str, option: str, low: float, high: float, whole: bool = False) -> list[float]:
    values = []
    for part in text.split(","):
        try:
            value = float(int(part)) if whole else float(part)
        except ValueError:
            raise UserError(f"{option} {part!r} is not a {'whole ' if whole else ''}number") from None
        if not low <= value <= high:
            raise UserError(f"{option} {part} must lie between {low:.10g} and {high:.10g}")
        values.append(value)
    return values
