"""What `run.py --calibrate` measured becomes a board file and fitted factors.

The points of every second width are held out of the fit; their error is what a prediction may be trusted with.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from costmodel.decoder import DecoderSpec
from costmodel.fit import Fit, Point, fit
from costmodel.question import factors_of
from hetero_sd.calibrated_board import measured_factors, with_bandwidth, with_factors, with_gpu, with_region_cost
from hetero_sd.predict.inputs import load_specs
from targets.boards import load_board
from targets.device import Board
from targets.errors import UserError
from targets.files import read_object

_LARGEST_BYTES = 4 << 20


@dataclass(frozen=True)
class CalibrateRequest:
    """What is to be fitted.

    Attributes:
        measured: files of run.py --calibrate.
        target: ONNX file or config.json of the bundle's target.
        board: a board's name, or the path of a .toml file: where the fit starts.
        draft: the same of the bundle's drafter, or None.
        cluster: where the CPU steps ran; None: the one with the most bandwidth.
    """

    measured: tuple[Path, ...]
    target: Path
    board: str
    draft: Path | None = None
    cluster: str | None = None


@dataclass(frozen=True)
class Calibrated:
    """The fit and the board that has it.

    Attributes:
        board: with measured bandwidths and fitted factors.
        fit: factors and residuals.
        held_out_n: widths whose points were held out of the fit.
    """

    board: Board
    fit: Fit
    held_out_n: tuple[int, ...]

    def factors_json(self) -> dict[str, Any]:
        """The content of the file of factors, for `--factors`."""
        factors = self.fit.factors.to_json()
        return {"factors": factors, "held_out_n": list(self.held_out_n), "error": errors(self.fit)}


def calibrate(request: CalibrateRequest) -> Calibrated:
    """Fit the factors of a board to what was measured on it.

    Raises:
        UserError: a file or name that cannot be used.
    """
    board = load_board(request.board, measure=False)
    specs = {"target": load_specs(request.target, ["float32"], 2)[0]}
    if request.draft is not None:
        specs["draft"] = load_specs(request.draft, ["float32"], 2)[0]
    cluster = request.cluster or max(board.clusters, key=lambda c: c.bandwidth_all_threads_gb_per_s).name
    board.cluster(cluster)  # refuses an unknown name
    measured = [read_measured(path) for path in request.measured]
    points = [
        p for data, path in zip(measured, request.measured, strict=True) for p in points_of(data, path, specs, cluster)
    ]
    calibrated = with_region_cost(with_bandwidth(board, cluster, measured), cluster, measured)
    calibrated = with_gpu(calibrated, measured)
    held_out = sorted({p.n for p in points})[1::2]
    own = measured_factors(calibrated, measured)
    found = fit(calibrated, points, lambda p: p.n in held_out, replace(factors_of(calibrated), **own))
    return Calibrated(with_factors(calibrated, found, own), found, tuple(held_out))


def read_measured(path: Path) -> dict[str, Any]:
    """A file of run.py --calibrate.

    Raises:
        UserError: unreadable, or something else.
    """
    data = read_object(path, "a file of run.py --calibrate", _LARGEST_BYTES)
    if data.get("format") != 1 or not isinstance(data.get("points"), list):
        raise UserError(f"{path}: not written by run.py --calibrate of this version")
    return data


def points_of(data: dict[str, Any], path: Path, specs: dict[str, DecoderSpec], cluster: str) -> list[Point]:
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
                specs[entry["model"]],
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
