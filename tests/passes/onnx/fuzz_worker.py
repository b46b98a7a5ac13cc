"""Damages small exports in seeded ways and imports each: every file must end in one line, or mean what it says.

A file that is imported must answer as onnxruntime does on the damaged file itself, unless onnxruntime cannot load or
run that (answers.py says how they are compared).

    python tests/passes/onnx/fuzz_worker.py --first 0 --count 5000        a share of the seeds, as the test does
    python tests/passes/onnx/fuzz_worker.py --first 1234 --count 1 -v     one seed again, with its traceback

Bytes are flipped, cut out and repeated; fields of the protobuf are changed, dropped, doubled and swapped, whatever
they are (dimensions, types, names, attributes, edges, external data). A seed is a file and its damage. Time is
limited by RLIMIT_CPU before each file, which ends this process; memory by what /proc says of the peak.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import resource
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "tests" / "data"
FILES = [
    *(DATA / "exports" / f"{name}/model.onnx" for name in ("llama-genai-fp32", "llama-genai-int4", "qwen2-genai-int4")),
    *(DATA / "exports" / f"{name}/model.onnx" for name in ("qwen2-genai-cuda-fp16", "qwen3-genai-int4")),
    *(DATA / "dialects" / f"{name}.onnx" for name in ("llama-opset23", "llama-ids-only", "phi3-packed", "gemma")),
]
CONTEXT = 16
CPU_S = 20  # of one file; a whole one takes 0.1 to 0.4
EXTRA_BYTES, TIMES_FILE = 192 << 20, 4  # memory that a file may cost: a constant and a multiple of its size
LONGEST_LINE = 1500
NUMBERS = [0, 1, 2, 3, 5, 7, 16, 23, 255, 4096, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 32, 1 << 40, (1 << 63) - 1]


class Failure(Exception):
    """What a damaged file must not do."""


# ---- damage ----------------------------------------------------------------------------------------------------------


def damaged(seed: int, folder: Path) -> Path:
    """Write the file of a seed into an empty folder."""
    rng = np.random.default_rng([20261121, seed])
    source = FILES[int(rng.integers(len(FILES)))]
    path = folder / source.name
    for beside in source.parent.glob(f"{source.name}.data"):
        (folder / beside.name).write_bytes(_in_bytes(rng, beside.read_bytes(), 0.02))
    content = source.read_bytes()
    if rng.random() < 0.2:
        path.write_bytes(_in_bytes(rng, content, 1.0))
        return path
    proto = onnx.ModelProto.FromString(content)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3, 6]))):
        _in_fields(rng, proto)
    path.write_bytes(proto.SerializeToString())
    return path


def _in_bytes(rng: np.random.Generator, content: bytes, chance: float) -> bytes:
    """Flip, cut out, repeat or append bytes."""
    if rng.random() >= chance or not content:
        return content
    kind, array = rng.integers(5), np.frombuffer(content, np.uint8).copy()
    edge = 6000 if rng.random() < 0.7 else len(array)  # structure is at the ends, weights in the middle
    places = rng.integers(min(edge, len(array)), size=int(rng.choice([1, 2, 4, 16, 64])))
    places = places if rng.random() < 0.5 else len(array) - 1 - places
    start, end = np.sort(rng.integers(len(array) + 1, size=2))
    if kind == 0:
        return bytes(array[: int(end)])
    if kind == 1:
        end = min(int(end), int(start) + int(rng.integers(1, 64)))
        return bytes(np.delete(array, np.arange(start, end)))
    if kind == 2:
        piece = array[int(start) : int(start) + int(rng.integers(1, 64))]
        return bytes(np.insert(array, int(places[0]), piece))
    array[places] = rng.integers(256, size=len(places)) if kind == 3 else array[places] ^ (1 << rng.integers(8))
    return bytes(array)


def _in_fields(rng: np.random.Generator, proto: Any) -> None:
    """Change one field of one message; every kind of message is as likely, however many there are."""
    if rng.random() < 0.3:
        return _rewire(rng, proto)
    kinds: dict[str, list[Any]] = {}
    for message in _messages(proto):
        kinds.setdefault(message.DESCRIPTOR.name, []).append(message)
    message = _one(rng, kinds[_one(rng, sorted(kinds))])
    fields = [f for f in message.DESCRIPTOR.fields if f.name not in ("doc_string", "metadata_props")]
    present = [f for f, _ in message.ListFields()]
    field = _one(rng, present if present and rng.random() < 0.85 else fields)
    if not field.is_repeated:
        if rng.random() < 0.15:
            message.ClearField(field.name)
        elif field.type != FieldDescriptor.TYPE_MESSAGE:
            with contextlib.suppress(ValueError, TypeError):  # not a value that this field can hold
                setattr(message, field.name, _value(rng, field, getattr(message, field.name)))
        return None
    values = getattr(message, field.name)
    kind, k = int(rng.integers(5)), int(rng.integers(max(1, len(values))))
    if kind == 0 and len(values):
        del values[k]
    elif kind == 1 and len(values):
        copy = (
            list(values)
            if field.type != FieldDescriptor.TYPE_MESSAGE
            else [type(v).FromString(v.SerializeToString()) for v in values]
        )
        copy.insert(int(rng.integers(len(copy) + 1)), copy[k])
        del values[:]
        values.extend(copy)
    elif kind == 2 and len(values) > 1 and field.type == FieldDescriptor.TYPE_MESSAGE:
        other = int(rng.integers(len(values)))
        first, second = (values[i].SerializeToString() for i in (k, other))
        values[k].ParseFromString(second)
        values[other].ParseFromString(first)
    elif field.type != FieldDescriptor.TYPE_MESSAGE:
        with contextlib.suppress(ValueError, TypeError):
            if len(values) and kind == 3:
                values[k] = _value(rng, field, values[k])
            else:
                values.append(_value(rng, field, values[k] if len(values) else None))
    return None


def _rewire(rng: np.random.Generator, proto: Any) -> None:
    """Let a node read another value, be another operator, or stand twice."""
    nodes = proto.graph.node
    if not nodes:
        return
    names = [n for node in nodes for n in node.output] + [t.name for t in proto.graph.initializer]
    names += [v.name for v in proto.graph.input]
    node, kind = nodes[int(rng.integers(len(nodes)))], rng.integers(4)
    if kind == 0 and node.input:
        node.input[int(rng.integers(len(node.input)))] = _one(rng, names) if rng.random() < 0.9 else ""
    elif kind == 1:
        other = nodes[int(rng.integers(len(nodes)))]
        node.op_type, node.domain = other.op_type, other.domain
    elif kind == 2 and proto.graph.initializer:
        tensor = proto.graph.initializer[int(rng.integers(len(proto.graph.initializer)))]
        change = int(rng.integers(4))
        if change == 0 and tensor.dims:
            tensor.dims[int(rng.integers(len(tensor.dims)))] = int(_one(rng, NUMBERS))
        elif change == 1:
            tensor.dims[:] = list(tensor.dims)[::-1] if rng.random() < 0.5 else [1, *tensor.dims]
        elif change == 2:
            tensor.data_type = int(rng.integers(0, 25))
        else:
            size = int(np.prod(tensor.dims, dtype=np.float64)) if len(tensor.dims) else 1
            tensor.dims[:] = [size] if size < 1 << 62 else []
    else:
        for outputs in (node.output, node.input):
            if outputs and rng.random() < 0.5:
                outputs[int(rng.integers(len(outputs)))] = _one(rng, names)


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE and field.name != "metadata_props":
            for part in value if field.is_repeated else [value]:
                yield from _messages(part)


def _value(rng: np.random.Generator, field: Any, old: Any) -> Any:
    """Another value for a field."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            old = bytes(old or b"")
            return [old[:-1], old + b"\x00", b"", old[: len(old) // 2], b"\xff" * len(old)][int(rng.integers(5))]
        choices = [
            "",
            "x",
            "\n",
            "input_ids",
            "logits",
            "present.0.key",
            "../../etc/passwd",
            "\u202e\x1b[31m",
            "a" * 100_000,
        ]
        choices += [str(old or "") + "0", str(_one(rng, NUMBERS)), "-1", "int4", "/", "model.onnx", "com.microsoft"]
        return _one(rng, choices)
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return float(_one(rng, [0.0, 1.0, -1.0, 1e30, -1e30, float("nan"), float("inf"), 1e-30, 0.5]))
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return int(_one(rng, [v.number for v in field.enum_type.values]))
    old = int(old or 0)
    return int(_one(rng, [*NUMBERS, *(-n for n in NUMBERS), old + 1, old - 1, 2 * old, old // 2, -old]))


def _one(rng: np.random.Generator, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


# ---- the check -------------------------------------------------------------------------------------------------------


def check(seed: int) -> str:
    """Import the file of a seed; what became of it.

    Raises:
        Failure: anything but one line or success, or another answer than onnxruntime's.
    """
    from hetero_sd.cli import main
    from passes.onnx import canonicalise
    from targets.errors import UserError
    from tests.passes.onnx.answers import compare

    with tempfile.TemporaryDirectory() as name:
        path = damaged(seed, Path(name))
        size = sum(p.stat().st_size for p in Path(name).iterdir())
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
        spent = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(spent.ru_utime + spent.ru_stime) + 1 + CPU_S
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
        try:
            decoder = None if seed % 50 == 0 else canonicalise(path, CONTEXT)
            outcome = _inspect(main, path) if decoder is None else "imported"
        except UserError as error:
            decoder, outcome = None, _line(str(error), path)
        except (Exception, SystemExit) as error:
            raise Failure(traceback.format_exc()) from error
        grown, allowed = _memory("VmHWM") - before, EXTRA_BYTES + TIMES_FILE * size
        if grown > allowed:
            raise Failure(f"{grown >> 20} MiB for a file of {size >> 10} KiB; allowed are {allowed >> 20}; {outcome}")
        if decoder is not None:
            print(
                "comparing", seed, flush=True
            )  # if onnxruntime ends this process now, that is not the importer's fault
            resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            answers = compare(path, decoder)
            # a compile refuses NaN weights (passes/lower/check_finite.py); an export may turn scores of NaN into 0
            if not answers.equal and not _finite(decoder):
                return f"refused where it is compiled: a weight is not finite\t{grown}"
            if not answers.equal:
                raise Failure(f"another answer than onnxruntime's: {answers.difference:.3g} bounds at {answers.where}")
            outcome += " and equal" if answers.cases else f"; onnxruntime {answers.reason}"
        return f"{outcome}\t{grown}"


def _finite(decoder: Any) -> bool:
    """Whether all weights of a canonical decoder are."""
    weights = (value.const_value.numpy() for value in decoder.model.graph.initializers.values())
    return all(np.isfinite(array).all() for array in weights if array.dtype.kind == "f")


def _inspect(main: Any, path: Path) -> str:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["inspect", str(path), "--context", str(CONTEXT), "--json"])
    if code == 2:
        return _line(err.getvalue().rstrip("\n"), path)
    found = json.loads(out.getvalue())
    if found["compiles"] != (code == 0) or err.getvalue():
        raise Failure(f"inspect ended with {code} and said {err.getvalue() or found['refused']}")
    for line in found["refused"]:
        _line(line, None)
    return "inspected"


def _line(text: str, path: Path | None) -> str:
    """A message, if it is fit for a user."""
    if "can make no sense of the graph" in text:
        raise Failure(f"caught at the outermost level only: {text}")
    if not text.isprintable() or len(text) > LONGEST_LINE or (path is not None and str(path) not in text):
        raise Failure(f"not one clear line that names the file: {text[:2000]!r}")
    return text.replace(str(path), "FILE")


def _memory(key: str) -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0])


def plant(kind: str) -> None:
    """Put a defect into the importer, so that a test can see that it is found."""
    import onnx_ir as ir

    import passes.onnx as importer

    def defect(imp: Any) -> Any:
        if kind == "KeyError":
            raise KeyError("planted")
        if kind == "answer":  # norms with a tenth more
            for node in imp.graph:
                if "epsilon" in node.attributes:
                    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.1)
            return importer.PassLog("defect", 0)
        if kind == "exit":
            resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
            while True:  # a loop without end is stopped by the limit
                pass
        np.ones(EXTRA_BYTES // 2)  # 8 bytes each
        return importer.PassLog("defect", 0)

    importer.PIPELINE.insert(len(importer.PIPELINE) if kind == "answer" else 3, defect)


def main() -> int:
    """Print "SEED failure as JSON" a line, and at the end how many files were imported, refused and failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--plant", choices=["KeyError", "memory", "exit", "answer"])
    parser.add_argument("-v", action="store_true", help="print what became of each file")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    from passes.onnx import canonicalise

    canonicalise(FILES[-1], CONTEXT)  # what a first import leaves in memory belongs to no damaged file
    import tests.passes.onnx.answers  # noqa: F401 (what importing it takes belongs to no damaged file)

    if options.plant:
        plant(options.plant)
    counts = {"imported": 0, "equal": 0, "refused": 0, "failed": 0}
    for seed in range(options.first, options.first + options.count):
        print("seed", seed, json.dumps(counts), flush=True)  # of the seeds before, should this one end the process
        try:
            outcome = check(seed)
            counts["imported" if outcome.startswith("i") else "refused"] += 1
            counts["equal"] += outcome.startswith("imported and equal")
            if options.v:
                print(outcome, flush=True)
        except Failure as failure:
            counts["failed"] += 1
            print("failed", seed, json.dumps(str(failure)), flush=True)
    print("done", json.dumps(counts), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
