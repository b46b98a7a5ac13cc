"""An explanation as text for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json

from hetero_sd.explain import Explanation, KernelRow


def explain_json(found: Explanation) -> str:
    """The explanation as one JSON object; `registers` is null where malioc did not say."""
    content = {
        "model": str(found.request.model),
        "board": found.board.name,
        "place": found.request.place,
        "width": found.request.width,
        "past": found.past,
        "context": found.request.context,
        "prefill": found.request.prefill,
        "moved_bytes": found.moved_bytes,
        "needed_bytes": found.needed_bytes,
        "registers_from": found.registers_from,
        "operators": [{"operator": row.operator, **dataclasses.asdict(row)} for row in found.rows],
    }
    return json.dumps(content, indent=1)


_HEADER = (
    *("kernel", "on", "calls", "moved kB", "needed kB", "ratio", "most read"),
    *("vector", "work-items", "group", "tile", "registers"),
)


def explain_text(found: Explanation) -> str:
    """The explanation as a table for a person; bytes are of one call, the last line is of the whole step."""
    request = found.request
    what = f"prompt chunk of {request.width}" if request.prefill else f"step of {request.width}"
    table = [_HEADER]
    for row in found.rows:
        alone = row.kernels[0] if len(row.kernels) == 1 else None
        buffer, times = row.rereads
        ratio = _ratio(row.moved_bytes, row.needed_bytes)
        sizes = (_kb(row.moved_bytes), _kb(row.needed_bytes), ratio, f"{buffer} x{times:.2f}")
        table.append((row.name, row.processor, str(row.calls), *sizes, *(_cut(alone) if alone else ("",) * 5)))
        if alone is None:
            for kernel in row.kernels:
                launches = f" x{kernel.launches}" if kernel.launches > 1 else ""
                table.append((f"  {kernel.name}{launches}", "", "", _kb(kernel.moved_bytes), "", "", "", *_cut(kernel)))
    total = (_kb(found.moved_bytes), _kb(found.needed_bytes), _ratio(found.moved_bytes, found.needed_bytes))
    table.append(("all calls", "", str(sum(row.calls for row in found.rows)), *total, *("",) * 6))
    widths = [max(len(line[i]) for line in table) for i in range(len(_HEADER))]
    left = (0, 1, 6, 7, 10)
    lines = [f"{request.model.name} on {found.board.name}, --place {request.place}: {what} after {found.past} tokens"]
    for cells in table:
        padded = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        lines.append("  ".join(padded).rstrip())
    if found.registers_from:
        lines.append(f"registers: {found.registers_from}")
    return "\n".join(lines)


def _cut(kernel: KernelRow) -> tuple[str, str, str, str, str]:
    items = f"{kernel.work_items}" if kernel.group else f"{kernel.tasks} task{'s' if kernel.tasks != 1 else ''}"
    tile = "x".join(map(str, kernel.register_tile))
    registers = kernel.registers.text if kernel.registers else "unknown" if kernel.group else ""
    vector = f"{kernel.vector_lanes} x {kernel.vector_bits} bit" if kernel.vector_bits else ""
    return (vector, items, str(kernel.group or ""), tile, registers)


def _kb(count: int) -> str:
    return f"{count / 1000:,.1f}"


def _ratio(moved: int, needed: int) -> str:
    return f"{moved / needed:.2f}" if needed else "-"
