"""Target and draft on different processors of an Arm board, both ways round, answer as this machine's CPU does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from hetero_sd.cli import main

pytestmark = [pytest.mark.deep, pytest.mark.virtual_board]

_EXPORTS = Path(__file__).resolve().parents[1] / "data" / "exports"
_TARGET = _EXPORTS / "llama-dynamo-fp32"
_PLACES = ("target=cpu,draft=gpu", "target=gpu,draft=cpu")
_QUESTION = ("--prompt", "Once upon a time", "--max-new-tokens", "12", "--mode", "speculative", "--json")


def drafter(folder: Path) -> Path:
    """The target with other weights: it drafts other tokens, but its kernels are the target's."""
    proto, rng = onnx.load(_TARGET / "model.onnx"), np.random.default_rng(1)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2:
            x = onnx.numpy_helper.to_array(tensor)
            x = (x * rng.uniform(0.5, 1.5, x.shape)).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(x, tensor.name))
    path = folder / "drafter.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def compiled(folder: Path, board: str, place: str, *options: str) -> Path:
    """The tiny target and its drafter as a bundle."""
    draft = drafter(folder.parent)
    pair = [str(_TARGET / "model.onnx"), "--draft", str(draft), "--tokenizer", str(_TARGET)]
    sizes = ["--context", "64", "--gamma", "2", "--place", place, "--board", board]
    assert main(["compile", *pair, *sizes, "--out", str(folder), *options]) == 0
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """Token ids of this machine's CPU."""
    bundle = compiled(tmp_path_factory.mktemp("host") / "bundle", "host", "cpu")
    done = subprocess.run([sys.executable, str(bundle / "run.py"), *_QUESTION], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ids: list[int] = json.loads(done.stdout)["token_ids"]
    assert len(ids) == 12
    return ids


@pytest.fixture(scope="module")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PoCL's compiled kernels, kept between the placements: compiling under emulation is nearly all of the time."""
    return tmp_path_factory.mktemp("pocl")


@pytest.mark.parametrize("place", _PLACES)
def test_tokens_of_the_host(
    opencl_board: Any, expected: list[int], kernel_cache: Path, tmp_path: Path, place: str
) -> None:
    bundle = compiled(tmp_path / "bundle", "rk3566", place, "--no-cpu-fallback")
    done = opencl_board.run(
        ["/usr/bin/python3", "/bundle/run.py", "--threads", "1", *_QUESTION],
        mounts={bundle: ("/bundle", True), kernel_cache: ("/cache", False)},
        env={
            "PYTHONPATH": "/site",
            "POCL_CACHE_DIR": "/cache",
            "POCL_MAX_PTHREAD_COUNT": "1",  # one core for the kernels, one for the CPU's model
            "HSD_OPENCL_CACHE": "",
        },
        timeout_s=1200,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["token_ids"] == expected
    assert 0 < answer["stats"]["accepted"] < answer["stats"]["drafted"]
    assert "gpu" in json.dumps(json.loads((bundle / "manifest.json").read_text())["models"])
