"""What `run.py --calibrate` measured becomes a board file and fitted factors.

The points of every second width are held out of the fit; their error is what a prediction may be trusted with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from costmodel.decoder import DecoderSpec
from costmodel.fit import LEAST_POINTS, Fit, Point, fit
from costmodel.format import FLOAT
from costmodel.question import factors_of
from costmodel.schema.measured import GPU, MIXED, Measured
from costmodel.schema.record import SchemaError
from hetero_sd.calibrated_board import measured_factors, with_bandwidth, with_factors, with_gpu, with_region_cost
from hetero_sd.early_exit import EarlyExit
from hetero_sd.predict.inputs import pair_specs
from hetero_sd.runtime.manifest import Bundle
from targets.boards import load_board
from targets.device import Board
from targets.errors import UserError
from targets.files import read_object
from targets.kv_format import DEFAULT_KV

LARGEST_BYTES = 4 << 20


@dataclass(frozen=True)
class CalibrateRequest:
    """What is to be fitted.

    Attributes:
        measured: files of run.py --calibrate.
        target: ONNX file or config.json of the bundle's target.
        board: a board's name, or the path of a .toml file: where the fit starts.
        draft: the same of the bundle's drafter, the layer after which the target drafts, or None.
        cluster: where the CPU steps ran; None: the one with the most bandwidth.
        busy: where too few points are stable to fit, take all of them, whose errors then say how well that goes.
    """

    measured: tuple[Path, ...]
    target: Path
    board: str
    draft: Path | EarlyExit | None = None
    cluster: str | None = None
    busy: bool = False


@dataclass(frozen=True)
class Calibrated:
    """The fit and the board that has it.

    Attributes:
        board: with measured bandwidths and fitted factors.
        fit: factors and residuals.
        held_out_n: widths whose points were held out of the fit.
        busy: unstable points count as stable, because too few were.
    """

    board: Board
    fit: Fit
    held_out_n: tuple[int, ...]
    busy: bool = False

    def factors_json(self) -> dict[str, Any]:
        """The content of the file of factors, for `--factors`."""
        factors = self.fit.factors.to_json()
        return {"factors": factors, "held_out_n": list(self.held_out_n), "error": errors(self.fit)}


def calibrate(request: CalibrateRequest) -> Calibrated:
    """Fit the factors of a board to what was measured on it.

    Raises:
        UserError: a file or name that cannot be used.
    """
    board = load_board(request.board, measure=False, calibrated=False)  # an earlier fit is no start for this one
    cluster = request.cluster or max(board.clusters, key=lambda c: c.bandwidth_all_threads_gb_per_s).name
    board.cluster(cluster)  # refuses an unknown name
    measured = [read_measured(path) for path in request.measured]
    specs = specs_of(request, measured)
    points = [
        p for data, path in zip(measured, request.measured, strict=True) for p in points_of(data, path, specs, cluster)
    ]
    calibrated = with_region_cost(with_bandwidth(board, cluster, measured), cluster, measured)
    calibrated = with_gpu(calibrated, measured)
    held_out = sorted({p.n for p in points})[1::2]
    busy = request.busy and sum(p.stable and p.n not in held_out for p in points) < 2 * LEAST_POINTS
    if busy:
        points = [replace(p, stable=True) for p in points]
    own = measured_factors(calibrated, measured)
    found = fit(calibrated, points, lambda p: p.n in held_out, replace(factors_of(calibrated), **own))
    return Calibrated(with_factors(calibrated, found, own), found, tuple(held_out), busy)


def specs_of(request: CalibrateRequest, measured: Sequence[Measured]) -> dict[str, DecoderSpec]:
    """The models with the weights that were timed, by role; float activations.

    Raises:
        UserError: a file that cannot be used, or that is of other weights than the first one.
    """
    quantised = measured[0].quantised
    for data, path in zip(measured, request.measured, strict=True):
        if data.quantised != quantised:
            raise UserError(
                f"{path}: the weights are quantised otherwise than in {request.measured[0]}: fit one of them"
            )
    return pair_specs(request.target, request.draft, 2, {"target": FLOAT, "draft": FLOAT}, quantised=quantised)


def check_drafter(bundle: Bundle, draft: Path | EarlyExit | None) -> None:
    """Refuse a drafter that the bundle was not compiled from.

    Raises:
        UserError: what to give.
    """
    own = _own_exit(bundle)
    fits = draft == own if own is not None else not isinstance(draft, EarlyExit)
    if not fits or (draft is None) == ("draft" in bundle.models):
        raise UserError(f"{bundle.folder}: give what it was compiled from with {sources_of(bundle)}")


def sources_of(bundle: Bundle) -> str:
    """The options that name what a bundle was compiled from."""
    draft = f" --draft {_own_exit(bundle) or 'DRAFT.onnx'}" if "draft" in bundle.models else ", without --draft"
    return f"--target TARGET.onnx{draft}"


def _own_exit(bundle: Bundle) -> EarlyExit | None:
    """The early exit that drafts in a bundle, which reads the target's weights."""
    draft = bundle.models.get("draft")
    return None if draft is None or draft.weights != bundle.target.weights else EarlyExit(draft.layers)


def read_measured(path: Path) -> Measured:
    """A file of run.py --calibrate.

    Raises:
        UserError: unreadable, something else, or with numbers that cannot be.
    """
    data = read_object(path, "a file of run.py --calibrate", LARGEST_BYTES)
    try:
        return Measured.from_json(data)
    except SchemaError as error:
        raise UserError(f"{path}: not as run.py --calibrate of this version writes it: {error}") from None


def points_of(data: Measured, path: Path, specs: dict[str, DecoderSpec], cluster: str) -> list[Point]:
    """The measured steps of the models given; a model over both processors is left out, its parts were not timed.

    Raises:
        UserError: a point of a model that was not given.
    """
    found = []
    for i, p in enumerate(data.points):
        if p.processor == MIXED:
            continue
        if p.model not in specs:
            raise UserError(f"{path}: point {i} is of the {p.model}: give it with --{p.model}")
        where = (GPU, 1) if p.processor == GPU else (cluster, data.threads)
        spec = specs[p.model].with_int8_activations() if p.model in data.int8_activations else specs[p.model]
        spec = replace(spec, kv=data.kv_caches.get(p.model, DEFAULT_KV))
        found.append(Point(spec, *where, p.n, p.past, p.seconds, p.bandwidth_gb_per_s, p.stable, p.chunk))
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
    for name in ("gpu", "dram", "power", "factors"):
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
