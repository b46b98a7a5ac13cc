"""One reader under atheris: python tests/attack/reader_worker.py READER plant|- [options of libFuzzer]."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hetero_sd", "costmodel", "passes", "targets", "json"]):
    from hetero_sd.runtime.manifest import read_manifest, write_manifest
    from hetero_sd.runtime.model.safetensors_header import lay_out, read_header
    from passes.onnx.load.read_proto import read_proto
    from targets.errors import UserError
    from tests.attack.workers import EXPORTS
    from tests.support.bundles import some_model, some_plan

FOLDER = Path(os.environ["HSD_FUZZ_FOLDER"])
PLANT = sys.argv[2] == "plant"


def one_line(error: UserError) -> None:
    assert "\n" not in str(error)


def safetensors(data: bytes) -> None:
    try:
        entries, _ = read_header(io.BytesIO(data), len(data), "x")
    except UserError as error:
        one_line(error)
        return
    assert sum(entry.nbytes for entry in entries) <= len(data)
    assert all(0 <= entry.offset and entry.offset + entry.nbytes <= len(data) for entry in entries)


def proto(data: bytes) -> None:
    path = FOLDER / "x.onnx"
    path.write_bytes(data)
    try:
        read_proto(path)
    except ValueError:
        return


def manifest(data: bytes) -> None:
    path = FOLDER / "manifest.json"
    path.write_bytes(data)
    try:
        read_manifest(path)
    except UserError as error:
        one_line(error)


def seeds(reader: str) -> list[bytes]:
    """Whole files, to begin from."""
    if reader == "safetensors":
        head, _ = lay_out([("a", "float32", (2, 3)), ("b", "int8", (5,))], {"model": "target"})
        return [head + bytes(128)]
    if reader == "proto":
        return [(EXPORTS / "llama-genai-fp32" / "model.onnx").read_bytes()[:60000], b"\x3a\x02\x0a\x00"]
    folder = FOLDER / "bundle"
    for name in ("lib/target.so", "weights/target.safetensors"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()
    write_manifest(folder, {"target": some_model()}, some_plan())
    return [(folder / "manifest.json").read_bytes()]


def main() -> None:
    reader = sys.argv[1]
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for i, content in enumerate(seeds(reader)):
        (corpus / str(i)).write_bytes(content)
    read = {"safetensors": safetensors, "proto": proto, "manifest": manifest}[reader]

    def one(data: bytes) -> None:
        if PLANT and len(data) % 5 == 3:
            raise KeyError("planted")
        read(data)

    atheris.Setup([sys.argv[0], *sys.argv[3:], str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
