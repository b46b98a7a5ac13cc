"""`hetero-sd explain`: its table and JSON, what malioc adds, and what is refused in one line."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from golden import Golden
from unpack_families import unpack_families

from hetero_sd.cli import main
from hetero_sd.malioc import inspect_kernels

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "translation" / "draft" / "model.onnx"

# The form of `malioc --format json` of version 8: a list of properties for each variant of a shader.
REPORT = {
    "schema": {"name": "performance", "version": 2},
    "shaders": [
        {
            "hardware": {"architecture": "Valhall", "core": "Mali-G610", "revision": "r0p0"},
            "shader": {"api": "OpenCL", "type": "Kernel"},
            "variants": [
                {
                    "name": "Main",
                    "properties": [
                        {"display_name": "Work registers", "name": "work_registers_used", "value": 47},
                        {"display_name": "Thread occupancy", "name": "thread_occupancy", "value": 50},
                        {"display_name": "Stack spilling", "name": "has_stack_spilling", "value": False},
                    ],
                }
            ],
        }
    ],
}


def explained(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["explain", str(MODEL), "--board", "rk3588", *options]) == 0
    return capsys.readouterr().out


@pytest.fixture
def malioc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a program of that name on the PATH, and nothing else that matters."""

    def install(script: str) -> Path:
        program = tmp_path / "malioc"
        program.write_text("#!/bin/sh\n" + script)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return program

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return install


@pytest.mark.slow
def test_table_as_people_read_it(malioc: Any, capsys: pytest.CaptureFixture[str], golden: Golden) -> None:
    text = explained(capsys, "--place", "gpu", "--width", "5")
    golden("hetero_sd/explain_rk3588.txt", text)


@pytest.mark.slow
def test_json_has_every_buffer_and_adds_up(malioc: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(explained(capsys, "--json", "--width", "1", "--past", "10", "--context", "64"))
    rows = found["operators"]
    assert found["moved_bytes"] == sum(row["calls"] * row["moved_bytes"] for row in rows)
    assert found["needed_bytes"] == sum(row["calls"] * row["needed_bytes"] for row in rows)
    assert {row["processor"] for row in rows} == {"cpu"}
    for row in rows:
        assert row["needed_bytes"] <= row["moved_bytes"] == sum(k["moved_bytes"] for k in row["kernels"])
        moved = sum(b["read_bytes"] + b["written_bytes"] for b in row["buffers"].values())
        assert moved == row["moved_bytes"]
    weights = sum(
        row["calls"] * row["buffers"]["w"]["read_bytes"] for row in rows if row["operator"].startswith("linear")
    )
    assert 0.9 < weights / MODEL.stat().st_size < 1.0  # one token streams the file's weights once
    five = json.loads(explained(capsys, "--json", "--width", "8", "--past", "10", "--context", "64"))
    assert five["needed_bytes"] < 1.5 * found["needed_bytes"] < five["moved_bytes"]


@pytest.mark.slow
def test_parts_on_both_processors_and_a_prompt_chunk(malioc: Any, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--json", "--place", "gpu:ffn", "--prefill", "--width", "4", "--context", "64")
    found = json.loads(explained(capsys, *options))
    by_processor: dict[str, set[str]] = {"cpu": set(), "gpu": set()}
    for row in found["operators"]:
        by_processor[row["processor"]].add(row["operator"])
    assert {"attention", "rope", "embedding", "argmax", "take_row"} <= by_processor["cpu"]
    assert {"silu_mul", "linear"} <= by_processor["gpu"]
    assert "attention" not in by_processor["gpu"]


@pytest.mark.slow
def test_registers_and_spills_come_from_malioc(malioc: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    seen = tmp_path / "arguments"
    malioc(f'echo "$@" >> {seen}\ngrep -q "__kernel void $5(" "$8" && cat {tmp_path}/report.json\n')
    found = json.loads(explained(capsys, "--json", "--place", "gpu", "--context", "64"))
    kernels = [k for row in found["operators"] for k in row["kernels"]]
    assert kernels
    wanted = {"work_registers": 47, "spills": False, "occupancy_percent": 50}
    assert all(k["registers"] == wanted for k in kernels), "a kernel's name is not in the source"
    assert found["registers_from"].startswith("32-bit registers of a work-item, by malioc for Mali-G610")
    calls = seen.read_text().splitlines()
    assert len(calls) == len(kernels)
    assert all(c.startswith("--opencl --core Mali-G610 --name ") and " --format json " in c for c in calls)


@pytest.mark.parametrize(
    "script",
    [
        "echo not json",
        "echo '[]'",
        "echo '{\"shaders\": []}'",
        "exit 3",
        "echo 'error: unknown core' >&2; exit 1",
        'echo \'{"shaders":[{"variants":[{"properties":[{"name":"work_registers_used","value":"many"}]}]}]}\'',
        "head -c 300 /dev/urandom",
    ],
)
def test_a_malformed_answer_is_unknown(malioc: Any, script: str) -> None:
    malioc(script)
    source = "__kernel void a_kernel() {}", {("a", 0): "a_kernel"}
    found, sentence = inspect_kernels(lambda: source, "Mali-G610")
    assert found == {}
    assert sentence.startswith("unknown, malioc did not answer as expected (a_kernel: ")
    malioc(f"echo '{json.dumps(REPORT)}'")  # the negative control: a proper answer is taken
    found, sentence = inspect_kernels(lambda: source, "Mali-G610")
    assert found["a", 0].work_registers == 47


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--board", "rpi5", "--place", "gpu"], "has no GPU"),
        (["--board", "rk3588", "--place", "npu"], "--place npu: cannot be read"),
        (["--board", "rk3588", "--place", "gpu:99"], "there is no layer 99"),
        (["--board", "rk3588", "--width", "0"], "--width 0"),
        (["--board", "rk3588", "--past", "64", "--context", "64"], "do not fit --context 64"),
        (["--board", "moon"], "moon"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    assert main(["explain", str(MODEL), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert said in err


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 8])
def test_integer_kernels_of_a_gpu_move_the_weights_once(capsys: pytest.CaptureFixture[str], width: int) -> None:
    """Of a model whose export allows int8 activations: weights, scales and zero points within 5 % of what is needed."""
    model = ROOT / "tests" / "data" / "exports" / "llama-genai-int4" / "model.onnx"
    options = ("--board", "rk3588", "--place", "gpu", "--width", str(width), "--context", "64", "--json")
    assert main(["explain", str(model), *options]) == 0
    rows = json.loads(capsys.readouterr().out)["operators"]
    integer = [row for row in rows if row["operator"].startswith("linear_int")]
    assert len(integer) >= 4
    assert not [row for row in rows if row["operator"] == "linear_4bit"]
    weights = [row["buffers"][name] for row in integer for name in ("q", "scale", "zero") if name in row["buffers"]]
    assert sum(b["read_bytes"] for b in weights) <= 1.05 * sum(b["needed_read_bytes"] for b in weights)
    codes = [row["buffers"]["x"] for row in integer]
    assert any(b["read_bytes"] > 1.05 * b["needed_read_bytes"] for b in codes)  # the negative control: from a cache


def test_what_compile_refuses_is_refused_here(capsys: pytest.CaptureFixture[str]) -> None:
    """The builder took a matrix multiplication of the first layer for the head, which has as many outputs."""
    model = unpack_families(ROOT / "tests" / "data") / "llama-genai-int4-kquant" / "model.onnx"
    assert main(["explain", str(model), "--board", "rk3588"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("the export took another for the head; export it again\n")
    assert f"{model}: its logits come from inside a layer, " in captured.err
    assert captured.err.count("\n") == 1
