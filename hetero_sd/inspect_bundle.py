"""What a bundle is: its board, its plan, and how each model is stored and called."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

from costmodel.schema.model import ModelFacts
from hetero_sd.runtime.manifest import MANIFEST, Bundle
from hetero_sd.runtime.trust import SIGNATURE
from targets.read_board import board_from_json

_WIDTH, _INDENT = 118, 16


@dataclass(frozen=True)
class BundledModel:
    """A model of a bundle.

    Attributes:
        layers, vocab, context: its sizes; the context is the rows of a KV cache.
        weight_dtype: stored format of most weights.
        activations: what block-quantised matrix multiplications read.
        place: where it runs, as --place says it.
        cpu_fallback: the CPU takes over when the GPU fails; None where it does not use the GPU.
        kv: type of keys and values.
        cache_bytes: memory of the KV caches of all slots.
        slots: requests that it holds at a time.
        widths: tokens of its steps.
        prompt_chunks: tokens of a prompt that are read at a time.
        entries: its calls of a step: the name of each up to the number of tokens.
        libraries: path in the bundle of the library that has them, by processor.
    """

    layers: int
    vocab: int
    context: int
    weight_dtype: str
    activations: str
    place: str
    cpu_fallback: bool | None
    kv: str
    cache_bytes: int
    slots: int
    widths: tuple[int, ...]
    prompt_chunks: tuple[int, ...]
    entries: tuple[str, ...]
    libraries: dict[str, str]

    @staticmethod
    def of(facts: ModelFacts) -> BundledModel:
        """What the manifest says of it."""
        fallback = bool(facts.fallback) if facts.opencl_runtime else None
        return BundledModel(
            *(facts.layers, facts.vocab, facts.context, facts.weight_dtype, facts.activations, facts.place.text),
            *(fallback, facts.caches.dtype, facts.cache_bytes, facts.slots, facts.widths, facts.prefill_widths),
            *(tuple(f"{segment.prefix}step_" for segment in facts.chain), dict(facts.libraries)),
        )


@dataclass(frozen=True)
class InspectedBundle:
    """What a bundle is.

    Attributes:
        bundle: its folder.
        board, isa: what it was compiled for; None where the manifest does not say.
        bytes: of all files.
        signed: it carries a signature, which is not checked here.
        mode, gamma, threads, verdict: the plan's; None where it has none.
        models: by role.
    """

    bundle: str
    board: str | None
    isa: str | None
    bytes: int
    signed: bool
    mode: str | None
    gamma: int | None
    threads: int | None
    verdict: str | None
    models: dict[str, BundledModel]


def inspect_bundle(folder: Path) -> InspectedBundle:
    """Read the manifest; no hash is compared.

    Raises:
        UserError: it is no bundle, or a damaged one.
    """
    bundle = Bundle(folder)
    table, plan = bundle.manifest.board, bundle.plan
    board = None if table is None else board_from_json(table, MANIFEST)
    return InspectedBundle(
        bundle=str(folder),
        board=None if board is None else board.name,
        isa=None if board is None else board.isa,
        bytes=sum(facts.bytes for facts in bundle.manifest.files.values()),
        signed=(folder / SIGNATURE).is_file(),
        mode=None if plan is None else plan.mode,
        gamma=None if plan is None else plan.gamma,
        threads=None if plan is None else plan.threads,
        verdict=None if plan is None else plan.verdict,
        models={role: BundledModel.of(facts) for role, facts in sorted(bundle.models.items(), reverse=True)},
    )


def bundle_json(found: InspectedBundle) -> str:
    """The same as one JSON object."""
    return json.dumps(asdict(found), indent=1)


def bundle_text(found: InspectedBundle) -> str:
    """The same as lines for a person."""
    machine = "for a board that it does not name" if found.isa is None else f"for {found.isa} (board {found.board})"
    signed = "signed (run.py --verify-key checks it)" if found.signed else "not signed"
    lines = [f"{found.bundle}: a bundle {machine}, {found.bytes:,} bytes, {signed}"]
    if found.verdict is not None:
        lines += _row("plan", found.verdict)
    lost = {None: "", True: ", with a CPU variant for when the GPU fails", False: ", without a CPU variant"}
    for role, m in found.models.items():
        layers = f"{m.layers} layer{'s' if m.layers > 1 else ''}"
        chunks, widths = " or ".join(map(str, m.prompt_chunks)), ", ".join(map(str, m.widths))
        lines += [
            *_row(role, f"{layers}, {m.vocab} token ids, {m.weight_dtype} x {m.activations}"),
            *_row("  place", f"{m.place}{lost[m.cpu_fallback]}"),
            *_row("  KV cache", f"{m.kv}, {m.cache_bytes:,} bytes, context {m.context} tokens"),
            *_row("  slots", "1, one request at a time" if m.slots == 1 else f"{m.slots} requests at a time"),
            *_row("  steps", f"of {widths} tokens; prompts are read {chunks} at a time"),
            *_row("  calls", f"{', '.join(f'{entry}<n>' for entry in m.entries)} of {', '.join(m.libraries.values())}"),
        ]
    return "\n".join(lines)


def _row(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=f"  {name:{_INDENT - 2}s}", subsequent_indent=" " * _INDENT)
