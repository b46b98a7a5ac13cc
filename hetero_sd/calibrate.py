"""`hetero-sd calibrate`: what `run.py --calibrate` measured becomes a board file and fitted factors.

The points of every second width are held out of the fit; their error is what a prediction may be trusted with.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from costmodel.decoder import DecoderSpec
from costmodel.fit import Fit, Point, fit
from costmodel.question import factors_of
from hetero_sd.calibrated_board import measured_factors, with_bandwidth, with_factors, with_gpu, with_region_cost
from hetero_sd.predict.inputs import load_shapes
from targets.boards import board_names, load_board
from targets.device import Board
from targets.errors import UserError
from targets.files import read_object, write_text

_LARGEST_BYTES = 4 << 20
_MOST_ROWS = 12

EXAMPLE = """\
example:
  python bundle/run.py --calibrate measured.json            # on the device
  hetero-sd calibrate measured.json --target target/model.onnx --board imx95 --out my-imx95.toml
  hetero-sd predict target/model.onnx --board my-imx95.toml
"""


def add_options(p: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    p.add_argument("measured", metavar="MEASURED.json", type=Path, nargs="+", help="files of run.py --calibrate")
    p.add_argument("--target", metavar="TARGET", type=Path, required=True, help="the bundle's target, as compiled")
    p.add_argument("--draft", metavar="DRAFT", type=Path, help="the bundle's drafter")
    p.add_argument("--board", metavar="NAME|PATH.toml", required=True, help=f"{', '.join(board_names())}, or a file")
    p.add_argument("--cluster", metavar="NAME", help="where it ran (default: the one with the most bandwidth)")
    p.add_argument("--out", metavar="BOARD.toml", type=Path, required=True, help="the calibrated board file")
    p.add_argument("--json", action="store_true", help="print factors and residuals as JSON")


def run(options: argparse.Namespace) -> int:
    """The subcommand."""
    if options.out.suffix != ".toml":
        raise UserError(f"--out {options.out}: a board file's name ends in .toml")
    board = load_board(options.board, measure=False)
    shapes = {"target": load_shapes(options.target, ["float32"], 2)[0]}
    if options.draft is not None:
        shapes["draft"] = load_shapes(options.draft, ["float32"], 2)[0]
    cluster = options.cluster or max(board.clusters, key=lambda c: c.bandwidth_all_threads_gb_per_s).name
    board.cluster(cluster)  # refuses an unknown name
    measured = [read_measured(path) for path in options.measured]
    points = [
        p for data, path in zip(measured, options.measured, strict=True) for p in points_of(data, path, shapes, cluster)
    ]
    calibrated = with_region_cost(with_bandwidth(board, cluster, measured), cluster, measured)
    calibrated = with_gpu(calibrated, measured)
    held = set(sorted({p.n for p in points})[1::2])
    start = replace(factors_of(calibrated), **measured_factors(calibrated, measured))
    found = fit(calibrated, points, lambda p: p.n in held, start)
    factors = {"factors": found.factors.to_json(), "held_out_n": sorted(held), "error": errors(found)}
    write_text(options.out, to_toml(with_factors(calibrated, found, measured_factors(calibrated, measured))))
    write_text(options.out.with_suffix(".factors.json"), json.dumps(factors, indent=1) + "\n")
    print(
        json.dumps({**factors, "residuals": residuals(found)}, indent=1) if options.json else text(found, options.out)
    )
    return 0


def read_measured(path: Path) -> dict[str, Any]:
    """A file of run.py --calibrate.

    Raises:
        UserError: unreadable, or something else.
    """
    data = read_object(path, "a file of run.py --calibrate", _LARGEST_BYTES)
    if data.get("format") != 1 or not isinstance(data.get("points"), list):
        raise UserError(f"{path}: not written by run.py --calibrate of this version")
    return data


def points_of(data: dict[str, Any], path: Path, shapes: dict[str, DecoderSpec], cluster: str) -> list[Point]:
    """The measured steps of the models given.

    Raises:
        UserError: a point of a model that was not given, or with numbers that cannot be.
    """
    found = []
    for i, entry in enumerate(data["points"]):
        processor = entry.get("processor", "cpu")
        if processor == "mixed":  # a model over both: its parts were not timed
            continue
        try:
            point = Point(
                shapes[entry["model"]],
                "gpu" if processor == "gpu" else cluster,
                1 if processor == "gpu" else int(data["threads"]),
                int(entry["n"]),
                int(entry["past"]),
                float(entry["seconds"]),
                float(entry["bandwidth_gb_per_s"]),
                bool(entry["stable"]),
                int(entry.get("chunk", 0)),
            )
        except KeyError as error:
            missing = str(error).strip("'")
            hint = ": give it with --draft" if missing == "draft" else ""
            raise UserError(f"{path}: point {i} has no usable {missing!r}{hint}") from None
        except (TypeError, ValueError):
            raise UserError(f"{path}: point {i} holds something that is not a number") from None
        if point.chunk < 0 or (point.chunk and point.n % point.chunk):
            raise UserError(f"{path}: point {i} has impossible numbers: {point.n} tokens in chunks of {point.chunk}")
        if not (0 < point.seconds < 1e4 and 0.01 < point.bandwidth_gb_per_s < 1e4 and point.n >= 1 and point.past >= 0):
            raise UserError(f"{path}: point {i} has impossible numbers: {point.seconds} s at n = {point.n}")
        found.append(point)
    return found


def errors(found: Fit) -> dict[str, Any]:
    """Median and worst relative error of the fitted and of the held-out points."""
    return {
        name: dict(zip(("median", "worst"), found.error(held), strict=True))
        for name, held in (("fitted", False), ("held_out", True))
    }


def residuals(found: Fit) -> list[dict[str, Any]]:
    """Every point with its prediction."""
    return [
        {
            "model": r.point.spec.name,
            "processor": r.point.cluster,
            "threads": r.point.threads,
            "n": r.point.n,
            "chunk": r.point.chunk,
            "past": r.point.past,
            "measured_s": r.point.seconds,
            "predicted_s": r.predicted_s,
            "error": r.error,
            "held_out": r.held_out,
            "stable": r.point.stable,
        }
        for r in found.residuals
    ]


def text(found: Fit, out: Path) -> str:
    """The fit for people."""
    lines = []
    for name, held in (("fitted", False), ("held out", True)):
        middle, worst = found.error(held)
        count = sum(r.held_out == held and r.point.stable for r in found.residuals)
        lines.append(f"{name:9}: {count} points, error {100 * middle:.1f} % median, {100 * worst:.1f} % worst")
    unstable = sum(not r.point.stable for r in found.residuals)
    if unstable:
        lines.append(f"unstable : {unstable} points were left out of the fit")
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


def to_toml(board: Board) -> str:
    """A board as a board file."""
    data = board.to_json()
    lines = [f"name = {_quoted(data['name'])}", f"description = {_quoted(data['description'])}"]
    for cluster in data["clusters"]:
        core = cluster.pop("core")
        lines += ["", "[[clusters]]", *_table(cluster), "", "[clusters.core]", *_table(core)]
    for name in ("gpu", "dram", "factors"):
        if data.get(name) is not None:
            lines += ["", f"[{name}]", *_table(data[name])]
    return "\n".join(lines) + "\n"


def _table(table: dict[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in table.items()]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
