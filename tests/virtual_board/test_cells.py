"""Cells of the coverage table on the virtual board: other operators, formats and exporters than the pair."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from hetero_sd.compile.compile import compile_bundle
from hetero_sd.compile.request import CompileRequest
from hetero_sd.progress import Progress
from hetero_sd.verify import VerifyRequest, verify_bundle
from passes.onnx.testing import write_word_tokenizer

pytestmark = [pytest.mark.deep, pytest.mark.virtual_board]

_DATA = Path(__file__).resolve().parents[1] / "data"
# soft GELU gate, norms before and after, q and k norm, a window in every second layer; 4 bit blocks, lengths for a mask
# folder, prompt, what block-quantised matrix multiplications read
_CELLS = [
    (_DATA / "families" / "gemma3-dynamo23-fp32", "w5 w9 w33 w2 w60 w17 w8", "float"),
    (_DATA / "exports" / "qwen3-genai-int4", "The drafter is small and quick.", "float"),
    (_DATA / "exports" / "qwen3-genai-int4", "The drafter is small and quick.", "int8"),
]


def perturbed(source: Path, folder: Path) -> Path:
    """The same export with one element of each norm's weights changed."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 1 and tensor.dims[0] >= 32 and tensor.data_type == onnx.TensorProto.FLOAT:
            numbers = np.array(onnx.numpy_helper.to_array(tensor))
            numbers[0] *= 1.5
            tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, tensor.name))
    onnx.save(model, folder / "negative control.onnx")
    return folder / "negative control.onnx"


@pytest.mark.parametrize(("cell", "prompt", "activations"), _CELLS)
def test_the_board_computes_the_logits_of_onnxruntime(
    virtual_board: Any, cell: Path, prompt: str, activations: str, tmp_path: Path
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(cell, model)
    out.mkdir()
    if not (model / "tokenizer.json").exists():
        write_word_tokenizer(model, 64)
    source, bundle = model / "model.onnx", tmp_path / "bundle"
    compile_bundle(CompileRequest(source, None, "imx95", bundle, context=64, activations=activations), Progress())
    argv = ["/usr/bin/python3", "/bundle/run.py", "--threads", "2", "--prompt", prompt, "--max-new-tokens", "24"]
    argv += ["--save-logits", "/out/logits"]
    done = virtual_board.run(argv, mounts={bundle: ("/bundle", True), out: ("/out", False)})
    assert done.returncode == 0, done.stderr
    result = verify_bundle(VerifyRequest(bundle, source, saved=out / "logits"))
    assert result.passed, result
    assert result.rows >= 8
    control = verify_bundle(VerifyRequest(bundle, perturbed(source, model), saved=out / "logits"))
    assert not control.passed, control
