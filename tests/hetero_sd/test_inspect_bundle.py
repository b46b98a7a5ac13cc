"""`hetero-sd inspect` of a bundle: what is stored how, without loading it; for a board that is not this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import some_model, some_plan

from costmodel.place import ReasonedPlace
from costmodel.schema.model import CacheFacts
from hetero_sd.cli import main
from hetero_sd.runtime.manifest import write_manifest
from targets.boards import load_board
from targets.opencl.runtime import machine

OTHER = {"x86-64": "imx95", "aarch64": "host"}[machine()]


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., str]:
    """Writes one of a target on a GPU with a CPU variant, for a board; by `changes` another target."""

    def write(board: str = "imx95", fallback: bool = True, **changes: Any) -> str:
        folder = tmp_path / "bundle"
        target = some_model(processor="gpu", fallback=fallback, **changes)
        for name in target.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("code")
        plan = some_plan(
            verdict="The GPU is faster.",
            places={"target": ReasonedPlace(target.place, "on the GPU")},
            slots=target.slots,
            long_prefill_width=target.long_prefill_width,
        )
        write_manifest(folder, {"target": target}, plan, None, described[board])
        return str(folder)

    described = {name: load_board(name).to_json() for name in ("imx95", OTHER)}
    return write


def test_as_text(bundle: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", folder := bundle()]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}: a bundle for aarch64 (board imx95), 16 bytes, not signed",
        "  plan          The GPU is faster.",
        "  target        1 layer, 270 token ids, float32 x float",
        "    place       gpu, with a CPU variant for when the GPU fails",
        "    KV cache    float32, 8,192 bytes, context 64 tokens",
        "    slots       1, one request at a time",
        "    steps       of 1, 4 tokens; prompts are read 32 at a time",
        "    calls       step_<n> of lib/target.so, lib/target_gpu.so",
    ]


def test_kv_format_slots_and_prompt_chunks_are_shown(
    bundle: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    caches = CacheFacts("float16", {"gpu": (6, 2, 16, 8, 4)}, (6, 2, 64, 8))
    folder = bundle(caches=caches, row_widths=(4,), long_prefill_width=48, fallback=False)
    (Path(folder) / "manifest.json.sig").write_bytes(b"signature")
    assert main(["inspect", folder]) == 0
    text = capsys.readouterr().out
    assert "bytes, signed (run.py --verify-key checks it)" in text
    assert "gpu, without a CPU variant" in text
    assert "KV cache    float16, 24,576 bytes" in text
    assert "slots       6 requests at a time" in text
    assert "prompts are read 32 or 48 at a time" in text
    assert main(["inspect", folder, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["board"], found["isa"], found["gamma"], found["signed"]) == ("imx95", "aarch64", 3, True)
    target = found["models"]["target"]
    assert (target["kv"], target["slots"], target["prompt_chunks"]) == ("float16", 6, [32, 48])
    assert target["cpu_fallback"] is False


def test_what_a_model_alone_has_is_refused_of_a_bundle(
    bundle: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bundle()
    assert main(["inspect", folder, "--context", "64"]) == 2
    assert "--context 64" in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    (Path(folder) / "lib/target.so").write_text("cut")
    assert main(["inspect", folder]) == 2
    assert "lib/target.so has 3 bytes" in capsys.readouterr().err


def test_explain_says_what_to_give_in_place_of_a_bundle(
    bundle: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", folder := bundle(), "--board", "imx95"]) == 2
    assert capsys.readouterr().err == (
        f"hetero-sd: error: {folder} is a bundle: give the .onnx file that it was compiled from; "
        f"`hetero-sd inspect {folder}` says how it is stored\n"
    )


def test_an_audit_of_another_machines_bundle_is_refused_in_one_line(
    bundle: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", bundle(OTHER)]) == 2
    error = capsys.readouterr().err
    assert f"(board {OTHER}) and cannot run here: an audit runs its models, so do it there" in error
    assert error.count("\n") == 1


def test_a_model_on_the_cpu_has_no_variant_for_it(bundle: Callable[..., str]) -> None:
    from hetero_sd.compile.compile import without_fallback
    from hetero_sd.inspect_bundle import BundledModel

    on_cpu, on_gpu = some_model(), some_model("draft", "gpu")
    assert BundledModel.of(on_cpu).cpu_fallback is None
    assert "changed nothing" in without_fallback({"target": on_cpu})
    found = without_fallback({"target": replace(on_cpu), "draft": on_gpu})
    assert found == "no CPU variant of the draft: when the GPU fails, a run ends"
