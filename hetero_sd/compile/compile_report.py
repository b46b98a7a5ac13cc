"""What was compiled as text for people and as JSON for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from shlex import quote

from hetero_sd.compile.build import BuiltModel
from hetero_sd.compile.compile import CompileResult
from hetero_sd.predict.text import variant_table
from hetero_sd.quantisation.cost_text import cost_text

_WIDTH = 118
_MOST_VARIANTS = 3


def compile_text(result: CompileResult, out: Path) -> str:
    """What was decided, why, and how large it is."""
    plan = result.plan
    lines = textwrap.wrap(plan.verdict, _WIDTH)
    lines += [
        line
        for reason in (*(placed.reason for placed in plan.places.values()), *plan.reasons)
        for line in textwrap.wrap(reason, _WIDTH, initial_indent="  - ", subsequent_indent="    ")
    ]
    eos = ", ".join(map(str, result.tokenizer.eos_ids))
    lines.append(f"  - end of text: id {eos}, from {Path(result.tokenizer.eos_source).name}")
    lines += [f"  - {note}" for note in result.notes]
    lines += ["", *variant_table(result.prediction, _MOST_VARIANTS), ""]
    lines += _model_table(result.models)
    lines += cost_text(result.cost) if result.cost is not None else []
    lines.append(f"bundle {out}: {_size(result.bundle_bytes)}; {_how_to_run(result, out)}")
    return "\n".join(lines)


def _model_table(models: Mapping[str, BuiltModel]) -> list[str]:
    """A line for each model below the heads of the columns."""
    heads = f"{'model':8}{'layers':>8}{'multiplied':>17}{'KV cache':>18}{'in ONNX':>10}{'packed':>10}{'library':>10}"
    lines = [f"{heads}  entry points"]
    for role, built in models.items():
        m = built.facts
        widths = ", ".join(map(str, m.widths))
        sizes = "".join(f"{_size(n):>10}" for n in (built.source_bytes, built.weights_bytes, built.library_bytes))
        multiplied = f"{m.weight_dtype} x {m.activations}"
        kv = f"{m.caches.dtype} {_size(m.cache_bytes)}"
        rows = f", rows of {m.slots} requests {', '.join(map(str, m.row_widths))}" if m.row_widths else ""
        entries = f"{widths} and prefill {m.prefill_width}{rows}"
        lines.append(f"{role:8}{m.layers:>8}{multiplied:>17}{kv:>18}{sizes}  {entries}")
    return lines


def _how_to_run(result: CompileResult, out: Path) -> str:
    """A command to copy."""
    if result.runs_here:
        return f"run it with: python {quote(str(out / 'run.py'))} --prompt TEXT"
    return f"copy it to the board and run it there with: python3 {quote(f'{out.name}/run.py')} --prompt TEXT"


def compile_json(result: CompileResult) -> str:
    """The same as one JSON object."""
    models = {
        role: {
            "weight_dtype": built.facts.weight_dtype,
            "activations": built.facts.activations,
            "kv": built.facts.caches.dtype,
            "slots": built.facts.slots,
            "cache_bytes": built.facts.cache_bytes,
            "source_bytes": built.source_bytes,
            "weights_bytes": built.weights_bytes,
            "library_bytes": built.library_bytes,
        }
        for role, built in result.models.items()
    }
    said = {
        "plan": result.plan.to_json(),
        "models": models,
        "bundle_bytes": result.bundle_bytes,
        "notes": list(result.notes),
    }
    if result.cost is not None:
        said["quantisation"] = asdict(result.cost)
    return json.dumps(said, indent=1)


def _size(n: int) -> str:
    for unit in ("B", "KB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000  # type: ignore[assignment]
    return f"{n:.3g} GB"
