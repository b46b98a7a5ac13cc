"""`hetero-sd calibrate`: what was measured, on a device or here, becomes a board file and fitted factors."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from costmodel.fit import Fit
from hetero_sd.calibrate import Calibrated, CalibrateRequest, calibrate, residuals, to_toml
from hetero_sd.commands.parser import Subparsers, add_draft, add_variant, fetch_models, subcommand
from targets.boards import board_names, load_board
from targets.errors import UserError
from targets.files import check_writable, write_text

_MOST_ROWS = 12

EXAMPLE = """\
example:
  python bundle/run.py --calibrate measured.json            # on the device
  hetero-sd calibrate measured.json --target target/model.onnx --board imx95 --out my-imx95.toml
  hetero-sd predict target/model.onnx --board my-imx95.toml
  hetero-sd calibrate bundle --on pi@rpi5 --target target/model.onnx --out my-rpi5.toml   # all three by ssh
  hetero-sd calibrate --board host                          # this machine, in about a minute
  hetero-sd calibrate bundle --board host --target target/model.onnx --draft draft/model.onnx

Without MEASURED.json this machine is measured, with the steps of a bundle or of two small models compiled for it.
What is written then is what --board host takes from now on, and the bundle's plan is made again with it.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand and its options."""
    p = subcommand(subparsers, "calibrate", "fit the cost model to a device", EXAMPLE)
    p.add_argument(
        "measured", metavar="MEASURED.json|DIR", type=Path, nargs="*", help="files of run.py --calibrate, or a bundle"
    )
    p.add_argument("--target", metavar="TARGET", type=Path, help="the bundle's target, as compiled")
    add_draft(p, "--draft", "DRAFT", "the bundle's drafter")
    add_variant(p)
    p.add_argument("--on", metavar="USER@BOARD", help="copy the bundle to this board by ssh, and measure there")
    p.add_argument(
        "--board",
        metavar="NAME|PATH.toml",
        help=f"{', '.join(board_names())}, or a file (with --on: by default the bundle's)",
    )
    p.add_argument("--cluster", metavar="NAME", help="where it ran (default: the one with the most bandwidth)")
    p.add_argument(
        "--out",
        metavar="BOARD.toml",
        type=Path,
        help="the calibrated board file (where this machine is measured, by default the one that --board host takes)",
    )
    p.add_argument("--json", action="store_true", help="print factors and residuals as JSON")


def run(options: argparse.Namespace) -> int:
    """Fit, write the board file and the factors beside it, and print how well they fit."""
    if options.out is not None and options.out.suffix != ".toml":
        raise UserError(f"--out {options.out}: a board file's name ends in .toml")
    if options.on is None and options.board is None:
        raise UserError("--board NAME|PATH.toml is missing: where the fit starts")
    for path in _outputs(options):
        check_writable(path)
    if options.board is not None:
        load_board(options.board, measure=False)  # before anything is fetched
    fetch_models(options, "target", "draft", quiet=options.json)
    if options.on is None and (not options.measured or options.measured[0].is_dir()):
        return _run_here(options)
    if options.on is not None and len(options.measured) != 1:
        raise UserError("--on needs one bundle: give its folder")
    if options.target is None or options.out is None:
        what = "files of run.py --calibrate need" if options.on is None else "--on needs"
        raise UserError(f"{what} --target TARGET and --out BOARD.toml")
    result = _fitted(options)
    factors = result.factors_json()
    for path, text in zip(
        _outputs(options), (to_toml(result.board), json.dumps(factors, indent=1) + "\n"), strict=True
    ):
        write_text(path, text)
    if options.json:
        print(json.dumps({**factors, "residuals": residuals(result.fit)}, indent=1))
    else:
        print(calibrate_text(result.fit, options.out))
    return 0


def _outputs(options: argparse.Namespace) -> tuple[Path, ...]:
    """The board's file and that of its factors."""
    return () if options.out is None else (options.out, options.out.with_suffix(".factors.json"))


def _fitted(options: argparse.Namespace) -> Calibrated:
    """The fit to files, or to what a board measures now."""
    measured, target, draft = tuple(options.measured), options.target, options.draft
    if options.on is None:
        return calibrate(CalibrateRequest(measured, target, options.board, draft, options.cluster))
    from hetero_sd.on_board.calibrate import OnBoardRequest, calibrate_on
    from hetero_sd.on_board.ssh import Board
    from hetero_sd.progress import Progress

    request = OnBoardRequest(measured[0], target, draft, options.board, options.cluster)
    return calibrate_on(Board(options.on), request, Progress(quiet=options.json))


def _run_here(options: argparse.Namespace) -> int:
    """Measure this machine."""
    from hetero_sd.calibrate_host import HostRequest, calibrate_host
    from hetero_sd.progress import Progress

    if options.board != "host":
        there = "what run.py --calibrate wrote there, or --on USER@BOARD and a bundle"
        raise UserError(f"this machine is measured as --board host; to measure {options.board}, give {there}")
    if options.cluster is not None:
        raise UserError(f"--cluster {options.cluster}: all of this machine is measured; leave it out")
    if len(options.measured) > 1 or (not options.measured and (options.target or options.draft)):
        raise UserError("give one bundle with its --target and --draft, or none of the three")
    request = HostRequest(next(iter(options.measured), None), options.target, options.draft, options.out)
    done = calibrate_host(request, Progress(quiet=options.json))
    found = done.calibrated
    if options.json:
        print(json.dumps({**found.factors_json(), "residuals": residuals(found.fit), "out": str(done.out)}, indent=1))
        return 0
    if found.busy:
        print("this machine is busy: most steps took different times again and again, and all of them were fitted")
    print("\n".join([*error_lines(found.fit), f"written: {done.out}, which --board host takes from now on"]))
    if done.plan is not None:
        print(f"the plan of {request.bundle} now: {done.plan.verdict}")
    return 0


def error_lines(found: Fit) -> list[str]:
    """How far the fit is off, on what it has seen and on what was held out."""
    lines = []
    for name, held in (("fitted", False), ("held out", True)):
        count = sum(r.held_out == held and r.point.stable for r in found.residuals)
        if not count:
            lines.append(f"{name:9}: no point was stable enough to judge by: this machine is busy")
            continue
        middle, worst = found.error(held)
        lines.append(f"{name:9}: {count} points, error {100 * middle:.1f} % median, {100 * worst:.1f} % worst")
    unstable = sum(not r.point.stable for r in found.residuals)
    if unstable:
        lines.append(f"unstable : {unstable} points were left out of the fit")
    return lines


def calibrate_text(found: Fit, out: Path) -> str:
    """The fit for people."""
    lines = error_lines(found)
    lines.append("factors  : " + ", ".join(f"{k} {v:.3g}" for k, v in found.factors.to_json().items()))
    lines.append(f"{'':2}{'model':28}{'threads':>8}{'n':>4}{'past':>6}{'measured':>12}{'predicted':>12}{'error':>9}")
    ranked = sorted(found.residuals, key=lambda r: -abs(r.error))
    for r in ranked[:_MOST_ROWS]:
        p = r.point
        mark = " held out" if r.held_out else "" if p.stable else " unstable"
        lines.append(
            f"  {p.spec.name[:27]:28}{p.threads:>8}{p.n:>4}{p.past:>6}{1e3 * p.seconds:>9.3f} ms"
            f"{1e3 * r.predicted_s:>9.3f} ms{100 * r.error:>+8.1f} %{mark}"
        )
    lines.append(f"written: {out} and {out.with_suffix('.factors.json').name}")
    return "\n".join(lines)
