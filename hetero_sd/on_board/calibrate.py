"""`hetero-sd calibrate --on`: a bundle is copied to a board, timed there, and the cost model is fitted to it here."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from hetero_sd.calibrate import LARGEST_BYTES, Calibrated, CalibrateRequest, calibrate, check_drafter
from hetero_sd.early_exit import EarlyExit
from hetero_sd.on_board.copy import copy_bundle
from hetero_sd.on_board.ssh import Board
from hetero_sd.progress import Progress
from hetero_sd.runtime.manifest import Bundle
from targets.boards import load_board

SECONDS = 60  # of measuring, for each count of threads


@dataclass(frozen=True)
class OnBoardRequest:
    """What is measured.

    Attributes:
        bundle: its steps are timed.
        target, draft: what it was compiled from.
        board: a board's name or file, where the fit starts; None is the board that the bundle was compiled for.
        cluster: where the threads run; None is the plan's.
        seconds: of measuring, for each count of threads.
    """

    bundle: Path
    target: Path
    draft: Path | EarlyExit | None = None
    board: str | None = None
    cluster: str | None = None
    seconds: int = SECONDS


def calibrate_on(there: Board, request: OnBoardRequest, progress: Progress) -> Calibrated:
    """Copy, measure with one thread and with all of the plan's, fetch, fit.

    Raises:
        UserError: something given cannot be used, or ssh, the copy or the measurement fails.
    """
    bundle = Bundle(request.bundle)
    check_drafter(bundle, request.draft)
    name = request.board or str((bundle.manifest.board or {}).get("name", ""))
    load_board(name, measure=False)  # refused before the board works
    folder = copy_bundle(there, bundle, progress)
    with tempfile.TemporaryDirectory(prefix="hsd-calibrate-") as work:
        files = []
        for threads in sorted({1, bundle.plan.threads if bundle.plan is not None else 1}):
            files.append(Path(work) / f"threads-{threads}.json")
            with progress.step(f"time steps there with {threads} thread{'s' * (threads > 1)}, {request.seconds} s"):
                files[-1].write_bytes(_measured(there, folder, threads, request.seconds))
        with progress.step("fit the cost model"):
            cluster = request.cluster or (bundle.plan.cluster if bundle.plan is not None else None)
            return calibrate(CalibrateRequest(tuple(files), request.target, name, request.draft, cluster, busy=True))


def _measured(there: Board, folder: str, threads: int, seconds: int) -> bytes:
    """What run.py --calibrate writes on the board."""
    out = f"{folder}.measured.json"
    command = ["python3", "run.py", "--calibrate", out, "--threads", str(threads), "--calibrate-seconds", str(seconds)]
    return there.fetch(command, folder, out, LARGEST_BYTES)
