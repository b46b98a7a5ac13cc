"""`hetero-sd inspect`: what a file is, what was matched, what is refused; refusals name node, reason and a way out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from hetero_sd.cli import main
from hetero_sd.inspect import InspectRequest, inspect

EXPORTS = Path(__file__).parents[1] / "data" / "exports"
MODEL = EXPORTS / "qwen3-dynamo-fp32" / "model.onnx"


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(MODEL), "--context", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["compiles"]
    assert found["facts"]["family"] == "qwen3"
    assert (found["facts"]["layers"], found["facts"]["kv_heads"], found["facts"]["weight_dtype"]) == (2, 2, "float32")
    passes = {e["name"]: e for e in found["passes"]}
    assert passes["fuse_attention"]["matched"] == 2
    assert len(passes["fuse_attention"]["where"]) == 2
    nodes = {n.name: n.op_type for n in onnx.load(MODEL).graph.node}
    assert [nodes[name] for name in passes["fuse_attention"]["where"]] == ["Softmax", "Softmax"]
    assert not passes["lower_group_query"]["where"]
    norms = [(op["part"]["layer"], op["groups"]) for op in found["operators"] if op["name"] == "q_norm"]
    assert norms == [(0, 4), (1, 4)]
    assert found["tokenizer"].endswith("tokenizer.json, 512 ids")


def test_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(MODEL), "--context", "64"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{MODEL}: compiles for a context of 64 tokens\n")
    assert "family        qwen3 or alike" in text
    assert "q, k, v apart, q and k normalised" in text


FAMILIES = EXPORTS.parent / "families"
SEEN = {  # what a reader is told of cells that differ
    "gemma2-dynamo-fp32": (
        "window        4 tokens in layer 0, none in the others",
        "scores capped",
        "4 RMS norms a layer",
    ),
    "gpt2-dynamo-fp32": (
        "none, positions are learned",
        "GELU, no gate; 2 layer norms",
        "in one matrix multiplication, with bias",
    ),
    "llama-genai-int4-asymmetric": (
        "int4 in blocks of 32, zero points, float32 scales; embedding float32",
        "right only",
    ),
    "llama-dynamo-no-cache": (
        "none in the file: the import adds it",
        "none beside the file: compile needs --tokenizer",
    ),
    "falcon-dynamo-fp32": ("q, k, v in one matrix multiplication", "GELU, no gate; 1 layer norm a layer"),
    "nemotron-dynamo-fp32": ("nemotron or alike", "SQUARED RELU, no gate; 2 layer norms a layer"),
    "opt-legacy17-fp32": ("opt or alike", "RELU, no gate", "flattened rows brought back"),
    "phi3-dynamo-fp32": ("q, k, v in one matrix multiplication", "SILU, gate and up in one matrix multiplication"),
}


@pytest.mark.parametrize("name", SEEN)
def test_what_a_reader_is_told(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(FAMILIES / name / "model.onnx"), "--context", "32"]) == 0
    text = capsys.readouterr().out
    assert [part for part in SEEN[name] if part not in text] == []


def test_refused_nodes_of_a_kind_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(FAMILIES / "mixtral-legacy17-fp32" / "model.onnx")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("does not compile")
    assert "mixtures of experts do: use a dense model" in lines[1]
    assert len([line for line in lines if line.startswith("  ai.onnx.")]) <= 9
    assert any("more kinds of nodes" in line for line in lines)


def with_node(folder: Path, op_type: str, **attributes: Any) -> Path:
    """The model with one more operator between the embedding and the first layer."""
    proto = onnx.load(MODEL)
    gather = next(n for n in proto.graph.node if n.op_type == "Gather")
    name = gather.output[0]
    gather.output[0] = "embedded"
    inputs = ["embedded", "embedded"] if op_type == "Conv" else ["embedded"]
    index = list(proto.graph.node).index(gather) + 1
    proto.graph.node.insert(index, helper.make_node(op_type, inputs, [name], name="strange", **attributes))
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize(("op_type", "kind"), [("Elu", ""), ("Softplus", "recurrent and hybrid"), ("Selu", "")])
def test_refused_nodes_are_named(tmp_path: Path, op_type: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = with_node(tmp_path, op_type)
    found = inspect(InspectRequest(path, 64))
    assert found.facts is None
    assert found.refused
    assert any(f"ai.onnx.{op_type} (node 'strange')" in line and kind in line for line in found.refused)
    assert {e.name for e in found.log} >= {"normalise_io_names", "fuse_rms_norm"}
    assert main(["inspect", str(path), "--context", "64"]) == 1
    assert "does not compile\n" in capsys.readouterr().out


GEMMA_3N = "it belongs to a Gemma 3n, and is written in a way that is not known: export it with dynamo=True"


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("layers.0.altup.router_norm.weight", GEMMA_3N),
        ("model.embed_tokens_per_layer.weight", GEMMA_3N),
        ("", ""),
    ],
)
def test_a_weight_tells_the_model(tmp_path: Path, part: str, told: str) -> None:
    """What is not recognised of Gemma 3n is many things; the names of its weights say what it is."""
    path = with_node(tmp_path, "Elu")
    proto = onnx.load(path)
    old = next(n for n in proto.graph.node if n.op_type == "Gather").input[0]
    for node in proto.graph.node:
        node.input[:] = [part or old if name == old else name for name in node.input]
    next(t for t in proto.graph.initializer if t.name == old).name = part or old
    onnx.save(proto, path)
    (reason, *_) = inspect(InspectRequest(path, 64)).refused
    assert told in reason
    assert part or GEMMA_3N not in reason


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("encoder_hidden_states", "encoder-decoder"),
        ("past_conv_state.0", "recurrent and hybrid"),
        ("ssm_state.0", "recurrent and hybrid"),
        ("pixel_values", "images"),
        ("inputs_embeds", "split from their embedding"),
        ("per_layer_inputs", "Gemma 3n"),
    ],
)
def test_inputs_of_other_kinds_of_model(tmp_path: Path, name: str, kind: str) -> None:
    proto = onnx.load(MODEL)
    proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "n", 64]))
    onnx.save(proto, tmp_path / "model.onnx")
    (reason, *_) = inspect(InspectRequest(tmp_path / "model.onnx", 64)).refused
    assert f"input '{name}'" in reason
    assert kind in reason
    assert "export the plain text-generation-with-past decoder" in reason


def test_a_file_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    assert main(["inspect", str(tmp_path / "x.onnx")]) == 2
    assert "not an ONNX file" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error() -> None:
    """As in `hetero-sd inspect FILE | head -1`."""
    command = [sys.executable, "-m", "hetero_sd", "inspect", FAMILIES / "llama3-dynamo-fp32" / "model.onnx"]
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
