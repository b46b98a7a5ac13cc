"""compile --quantise: verify accepts the bundle by quantising the export again, the same bytes twice, bad input."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from hetero_sd import calibrate_host
from hetero_sd.cli import main
from hetero_sd.commands.verify import verify_text
from hetero_sd.predict.inputs import load_specs
from hetero_sd.runtime.file_hashes import hash_file
from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.model.model import load_models
from hetero_sd.verify import VerifyRequest, VerifyResult, verify_bundle
from targets.boards import load_board

EXPORTS = Path(__file__).parents[2] / "data" / "exports"
LLAMA, DRAFT = EXPORTS / "llama-dynamo-fp32", EXPORTS / "llama-drafter-dynamo-fp32" / "model.onnx"
FORMATS = 'matrices = "int4"\nembedding = "int8:64"\n[names]\n"node_linear_1" = "int8:16"\n"node_linear_2" = "float"\n'


def compile_args(out: Path, *more: str, target: Path = DRAFT) -> list[str]:
    fixed = ("--tokenizer", str(LLAMA), "--board", "host", "--context", "64", "--out", str(out))
    return ["compile", str(target), *fixed, *more]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one layer, with a file of formats and float activations, so that bounds are tight."""
    folder = tmp_path_factory.mktemp("quantised")
    (folder / "formats.toml").write_text(FORMATS)
    more = ("--quantise", str(folder / "formats.toml"), "--activations", "float")
    assert main(compile_args(folder / "bundle", *more)) == 0
    return folder / "bundle"


def verified(bundle: Path, against: Path = DRAFT) -> VerifyResult:
    return verify_bundle(VerifyRequest(bundle, against))


@pytest.mark.slow
def test_verify_quantises_the_export_again(bundle: Path) -> None:
    result = verified(bundle)
    assert result.passed, result
    assert result.bound_rms is None
    assert result.quantised.startswith(
        "int4:32, head int8:32, embedding int8:64, node_linear_1 int8:16, node_linear_2 "
    )
    assert "the file's, quantised again: int4:32" in verify_text(result)
    facts = Bundle(bundle).target.quantised
    assert facts is not None
    assert facts.by_name == (("node_linear_1", "int8:16"), ("node_linear_2", "float"))


@pytest.mark.slow
def test_it_is_planned_again_with_the_weights_that_it_has(bundle: Path, tmp_path: Path) -> None:
    """What `calibrate` does after measuring; run.py says of what weights its times are."""
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    before = Bundle(copy).plan
    assert before is not None
    request = calibrate_host.HostRequest(copy, DRAFT)
    after = calibrate_host._plan_again(Bundle(copy), request, load_board("host", measure=False))
    assert after.memory.mapped_bytes == before.memory.mapped_bytes
    (float_spec,) = load_specs(DRAFT, ["float32"], 64)
    assert before.memory.mapped_bytes < 0.6 * float_spec.weight_bytes  # the negative control
    assert load_models(Bundle(copy)).target.quantised == Bundle(copy).target.quantised  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_wrong_scale_is_found(bundle: Path, tmp_path: Path) -> None:
    """The negative control: one scale of one block, a fifth larger, in a bundle whose hashes are right."""
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    weights = copy / "weights" / "target.safetensors"
    content = bytearray(weights.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = next(n for n in header if n.endswith(".scale") and "embed" not in n)
    dtype = {"F16": np.float16, "F32": np.float32}[header[name]["dtype"]]
    start, end = (8 + length + offset for offset in header[name]["data_offsets"])
    scales = np.frombuffer(content[start:end], dtype).copy()
    scales[np.abs(scales).argmax()] *= dtype(1.2)
    content[start:end] = scales.tobytes()
    weights.write_bytes(content)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["weights/target.safetensors"]["sha256"] = hash_file(weights)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    result = verified(copy)
    assert not result.passed
    assert result.largest_error > 10 * result.bound


@pytest.mark.slow
def test_another_recipe_or_export_is_refused(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The libraries keep the recipe, too; the export is known by its hash."""
    assert main(["verify", str(bundle), "--against", str(LLAMA / "model.onnx")]) == 2
    assert "not the file that the bundle's weights were quantised from" in capsys.readouterr().err
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["models"]["target"]["quantised"]["matrices"] = "int8:32"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert main(["verify", str(copy), "--against", str(DRAFT)]) == 2
    error = capsys.readouterr().err
    assert "models.target.quantised.matrices is" in error
    assert "was compiled with" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_int8_activations_are_the_default_and_twice_gives_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digests = []
    for name in ("a", "b"):
        assert main(compile_args(tmp_path / name, "--quantise", "int4", "--kv", "float16", "--json")) == 0
        said = json.loads(capsys.readouterr().out)
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files})
        assert said["models"]["target"]["activations"] == "int8"
        assert said["models"]["target"]["kv"] == "float16"
        assert said["models"]["target"]["cache_bytes"] == Bundle(tmp_path / name).target.cache_bytes
        assert "int8 activations, as with weights that are quantised here" in said["notes"][0]
        cost = said["quantisation"]
        assert cost["models"]["target"]["activations"] == "int8"
        assert 0 < cost["models"]["target"]["kl_nats"] < 1
        assert cost["pair"] is None
        assert said["models"]["target"]["weights_bytes"] < 0.4 * said["models"]["target"]["source_bytes"]
    assert digests[0] == digests[1]
    result = verified(tmp_path / "a")
    assert result.passed, result
    assert result.bound_rms is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-dynamo-fp16", "qwen3-genai-fp32"])
def test_other_exports(name: str, tmp_path: Path) -> None:
    source = EXPORTS / name / "model.onnx"
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"token_ids": [3, 4, 5, 6]}\n')
    more = ("--quantise", "int8", "--quantise-head", "int4:64", "--prompts", str(prompts), "--activations", "float")
    assert main(compile_args(tmp_path / "bundle", *more, target=source)) == 0
    result = verified(tmp_path / "bundle", source)
    assert result.passed, result


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--quantise", "int3"), "--quantise 'int3' is neither a format"),
        (("--quantise", "int4:128"), "which blocks of 128 do not divide; take int4:64"),
        (("--quantise", "{bad}"), "'layers' is not known"),
        (("--quantise", "{unused}"), "'*lost*' matches no float weight"),
        (("--quantise-draft", "int4"), "there is no drafter"),
        (("--quantise-head", "int8"), "add --quantise"),
        (("--prompts", "{bad}"), "add --quantise"),
        (("--quantise", "int4", "--prompts", "{none}"), "cannot read"),
    ],
)
def test_a_mistake_gets_one_line(
    more: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad").write_text('layers = "int4"\n')
    (tmp_path / "unused").write_text('matrices = "int4"\n[names]\n"*lost*" = "int8"\n')
    given = [word.format(bad=tmp_path / "bad", unused=tmp_path / "unused", none=tmp_path / "none") for word in more]
    assert main(compile_args(tmp_path / "bundle", *given)) == 2
    error = capsys.readouterr().err.splitlines()
    assert [line for line in error if message in line] == [line for line in error if "error" in line] != []
    assert not (tmp_path / "bundle").exists()


def test_an_export_without_floats_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = EXPORTS / "qwen2-genai-int4" / "model.onnx"
    assert main(compile_args(tmp_path / "bundle", "--quantise", "int4", target=source)) == 2
    assert "there are no float weights to quantise" in capsys.readouterr().err
