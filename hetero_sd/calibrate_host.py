"""`hetero-sd calibrate --board host`: measure this machine and write the board file that `--board host` takes.

The steps of a bundle are timed here with one thread and with all, as `run.py --calibrate` times them on a device; the
bundle is the user's, whose plan is then made again with what was found, or one of two small models of random weights
that is compiled for it. The file goes into the user's configuration folder (targets/host/calibrated.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from costmodel.place import Place, ReasonedPlace
from costmodel.prompt_chunks import CHUNK
from costmodel.schema.manifest import TokenizerFacts
from costmodel.schema.plan import Plan
from hetero_sd.calibrate import Calibrated, CalibrateRequest, calibrate, check_drafter, sources_of, to_toml
from hetero_sd.compile.build import ModelRequest, Sizes, build_model
from hetero_sd.compile.bundle import copy_device_python, write_launcher
from hetero_sd.compile.plan import Overrides, make_plan
from hetero_sd.early_exit import EarlyExit
from hetero_sd.predict.inputs import pair_specs
from hetero_sd.progress import Progress
from hetero_sd.runtime.load import check_machine
from hetero_sd.runtime.manifest import Bundle, write_manifest
from passes.onnx import canonicalise
from passes.synthetic import LlamaShape, write_llama
from targets.backend import HOST
from targets.boards import load_board
from targets.device import Board
from targets.errors import UserError
from targets.files import write_text
from targets.host.calibrated import MADE, calibrated_path, made_here

SECONDS = 30  # of measuring, all thread counts together
_CONTEXT = 256
_VOCAB = 2000
_SHAPES = {  # sizes, and entry points
    "target": (LlamaShape(layers=6, hidden=320, heads=4, kv_heads=2, ffn=896, vocab=_VOCAB), (1, 2, 4)),
    "draft": (LlamaShape(layers=2, hidden=192, heads=4, kv_heads=2, ffn=512, vocab=_VOCAB), (1, 2)),
}
Measure = Callable[[Path, Path, int, int], None]  # bundle, file, threads, seconds


@dataclass(frozen=True)
class HostRequest:
    """What is measured.

    Attributes:
        bundle: its steps are timed, and its plan is made again; None compiles one that is thrown away.
        target, draft: what the bundle was compiled from: ONNX files, or a layer after which the target drafts.
        out: the board file; None is the one that `--board host` takes.
        seconds: of measuring.
    """

    bundle: Path | None = None
    target: Path | None = None
    draft: Path | EarlyExit | None = None
    out: Path | None = None
    seconds: int = SECONDS


@dataclass(frozen=True)
class HostCalibrated:
    """What was found and written: the fit, the board file, and the plan that the bundle has now."""

    calibrated: Calibrated
    out: Path
    plan: Plan | None = None


def calibrate_host(request: HostRequest, progress: Progress, measure: Measure | None = None) -> HostCalibrated:
    """Measure, fit, write the board file, and plan the bundle again.

    Args:
        request: what is measured.
        progress: a line for each step of it.
        measure: writes a file of run.py --calibrate; None runs the bundle.

    Raises:
        UserError: a file cannot be used or written, the bundle cannot run here, or too little could be measured.
    """
    out = _folder_made(request.out or calibrated_path())
    with tempfile.TemporaryDirectory(prefix="hsd-calibrate-") as name:
        work = Path(name)
        if request.bundle is None:
            request = replace(_small_pair(work, progress), out=out, seconds=request.seconds)
        assert request.bundle is not None
        bundle = Bundle(request.bundle)
        check_machine(bundle)
        if request.target is None:
            raise UserError(f"{request.bundle}: give what it was compiled from with {sources_of(bundle)}")
        check_drafter(bundle, request.draft)
        files = _measured(request, work, progress, measure or _run)
        with progress.step("fit the cost model"):
            found = calibrate(CalibrateRequest(tuple(files), request.target, "host", request.draft, busy=True))
        write_text(out, _made_text() + to_toml(found.board))
        if bundle.plan is None or request.bundle.is_relative_to(work):
            return HostCalibrated(found, out)
        with progress.step("plan the bundle again, with its kernels as they are"):
            return HostCalibrated(found, out, _plan_again(bundle, request, found.board))


def _folder_made(path: Path | None) -> Path:
    """The file, with its folder."""
    if path is None:
        raise UserError("there is no home folder for the board file: give --out BOARD.toml")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return path


def _measured(request: HostRequest, work: Path, progress: Progress, measure: Measure) -> Sequence[Path]:
    """Files of run.py --calibrate, with one thread and with all."""
    assert request.bundle is not None
    most = load_board("host", measure=False, calibrated=False).clusters[0].count
    counts, files = sorted({1, most}), []
    for threads in counts:
        files.append(work / f"threads-{threads}.json")
        with progress.step(
            f"time steps with {threads} thread{'s' * (threads > 1)}, {request.seconds // len(counts)} s"
        ):
            measure(request.bundle, files[-1], threads, request.seconds // len(counts))
    return files


def _run(bundle: Path, out: Path, threads: int, seconds: int) -> None:
    """Let the bundle measure itself, in a process of its own."""
    command = [sys.executable, str(bundle / "run.py"), "--calibrate", str(out), "--threads", str(threads)]
    done = subprocess.run([*command, "--calibrate-seconds", str(seconds)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or "nothing was said").splitlines()[-1]
        raise UserError(f"{bundle}/run.py --calibrate failed: {last.removeprefix('run.py: error: ')}")


def _small_pair(work: Path, progress: Progress) -> HostRequest:
    """Two models with random weights, compiled for this machine."""
    bundle, paths, models = work / "bundle", {}, {}
    core = load_board("host", measure=False, calibrated=False).clusters[0].core
    bundle.mkdir()
    for role, (shape, widths) in _SHAPES.items():
        paths[role] = work / role / "model.onnx"
        paths[role].parent.mkdir()
        with progress.step(f"compile a {role} with random weights"):
            write_llama(paths[role], shape, "float16", seed=1)
            decoder = canonicalise(paths[role], _CONTEXT)
            whole = ReasonedPlace(Place(HOST))
            asked = ModelRequest(role, decoder, core, whole, Sizes(_CONTEXT, widths, CHUNK))
            models[role] = build_model(asked, bundle).facts
    copy_device_python(bundle / "python")
    write_launcher(bundle, core.isa, "host")
    write_manifest(bundle, models, tokenizer=TokenizerFacts((0,), _VOCAB))
    return HostRequest(bundle, paths["target"], paths["draft"])


def _made_text() -> str:
    """The table of what the file is for."""
    made = made_here(date.today().isoformat())
    inner = ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in made.items())
    return f"# Written by hetero-sd calibrate --board host, which uses it while this holds:\n{MADE} = {{ {inner} }}\n"


def _plan_again(bundle: Bundle, request: HostRequest, board: Board) -> Plan:
    """The plan with the calibrated board, for the entry points that are compiled; it replaces the bundle's."""
    old, manifest = bundle.plan, bundle.manifest
    assert old is not None
    assert request.target is not None
    activations = {role: model.activations for role, model in manifest.models.items()}
    kv = manifest.models["target"].caches.dtype
    quantised = {role: model.quantised for role, model in manifest.models.items() if model.quantised is not None}
    specs = pair_specs(request.target, request.draft, old.context, activations, kv, quantised)
    given = old.gamma if old.gamma_given else None
    live = old.prediction.live
    alpha = None if live is None else live.alpha
    overrides = Overrides(given, alpha=alpha, compiled=old.target_widths, slots=old.slots, chunks=old.prefill_widths)
    plan = make_plan(board, specs, old.context, overrides)[0]
    write_manifest(bundle.folder, manifest.models, plan, manifest.tokenizer, board.to_json())
    return plan
