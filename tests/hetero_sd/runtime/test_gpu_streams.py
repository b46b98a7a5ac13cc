"""Gemma 3n on an OpenCL device, whole and with a layer's parts on both processors: the numbers of its export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from unpack_families import unpack_families

from costmodel.place import Place, ReasonedPlace
from hetero_sd.reference import ReferenceModel
from hetero_sd.runtime.manifest import Bundle, write_manifest
from targets.boards import load_board

EXPORT = unpack_families(Path(__file__).parents[2] / "data") / "gemma3n-dynamo-fp32" / "model.onnx"
CONTEXT = 32


@pytest.mark.slow
@pytest.mark.parametrize("place", ["gpu", "gpu:ffn"])
def test_gemma_3n_where_a_gpu_has_a_part(place: str, opencl: Any, tmp_path: Path, released: None) -> None:
    """Prompts, steps and rows to verify; a row has the same bits alone; another token gives another number."""
    from hetero_sd.compile.build import ModelRequest, Sizes, build_model
    from hetero_sd.compile.bundle import copy_opencl_runtime
    from hetero_sd.runtime.model.model import load_models
    from passes.onnx import canonicalise

    folder = tmp_path / "bundle"
    runtime = copy_opencl_runtime(folder / "python", load_board("host", measure=False).isa)
    core, gpu = load_board("host", measure=False).clusters[0].core, load_board("rk3566").gpu
    decoder, where = canonicalise(EXPORT, CONTEXT), ReasonedPlace(Place.parse(place))
    built = build_model(ModelRequest("target", decoder, core, where, Sizes(CONTEXT, (1, 3), 8), gpu, runtime), folder)
    write_manifest(folder, {"target": built.facts})
    model = load_models(Bundle(folder)).target
    ids = np.random.default_rng(5).integers(0, decoder.facts.vocab, 12).tolist()
    expected = ReferenceModel(EXPORT, threads=1).forward(ids)
    together = np.concatenate([model.forward(ids[i : i + 3], i).copy() for i in range(0, 12, 3)])
    assert np.abs(together - expected).max() < 2e-5 * np.abs(expected).max()
    alone = np.concatenate([model.forward([token], i).copy() for i, token in enumerate(ids)])
    assert np.array_equal(alone, together)
    other = model.forward([(ids[0] + 1) % decoder.facts.vocab], 0)
    assert np.abs(other - expected[:1]).max() > 1e-2 * np.abs(expected).max()
