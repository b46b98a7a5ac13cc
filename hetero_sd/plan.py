"""What is decided before anything is compiled: processor, threads, entry points, speculation.

A plan is plain JSON and the same for the same inputs. Here the draft length and the processor of each model are the
user's, and what runs on the CPU has the fastest cluster; each decision says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from costmodel.place import Place
from hetero_sd.place import place_models, placement_reasons
from targets.cortex_a.tile import CpuTile
from targets.device import Board, Cluster

PREFILL_CHUNK = 32
DEFAULT_GAMMA = 4


@dataclass(frozen=True)
class Plan:
    """Decisions for one target and at most one drafter on one board.

    Attributes:
        board: its name.
        mode: "target-only" or "sequential" speculation.
        gamma: drafted tokens a round, 0 without a drafter.
        places: where each model runs, by role: the text of a costmodel.place.Place.
        cluster: CPU cluster that models on the CPU run on, and that launches the kernels of others.
        threads: one for each core of the cluster.
        context: tokens that fit the KV caches.
        target_widths: entry points of the target, in new tokens; gamma + 1 is among them.
        draft_widths: entry points of the drafter; after full acceptance it is fed two tokens.
        prefill_width: tokens of a prompt chunk.
        reasons: one sentence for each decision.
    """

    board: str
    mode: str
    gamma: int
    places: dict[str, str]
    cluster: str
    threads: int
    context: int
    target_widths: tuple[int, ...]
    draft_widths: tuple[int, ...]
    prefill_width: int
    reasons: tuple[str, ...]

    @property
    def needs_gpu(self) -> bool:
        """Whether a model has a part there."""
        return any("gpu" in Place.parse(text).processors for text in self.places.values())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, as the bundle carries it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def make_plan(
    board: Board,
    tile: CpuTile,
    has_draft: bool,
    gamma: int,
    context: int,
    more_widths: tuple[int, ...] = (),
    place: str | None = None,
) -> Plan:
    """Decide for a board; `context` is rounded up to whole cache tiles.

    Widths of the target are 1, gamma + 1, the powers of two up to 8, which serve short prompts and shorter rounds
    near the end, and `more_widths`. `place` is a rule of hetero_sd/place.py, None the default.

    Raises:
        UserError: the rule cannot be followed.
    """
    cluster = fastest_cluster(board)
    gamma = gamma if has_draft else 0
    widths = tuple(sorted({1, 2, 4, 8, gamma + 1, *more_widths}))
    tokens = max(context, PREFILL_CHUNK)
    tokens = -(-tokens // tile.lanes) * tile.lanes
    placed = place_models(place or "cpu", board, has_draft)
    reasons = [
        *placement_reasons(placed, place, board),
        f"CPU cluster {cluster.name} ({cluster.count} x {cluster.core.name}): the one with the most DRAM bandwidth, "
        "which decoding is bound by",
        f"gamma {gamma}: as given with --gamma or its default; the cost model does not decide it in this version"
        if has_draft
        else "target only: no draft model was given",
    ]
    return Plan(
        board=board.name,
        mode="sequential" if has_draft else "target-only",
        gamma=gamma,
        places={role: place.text for role, place in placed.items()},
        cluster=cluster.name,
        threads=cluster.count,
        context=tokens,
        target_widths=widths,
        draft_widths=(1, 2),
        prefill_width=PREFILL_CHUNK,
        reasons=tuple(reasons),
    )


def fastest_cluster(board: Board) -> Cluster:
    """The CPU cluster with the most sustained bandwidth; the first of equals."""
    return max(board.clusters, key=lambda c: c.bandwidth_all_threads_gb_per_s)
