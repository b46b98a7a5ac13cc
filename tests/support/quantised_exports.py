"""Committed exports as onnxruntime's quantisers write them; made where they are missing, so none is committed."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer
from unpack_families import unpack_families

DATA = Path(__file__).parents[1] / "data"
Make = Callable[[Path, Path], None]  # (source, destination)


def dynamic(kind: str = "uint8", per_channel: bool = False, reduce_range: bool = False, level: str = "") -> Make:
    """quantize_dynamic; with a level also saved by onnxruntime's optimiser at that level."""

    def make(source: Path, path: Path) -> None:
        weight = QuantType.QUInt8 if kind == "uint8" else QuantType.QInt8
        logging.disable(logging.WARNING)  # it advises a preparation that changes nothing here
        try:
            quantize_dynamic(source, path, weight_type=weight, per_channel=per_channel, reduce_range=reduce_range)
        finally:
            logging.disable(logging.NOTSET)
        if level:
            save(path, path, level)

    return make


MATRICES = ("MatMul", "Gemm", "Gather")


def static(
    kind: str = "int8", per_channel: bool = False, operators: tuple[str, ...] = MATRICES, activations: str = "uint8"
) -> Make:
    """quantize_static in the form QDQ, calibrated on a few random tokens; no operators: all that onnxruntime rounds."""
    types = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8, "uint16": QuantType.QUInt16}

    def make(source: Path, path: Path) -> None:
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # constants that are zero have no scale
                quantize_static(
                    source,
                    path,
                    _Texts(source),
                    quant_format=QuantFormat.QDQ,
                    activation_type=types[activations],
                    weight_type=types[kind],
                    per_channel=per_channel,
                    op_types_to_quantize=list(operators) or None,
                )
        finally:
            logging.disable(logging.NOTSET)

    return make


class _Texts(CalibrationDataReader):  # type: ignore[misc]
    """Five random tokens after four others, three times."""

    def __init__(self, path: Path) -> None:
        rng, new, past = np.random.default_rng(0), 5, 4
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._feeds: list[dict[str, Any]] = []
        for _ in range(3):
            feed: dict[str, Any] = {}
            for value in session.get_inputs():
                if "input_ids" in value.name:
                    feed[value.name] = rng.integers(0, 60, (1, new))
                elif "mask" in value.name:
                    feed[value.name] = np.ones((1, past + new), np.int64)
                elif "position" in value.name:
                    feed[value.name] = np.arange(past, past + new)[None]
                else:
                    feed[value.name] = rng.standard_normal((1, value.shape[1], past, value.shape[3])).astype(np.float32)
            self._feeds.append(feed)

    def get_next(self) -> Any:
        """The next inputs, or None after the last."""
        return self._feeds.pop() if self._feeds else None


def bnb4(table: int, block: int = 64) -> Make:
    """MatMulBnb4Quantizer: codes of a table, 0 for FP4 or 1 for NF4."""

    def make(source: Path, path: Path) -> None:
        quantiser = MatMulBnb4Quantizer(onnx.load(source), table, block)
        quantiser.process()
        onnx.save(quantiser.model.model, path)

    return make


def save(source: Path, path: Path, level: str) -> None:
    """A model as onnxruntime's optimiser saves it, without external files."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "model.onnx"
        options.optimized_model_filepath = str(made)
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        onnx.save(onnx.load(made), path)


# name of a cell of the coverage table -> (export it is made of, how)
MADE: dict[str, tuple[str, Make]] = {
    "llama-ort-dynamic-uint8": ("llama-dynamo-fp32", dynamic()),
    "llama-ort-dynamic-int8-per-channel": ("llama-dynamo-fp32", dynamic("int8", True)),
    "llama-ort-dynamic-int8-reduced": ("llama-dynamo-fp32", dynamic("int8", True, True)),
    "llama-ort-dynamic-uint8-extended": ("llama-dynamo-fp32", dynamic(level="EXTENDED")),
    "llama3-ort-dynamic-uint8-per-channel": ("llama3-legacy17-eager-fp32", dynamic(per_channel=True)),
    "mistral-ort-dynamic-int8": ("mistral-optimum-fp32", dynamic("int8")),
    "phi3-ort-dynamic-uint8": ("phi3-dynamo-fp32", dynamic()),
    "qwen2-ort-dynamic-uint8": ("qwen2-dynamo-fp32", dynamic()),  # the head reads the embedding's numbers
    "qwen3-ort-dynamic-int8-per-channel": ("qwen3-optimum-fp32", dynamic("int8", True)),
    "gemma3-ort-dynamic-uint8": ("gemma3-dynamo-fp32", dynamic()),
    "smollm-ort-dynamic-uint8-extended": ("smollm-optimum-fp32", dynamic(level="EXTENDED")),
    "gpt2-ort-dynamic-int8-per-channel": ("gpt2-legacy17-fp32", dynamic("int8", True)),
    "gpt2-ort-dynamic-uint8-extended": ("gpt2-dynamo-fp32", dynamic(level="EXTENDED")),
    "granite-ort-dynamic-uint8": ("granite-legacy17-fp32", dynamic()),
    "olmo2-ort-dynamic-int8": ("olmo2-dynamo-fp32", dynamic("int8")),
    "llama-ort-static-uint8": ("llama-dynamo-fp32", static("uint8")),
    "llama-ort-static-all-operators": ("llama-dynamo-fp32", static(operators=())),
    "llama-ort-static-16-bit": ("llama-dynamo-fp32", static(activations="uint16")),
    "qwen2-ort-static-int8": ("qwen2-dynamo-fp32", static()),  # the head reads the embedding's numbers
    "gemma3-ort-static-int8-per-channel": ("gemma3-optimum-fp32", static(per_channel=True)),
    "gpt2-ort-static-all-operators": ("gpt2-legacy17-fp32", static(operators=())),
    "llama-ort-bnb4-nf4": ("llama-dynamo-fp32", bnb4(1)),
    "llama-ort-bnb4-nf4-across-columns": ("llama-drafter-dynamo-fp32", bnb4(1)),  # of 96, in blocks of 64
    "qwen2-ort-bnb4-fp4": ("qwen2-legacy18-fp32", bnb4(0)),
    "gemma3-ort-bnb4-nf4-block16": ("gemma3-dynamo-fp32", bnb4(1, 16)),
}


def source_of(name: str) -> Path:
    """The file of a committed export."""
    found = (DATA / "exports" / name, unpack_families(DATA) / name)
    return next(folder / "model.onnx" for folder in found if folder.is_dir())


def quantised_exports(data: Path = DATA) -> Path:
    """Make all of `MADE` in `data`/quantised, each in its folder, unless that has been done; returns the folder."""
    return make_all(data, "quantised", MADE, Path(__file__))


def make_all(data: Path, kind: str, jobs: dict[str, tuple[str, Make]], script: Path) -> Path:
    """Make exports in `data`/`kind`, unless the script that describes them has made them; returns the folder."""
    folder = data / kind
    digest = hashlib.sha256(script.read_bytes() + onnxruntime.__version__.encode()).hexdigest()
    mark = folder / ".sha256"
    if mark.is_file() and mark.read_text() == digest:
        return folder
    with tempfile.TemporaryDirectory(dir=data) as scratch:
        fresh = Path(scratch) / kind
        for name, (source, make) in jobs.items():
            (fresh / name).mkdir(parents=True)
            copy = Path(scratch) / "source"  # the quantisers write beside it, and another test session may do so, too
            shutil.copytree(source_of(source).parent, copy, dirs_exist_ok=True)
            make(copy / "model.onnx", fresh / name / "model.onnx")
            shutil.rmtree(copy)
        (fresh / ".sha256").write_text(digest)
        if folder.exists():
            os.replace(folder, Path(scratch) / "old")
        try:
            os.rename(fresh, folder)
        except OSError:  # another test session was quicker
            if not mark.is_file():
                raise
    return folder
