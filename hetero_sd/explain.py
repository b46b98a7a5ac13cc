"""Each kernel of an entry point, what it moves and what it would have to, and how it is cut."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costmodel.format import FLOAT, INT8
from costmodel.place import Place
from hetero_sd.compile.context import DEFAULT_CONTEXT
from hetero_sd.compile.place import refuse_missing
from hetero_sd.malioc import Registers, inspect_kernels
from targets.backend import backend
from targets.boards import load_board
from targets.device import Board
from targets.errors import UserError
from targets.files import refuse_no_file

MOST_WIDTH = 256


@dataclass(frozen=True)
class ExplainRequest:
    """What is to be explained.

    Attributes:
        model: the ONNX file.
        board: a board's name, or the path of a .toml file.
        place: where the parts of the model run, as `compile --place` takes it for one model.
        width: new tokens of the step.
        past: tokens in the KV cache before them.
        context: tokens that fit the cache; None: 1024, or fewer where the model has fewer positions.
        prefill: a prompt chunk, whose head computes one row only.
    """

    model: Path
    board: str
    place: str = "cpu"
    width: int = 1
    past: int | None = None
    context: int | None = None
    prefill: bool = False


@dataclass(frozen=True)
class KernelRow:
    """One OpenCL kernel, or the one function that a CPU runs; see passes/analysis/count_traffic.py for the fields."""

    name: str
    launches: int
    moved_bytes: int
    vector_lanes: int
    vector_bits: int
    work_items: int
    group: int
    tasks: int
    register_tile: tuple[int, ...]
    registers: Registers | None = None


@dataclass(frozen=True)
class OperatorRow:
    """All calls of one compiled operator in the entry point.

    Attributes:
        name: of the function, for example ``linear_4bit_1_896_4864``.
        processor: its kind, a name of targets/backend.py.
        calls: how often the entry point calls it.
        moved_bytes, needed_bytes: of one call.
        buffers: bytes read, bytes that have to be read, and the same for writes, by buffer.
        kernels: what it launches.
    """

    name: str
    processor: str
    calls: int
    moved_bytes: int
    needed_bytes: int
    buffers: dict[str, dict[str, int]]
    kernels: tuple[KernelRow, ...]

    @property
    def operator(self) -> str:
        """The name without sizes."""
        return re.sub(r"_\d+(?=_|$)", "", self.name)

    @property
    def rereads(self) -> tuple[str, float]:
        """The buffer with the most bytes that have to be read, and how often the kernels read it."""
        name = max(self.buffers, key=lambda buffer: self.buffers[buffer]["needed_read_bytes"])
        needed = self.buffers[name]["needed_read_bytes"]
        return name, self.buffers[name]["read_bytes"] / needed if needed else 0.0


@dataclass(frozen=True)
class Explanation:
    """The rows, the largest share of the traffic first, and what is said below them."""

    request: ExplainRequest
    board: Board
    past: int
    rows: tuple[OperatorRow, ...]
    registers_from: str

    @property
    def moved_bytes(self) -> int:
        """Bytes moved by one run of the entry point."""
        return sum(row.calls * row.moved_bytes for row in self.rows)

    @property
    def needed_bytes(self) -> int:
        """Bytes it would have to move, if every kernel touched each byte once."""
        return sum(row.calls * row.needed_bytes for row in self.rows)


def explain(request: ExplainRequest) -> Explanation:
    """Lower the model as `compile` does, and count.

    Raises:
        UserError: a file or number that cannot be used, or a model that does not compile.
    """
    board = load_board(request.board, measure=False)
    place = _place(request.place, board)
    if not 1 <= request.width <= MOST_WIDTH:
        raise UserError(f"--width {request.width}: must be 1 to {MOST_WIDTH} tokens")
    refuse_no_file(request.model, "model ")
    decoder, context = _import(request, board)
    request = dataclasses.replace(request, context=context)
    past = max(0, context - request.width) // 2 if request.past is None else request.past
    if past < 0 or past + request.width > context:
        raise UserError(f"--past {past} and --width {request.width} do not fit --context {context} tokens")
    lowered = _lower(decoder, context, request, board, place)
    found: dict[tuple[str, str], OperatorRow] = {}
    for name, processor, module in _entries(lowered, request):
        for row in _rows(module, name, processor, past):
            before = found.get((row.name, processor))
            calls = row.calls + (before.calls if before else 0)
            found[row.name, processor] = dataclasses.replace(row, calls=calls)
    rows = list(found.values())
    rows.sort(key=lambda row: -row.calls * row.moved_bytes)
    rows, source = _with_registers(rows, lowered, board)
    return Explanation(request, board, past, tuple(rows), source)


def _place(rule: str, board: Board) -> Place:
    try:
        place = Place.parse(rule)
    except ValueError:
        raise UserError(f"--place {rule}: cannot be read; cpu, gpu, gpu:0-3, gpu:ffn and the like can") from None
    refuse_missing(rule, place, board)
    return place


def _import(request: ExplainRequest, board: Board) -> tuple[Any, int]:
    """The decoder and the tokens its cache holds."""
    from hetero_sd.compile.context import rows_within
    from passes.onnx import canonicalise, canonicalise_up_to

    if request.context is not None:
        return canonicalise(request.model, request.context), request.context
    decoder, positions = canonicalise_up_to(request.model, DEFAULT_CONTEXT)
    rows = rows_within(board, positions) or positions
    return (decoder if rows == positions else canonicalise(request.model, rows)), rows


def _lower(decoder: Any, context: int, request: ExplainRequest, board: Board, place: Place) -> Any:
    from passes.pipeline import lower_decoder

    tiles = {name: backend(name).tile(board.clusters[0].core, board.gpu) for name in place.processors}
    activations = INT8 if decoder.facts.int8_activations else FLOAT  # as compile takes them where nothing is said
    return lower_decoder(decoder, tiles, place, context, [request.width], request.width, activations=activations)


def _entries(lowered: Any, request: ExplainRequest) -> list[tuple[str, str, Any]]:
    """Name, processor and module of the entry point of each segment."""
    from passes.relax.make_entries import prefill_name, step_name

    name = prefill_name if request.prefill else step_name
    segments = [part.segment for part in lowered.chain]
    return [(name(request.width, s.name), s.processor, lowered.modules[s.processor]) for s in segments]


def _rows(module: Any, entry: str, processor: str, past: int) -> list[OperatorRow]:
    from passes.analysis.count_traffic import count_traffic
    from passes.lower.kernel_calls import kernel_uses

    rows = []
    for use in kernel_uses(module[entry]):
        counted = count_traffic(module[use.name], past, use.outputs, use.scratch)
        kernels = tuple(
            KernelRow(
                *(k.name, k.launches, k.moved_bytes, k.vector_lanes, k.vector_bits),
                *(k.work_items, k.group, k.tasks, k.register_tile),
            )
            for k in counted.kernels
        )
        buffers = {
            t.name: {
                "read_bytes": t.read_bytes,
                "needed_read_bytes": t.needed_read_bytes,
                "written_bytes": t.written_bytes,
                "needed_written_bytes": t.needed_written_bytes,
            }
            for t in counted.traffic
        }
        moved, needed = counted.moved_bytes, counted.needed_bytes
        rows.append(OperatorRow(use.name, processor, use.calls, moved, needed, buffers, kernels))
    return rows


def _with_registers(rows: list[OperatorRow], lowered: Any, board: Board) -> tuple[list[OperatorRow], str]:
    """The rows with what malioc says of each OpenCL kernel, and a sentence about it; "" where there is none."""
    names = [row.name for row in rows if row.processor == "gpu"]
    if not names or board.gpu is None:
        return rows, ""
    found, sentence = inspect_kernels(lambda: _opencl_source(lowered.modules["gpu"], names), board.gpu.model)
    filled = []
    for row in rows:
        kernels = [dataclasses.replace(k, registers=found.get((row.name, i))) for i, k in enumerate(row.kernels)]
        filled.append(dataclasses.replace(row, kernels=tuple(kernels)) if row.processor == "gpu" else row)
    return filled, sentence


def _opencl_source(module: Any, names: Sequence[str]) -> tuple[str, dict[tuple[str, int], str]]:
    """OpenCL C of functions of a module, and the kernel's name by function and number of the kernel in it."""
    import tvm

    funcs = {name: module[name].with_attr("global_symbol", name) for name in names}
    built = tvm.compile(
        tvm.IRModule(funcs), target=tvm.target.Target({"kind": "opencl", "device": "mali"}, host="llvm")
    )
    source = "".join(str(part.inspect_source()) for part in built.mod.imports)
    kernels: dict[tuple[str, int], str] = {}
    for name in names:
        found = re.findall(rf"__kernel void ({re.escape(name)}_kernel(?:_\d+)?)\(", source)
        in_order = sorted(dict.fromkeys(found), key=lambda kernel: int(re.sub(r".*_kernel_?", "", kernel) or 0))
        kernels |= {(name, i): kernel for i, kernel in enumerate(in_order)}
    return source, kernels
