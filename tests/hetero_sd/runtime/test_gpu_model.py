"""A compiled model on an OpenCL device: ten thousand tokens without a leak, weights that are shared, kernels kept.

And one of which the CPU has a part.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from requirements import only_where

from costmodel.place import Place, ReasonedPlace
from hetero_sd.runtime.manifest import Bundle, write_manifest
from targets.boards import load_board

ROOT = Path(__file__).resolve().parents[3]
EXPORT = ROOT / "tests/data/exports/llama-dynamo-fp32/model.onnx"
CONTEXT = 32


@pytest.fixture(scope="module")
def bundle(opencl: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers on the GPU alone, one token a step."""
    from hetero_sd.compile.build import ModelRequest, Sizes, build_model
    from hetero_sd.compile.bundle import copy_opencl_runtime
    from passes.onnx import canonicalise

    folder = tmp_path_factory.mktemp("gpu") / "bundle"
    runtime = copy_opencl_runtime(folder / "python", load_board("host", measure=False).isa)
    core, gpu = load_board("host", measure=False).clusters[0].core, load_board("rk3566").gpu
    decoder, sizes = canonicalise(EXPORT, CONTEXT), Sizes(CONTEXT, (1,), 8)
    place = ReasonedPlace(Place("gpu"))
    built = build_model(ModelRequest("target", decoder, core, place, sizes, gpu, runtime), folder)
    write_manifest(folder, {"target": built.facts})
    return folder


@pytest.fixture
def model(bundle: Path, opencl: Any) -> Iterator[Any]:
    import tvm_ffi

    from hetero_sd.runtime.model.model import load_models

    loaded = load_models(Bundle(bundle)).target
    yield loaded
    del loaded
    gc.collect()
    tvm_ffi.get_global_func("vm.builtin.memory_manager.clear")()


@pytest.mark.deep
def test_no_leak_over_ten_thousand_tokens(bundle: Path, runtime_library: Path) -> None:
    """In a process of its own: what other tests left behind comes and goes in the memory of this one."""
    env = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}",
        "POCL_CACHE_DIR": str(bundle.parent / "pocl"),
        "PYTHONMALLOC": "malloc",
    }
    script = Path(__file__).with_name("long_text.py")
    command = [sys.executable, str(script), str(bundle), str(runtime_library), str(CONTEXT)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["same"]
    assert (seen["buffers"], seen["device_bytes"]) == (0, 0)
    assert seen["heap_bytes"] < 100_000  # ten bytes a token
    assert seen["control_buffers"] == 3  # the negative controls: three more buffers, and 100 bytes kept for each token
    assert seen["control_heap_bytes"] > 1_000_000


@pytest.mark.slow
def test_weights_are_shared_with_the_mapped_file(
    model: Any, bundle: Path, opencl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hetero_sd.runtime.model.model import load_models
    from hetero_sd.runtime.model.weights import Weights

    only_where(opencl.devices()[0]["type"] == "cpu", "only a CPU's driver is sure to share memory with the host")
    weights = Weights(bundle / "weights/target.safetensors")
    total = sum(weights[name].nbytes for name in weights)
    assert opencl.memory()["imported_bytes"] == total
    shared = model.forward([1, 2, 3], 0)
    monkeypatch.setenv("HSD_OPENCL_IMPORT", "0")
    before = opencl.memory()
    copied = load_models(Bundle(bundle)).target
    assert opencl.memory()["imported_bytes"] == total  # no more of them
    assert opencl.memory()["bytes"] - before["bytes"] >= total
    np.testing.assert_array_equal(copied.forward([1, 2, 3], 0), shared)
    assert not np.array_equal(copied.forward([1, 2, 4], 0), shared)


def start(bundle: Path, *options: str, **env: str) -> tuple[list[int], str]:
    """One process: the tokens it generates, and what it says on standard error."""
    prompts = bundle.parent / "prompts.jsonl"
    prompts.write_text('{"token_ids": [5]}\n')
    code = "import sys; from hetero_sd.runtime.run import main; sys.exit(main(sys.argv[1], sys.argv[2:]))"
    arguments = [str(bundle), "--prompts", str(prompts), "--json", "--max-new-tokens", "4", *options]
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("HSD_", "XDG_"))}
    settings |= {"PYTHONPATH": str(ROOT), "POCL_CACHE_DIR": str(bundle.parent / "pocl"), **env}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=settings)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["token_ids"], done.stderr


def entries(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("*.clbin")}


@pytest.mark.slow
def test_where_kernels_are_kept(bundle: Path, tmp_path: Path) -> None:
    """--cache-dir, then the XDG folder, then none."""
    stated, xdg, home = tmp_path / "stated" / "deep", tmp_path / "xdg", tmp_path / "home"
    home.mkdir()
    wanted, said = start(bundle, "--cache-dir", str(stated), XDG_CACHE_HOME=str(xdg), HOME=str(home))
    kept = entries(stated)
    assert len(kept) > 10
    assert (said, xdg.exists(), list(home.iterdir())) == ("", False, [])

    damaged, shortened = sorted(kept)[:2]
    (stated / damaged).write_bytes(kept[damaged][1][:-1] + b"!")
    (stated / shortened).write_bytes(kept[shortened][1][:20])
    assert start(bundle, "--cache-dir", str(stated))[0] == wanted
    now = entries(stated)
    assert {name for name in kept if now[name][0] != kept[name][0]} == {damaged, shortened}  # those alone were rebuilt
    assert {name: data for name, (_, data) in now.items()}.keys() == kept.keys()

    assert start(bundle, XDG_CACHE_HOME=str(xdg), HOME=str(home)) == (wanted, "")
    assert entries(xdg / "hetero_sd/opencl").keys() == kept.keys()
    assert list(home.iterdir()) == []

    (tmp_path / "file").write_text("")
    nowhere = str(tmp_path / "file" / "home")  # a home that cannot be written, for root too
    assert start(bundle, HOME=nowhere) == (wanted, "")
    tokens, said = start(bundle, "--cache-dir", nowhere, HOME=str(home))
    assert tokens == wanted
    assert said == (
        f"run.py: note: --cache-dir {nowhere} cannot be written: GPU kernels that are not in it are compiled at every "
        "start\n"
    )
    assert list(home.iterdir()) == []
    shutil.rmtree(stated)


@pytest.mark.slow
def test_a_weight_above_the_largest_allocation_is_named(bundle: Path, fake_opencl: str) -> None:
    """The embedding of this model is 32 KiB and more."""
    prompts = bundle.parent / "prompts.jsonl"
    prompts.write_text('{"token_ids": [5]}\n')
    code = "import sys; from hetero_sd.runtime.run import main; sys.exit(main(sys.argv[1], sys.argv[2:]))"
    arguments = [str(bundle), "--prompts", str(prompts), "--json", "--opencl-lib", fake_opencl]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FAKE_MAX_ALLOC": "16384"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "tensor " in done.stderr
    assert "is larger than CL_DEVICE_MAX_MEM_ALLOC_SIZE = 16384 bytes of a GPU" in done.stderr


def test_nan_on_the_gpu_stops_argmax_forward_and_extend(bundle: Path, tmp_path: Path, released: None) -> None:
    from hetero_sd.runtime.model.model import load_models
    from hetero_sd.runtime.model.protocol import NotFiniteError
    from hetero_sd.runtime.model.weights import Weights

    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    calls = (lambda m: m.argmax([1, 2], 0), lambda m: m.forward([1], 0), lambda m: m.extend(list(range(1, 20)), 0))
    intact = load_models(Bundle(folder)).target
    for call in calls:
        call(intact)
    path = folder / "weights" / "target.safetensors"
    (name,) = [n for n in Weights(path) if n.endswith("model.norm.weight")]
    with path.open("r+b") as file:
        file.seek(Weights(path).entry(name).offset)
        file.write(np.float32(np.nan).tobytes())
    write_manifest(folder, Bundle(folder).models)  # else the weights are refused as damaged
    spoilt = load_models(Bundle(folder)).target
    for call in calls:
        with pytest.raises(NotFiniteError, match="the target computed logits that are not finite"):
            call(spoilt)


@pytest.mark.slow
def test_a_value_that_both_processors_use(opencl: Any, tmp_path: Path, released: None) -> None:
    """The input of a layer comes from the GPU: the CPU's attention and the GPU's feed-forward part both read it."""
    from hetero_sd.compile.build import ModelRequest, Sizes, build_model
    from hetero_sd.compile.bundle import copy_opencl_runtime
    from hetero_sd.runtime.model.model import load_models
    from passes.testing import TinyDecoder

    board, gpu = load_board("host", measure=False), load_board("rk3566").gpu
    decoder, sizes = TinyDecoder(layers=2, parallel=True).decoder(), Sizes(CONTEXT, (1,), 8)
    models = {}
    for place in ("cpu", "gpu:ffn"):
        folder = tmp_path / place.replace(":", "_")
        runtime = copy_opencl_runtime(folder / "python", board.isa)
        where = ReasonedPlace(Place.parse(place))
        request = ModelRequest("target", decoder, board.clusters[0].core, where, sizes, gpu, runtime)
        write_manifest(folder, {"target": build_model(request, folder).facts})
        models[place] = load_models(Bundle(folder)).target
    processors = [s.processor for s in models["gpu:ffn"]._facts.chain if "x4" in (*s.inputs, *s.outputs)]
    assert processors == ["gpu", "gpu", "cpu", "gpu"]  # the third reads what the first made, then the fourth
    for ids in ([3], [1, 4, 2]):
        on_cpu, split = (models[place].forward(ids, 0) for place in ("cpu", "gpu:ffn"))
        assert np.abs(split - on_cpu).max() < 1e-4 * np.abs(on_cpu).max()
    assert np.abs(models["gpu:ffn"].forward([1, 4, 3], 0) - on_cpu).max() > 1e-2 * np.abs(on_cpu).max()


@pytest.mark.slow
def test_int8_activations_wherever_a_part_runs(opencl: Any, tmp_path: Path, released: None) -> None:
    """One arithmetic for a model: nearer to the rounded reference than that is to floats, whole or split."""
    from hetero_sd.compile.build import ModelRequest, Sizes, build_model
    from hetero_sd.compile.bundle import copy_opencl_runtime
    from hetero_sd.reference import ReferenceModel
    from hetero_sd.runtime.model.model import load_models
    from passes.onnx import canonicalise

    export = EXPORT.parent.with_name("llama-genai-int4") / "model.onnx"
    board, gpu = load_board("host", measure=False), load_board("rk3566").gpu
    ids = [5, 1, 9, 200, 31, 7, 7, 12]
    rounded = ReferenceModel(export, threads=1, activations="int8").forward(ids)
    step = np.sqrt(np.square(ReferenceModel(export, threads=1).forward(ids) - rounded).mean())
    for place, activations in (("gpu", "int8"), ("gpu:ffn", "int8"), ("gpu", "float")):
        folder = tmp_path / f"{place.replace(':', '_')}_{activations}"
        runtime = copy_opencl_runtime(folder / "python", board.isa)
        where, sizes = ReasonedPlace(Place.parse(place)), Sizes(CONTEXT, (1,), 8)
        given = ("target", canonicalise(export, CONTEXT), board.clusters[0].core, where, sizes, gpu, runtime)
        request = ModelRequest(*given, activations=activations)
        write_manifest(folder, {"target": build_model(request, folder).facts})
        model = load_models(Bundle(folder)).target
        rows = np.concatenate([model.forward([token], pos).copy() for pos, token in enumerate(ids)])
        off = np.sqrt(np.square(rows - rounded).mean()) / step
        assert off < 0.2 if activations == "int8" else off > 0.8, place  # the negative control: floats


@pytest.mark.slow
def test_caches_of_codes_on_either_processor(opencl: Any, tmp_path: Path, released: None) -> None:
    """What the GPU computes with them is what the CPU does, and its rows do not depend on their number."""
    from hetero_sd.compile.build import ModelRequest, Sizes, build_model
    from hetero_sd.compile.bundle import copy_opencl_runtime
    from hetero_sd.runtime.model.model import load_models
    from passes.testing import TinyDecoder

    board, gpu = load_board("host", measure=False), load_board("rk3566").gpu
    decoder, sizes = TinyDecoder(layers=2).decoder(), Sizes(CONTEXT, (1, 3), 8)
    models = {}
    for place, kv in (("cpu", "float32"), ("cpu", "int8"), ("gpu", "int8")):
        folder = tmp_path / f"{place}-{kv}"
        runtime = copy_opencl_runtime(folder / "python", board.isa)
        where, core = ReasonedPlace(Place.parse(place)), board.clusters[0].core
        request = ModelRequest("target", decoder, core, where, sizes, gpu, runtime, kv=kv)
        write_manifest(folder, {"target": build_model(request, folder).facts})
        models[place, kv] = load_models(Bundle(folder)).target
    ids = [1, 4, 2]
    exact, on_cpu, on_gpu = (model.forward(ids, 0) for model in models.values())
    assert np.abs(on_gpu - on_cpu).max() < 1e-4 * np.abs(on_cpu).max()
    assert np.abs(on_gpu - exact).max() > 1e-3 * np.abs(on_cpu).max()
    alone = [models["gpu", "int8"].forward(ids[t : t + 1], t) for t in range(3)]
    assert np.array_equal(np.concatenate(alone), on_gpu)


def test_copies_are_timed(model: Any) -> None:
    """What a step gives is copied; rows of the caches alone are not."""
    begin = model.copied_s
    model.submit([5, 3], 0, ()).result()
    filled = model.copied_s
    model.forward([9], 2)
    assert begin <= filled < model.copied_s


def test_rows_that_were_read_go_on_bit_for_bit(model: Any) -> None:
    """What --save-state takes and --load-state puts back."""
    ids = [5, 3, 9, 200, 17, 8]
    model.submit(ids, 0, last=True).result()
    rows = model.read_rows(6)
    expected = model.forward([7], 6).copy()
    assert [(str(a.dtype), a.shape) for a in rows] == model.rows_layout(6)
    model.submit([1, 2, 3, 4, 5, 6], 0, last=True).result()
    assert not np.array_equal(model.forward([7], 6), expected)  # the negative control
    model.write_rows(ids, rows)
    assert np.array_equal(model.forward([7], 6), expected)
