"""Files nobody vouches for: each damage is one line that names the file and the trouble, never a traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes.onnx.load.load import load
from passes.onnx.load.read_proto import read_proto
from targets.errors import UserError

EXPORTS = Path(__file__).parents[3] / "data" / "exports"
INLINE = EXPORTS / "llama-dynamo-fp32" / "model.onnx"
EXTERNAL = EXPORTS / "llama-genai-fp32"


@pytest.fixture
def external(tmp_path: Path) -> Path:
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copyfile(EXTERNAL / name, tmp_path / name)
    return tmp_path / "model.onnx"


def rewrite(path: Path, change: object) -> Path:
    proto = onnx.load(path, load_external_data=False)
    change(proto)  # type: ignore[operator]
    path.write_bytes(proto.SerializeToString())
    return path


def set_external(tensor: onnx.TensorProto, key: str, value: str) -> None:
    for entry in tensor.external_data:
        if entry.key == key:
            entry.value = value


def first_external(proto: onnx.ModelProto) -> onnx.TensorProto:
    return next(t for t in proto.graph.initializer if t.external_data)


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_inline_weights_stay_in_the_file() -> None:
    model = load(INLINE)
    embedding = model.graph.initializers["model.model.embed_tokens.weight"].const_value
    assert isinstance(embedding, ir.ExternalTensor)
    expected = next(t for t in onnx.load(INLINE).graph.initializer if t.name == "model.model.embed_tokens.weight")
    assert np.array_equal(embedding.numpy(), onnx.numpy_helper.to_array(expected))


def test_the_rest_of_the_file_is_read_as_the_library_reads_it() -> None:
    whole, lazy = onnx.load(INLINE), read_proto(INLINE)
    assert [t.name for t in whole.graph.initializer] == [t.name for t in lazy.graph.initializer]
    for proto in (whole, lazy):
        del proto.graph.initializer[:]
    assert whole == lazy


def test_external_weights_are_read_when_asked_for(external: Path) -> None:
    weight = load(external).graph.initializers["lm_head.MatMul.weight"].const_value
    assert isinstance(weight, ir.ExternalTensor)
    assert weight.numpy().shape == (64, 512)


def test_no_such_file(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere.onnx", "there is no such file")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"")
    refused(tmp_path / "a.onnx", "the file is empty")


@pytest.mark.parametrize("content", [b"hello, this is no model\n", b"\x00" * 100, b"PK\x03\x04" + b"x" * 50])
def test_not_onnx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    refused(tmp_path / "a.onnx", "not an ONNX file")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated(tmp_path: Path, share: float) -> None:
    content = INLINE.read_bytes()
    (tmp_path / "a.onnx").write_bytes(content[: int(len(content) * share)])
    refused(tmp_path / "a.onnx", "not an ONNX file, or cut short")


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_never_end_in_a_traceback(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(INLINE.read_bytes())
    for position in rng.integers(0, len(content), 20):
        content[position] ^= int(rng.integers(1, 256))
    for position in rng.integers(0, 4000, 5):
        content[position] ^= int(rng.integers(1, 256))
    (tmp_path / "a.onnx").write_bytes(content)
    try:
        load(tmp_path / "a.onnx")
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 (either outcome is right; only other exceptions are not)


def test_external_file_is_missing(external: Path) -> None:
    external.with_name("model.onnx.data").unlink()
    refused(external, "the weights file model.onnx.data is missing")


def test_external_file_is_cut_short(external: Path) -> None:
    data = external.with_name("model.onnx.data")
    data.write_bytes(data.read_bytes()[:1000])
    refused(external, "has 1000 bytes, .* needs bytes")


def test_external_length_disagrees_with_the_shape(external: Path) -> None:
    rewrite(external, lambda p: set_external(first_external(p), "length", "8"))
    refused(external, "claims 8 bytes, its shape needs")


@pytest.mark.parametrize("offset", ["-4", "many", str(10**12)])
def test_external_offset_makes_no_sense(external: Path, offset: str) -> None:
    rewrite(external, lambda p: set_external(first_external(p), "offset", offset))
    refused(external, "is no number|needs bytes")


def test_inline_size_disagrees_with_the_shape(tmp_path: Path) -> None:
    path = shutil.copyfile(INLINE, tmp_path / "a.onnx")
    rewrite(path, lambda p: p.graph.initializer[0].dims.__setitem__(0, 1 << 40))
    refused(path, "claims 131072 bytes, its shape needs")


def test_negative_dimension(tmp_path: Path) -> None:
    path = shutil.copyfile(INLINE, tmp_path / "a.onnx")
    rewrite(path, lambda p: p.graph.initializer[0].dims.__setitem__(0, -1))
    refused(path, "negative dimension")


def test_missing_initialiser(tmp_path: Path) -> None:
    path = shutil.copyfile(INLINE, tmp_path / "a.onnx")
    rewrite(path, lambda p: p.graph.initializer.pop(1))
    refused(path, "reads 'model.model.layers.0.input_layernorm.weight', which nothing in the file makes")


def test_cycle(tmp_path: Path) -> None:
    path = shutil.copyfile(INLINE, tmp_path / "a.onnx")

    def tie(proto: onnx.ModelProto) -> None:
        first = next(n for n in proto.graph.node if n.op_type == "Pow")
        first.input[0] = proto.graph.node[-1].output[0]

    rewrite(path, tie)
    refused(path, "malformed")


def test_old_opset(tmp_path: Path) -> None:
    path = shutil.copyfile(INLINE, tmp_path / "a.onnx")
    rewrite(path, lambda p: setattr(p.opset_import[0], "version", 11))
    refused(path, "opset 11 is too old")


@pytest.mark.parametrize(("stated", "read"), [(13, 17), (16, 17), (17, 17), (18, 18)])
def test_opsets_whose_operators_mean_the_same_are_read_as_one(tmp_path: Path, stated: int, read: int) -> None:
    """ReduceMean has its axes as an attribute until 17; passes write Shape, Reshape and norms as 17 has them."""
    text = f"""<ir_version: 8, opset_import: ["" : {stated}]>
    g (float[b,2] x) => (float[b,2] y) {{ y = Neg(x) }}"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "a.onnx")
    assert load(tmp_path / "a.onnx").graph.opset_imports[""] == read


_NORM = """<ir_version: 8, opset_import: ["" : 13]>
    g (float[b,2] x) => (float[b,2] y) <float[2] w = {1,1}> { y = OPERATOR(x, w) }"""


def test_a_norm_that_onnxruntime_wrote_into_an_older_file(tmp_path: Path) -> None:
    """LayerNormalization is ONNX's since opset 17, RMSNormalization since 23 and nobody's before."""
    onnx.save(onnx.parser.parse_model(_NORM.replace("OPERATOR", "LayerNormalization")), tmp_path / "a.onnx")
    assert [n.op_type for n in load(tmp_path / "a.onnx").graph] == ["LayerNormalization"]
    onnx.save(onnx.parser.parse_model(_NORM.replace("OPERATOR", "RMSNormalization")), tmp_path / "a.onnx")
    refused(tmp_path / "a.onnx", "opset 13 has no such operator")


def test_an_opset_that_was_raised_alone(tmp_path: Path) -> None:
    """As onnxruntime's quantisers in the form QDQ do it: the axes of ReduceMean are still an attribute."""
    text = """<ir_version: 8, opset_import: ["" : 21]>
    g (float[b,2] x) => (float[b,1] y) { y = ReduceMean <axes = [-1]> (x) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "a.onnx")
    refused(tmp_path / "a.onnx", "opset 17 had it, and a tool raised the file's; export at opset 21 before it")


def test_control_flow(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = a () => (float[2] p) { p = Identity(x) },
                    else_branch = b () => (float[2] q) { q = Neg(x) }>
    }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "a.onnx")
    refused(tmp_path / "a.onnx", "has a subgraph")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 337550077\n"


def test_a_pointer_in_the_place_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(POINTER)
    with pytest.raises(UserError, match=r"model.onnx: model.onnx is a Git LFS pointer, .*: run `git lfs pull`"):
        load(path)


def test_a_pointer_in_the_place_of_the_weights(external: Path) -> None:
    (external.parent / "model.onnx.data").write_bytes(POINTER)
    with pytest.raises(UserError, match=r"model.onnx: model.onnx.data is a Git LFS pointer, .*: run `git lfs pull`"):
        load(external)


def branch(name: str) -> onnx.GraphProto:
    node = onnx.helper.make_node("Neg", ["use_cache_branch_as_number"], [name])
    return onnx.helper.make_graph([node], name, [], [onnx.helper.make_tensor_value_info(name, 1, None)])


def merged(proto: onnx.ModelProto) -> None:
    """As optimum merges the decoder of the first token with the one that has a past."""
    use = onnx.helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1])
    proto.graph.input.append(use)
    nodes = [
        onnx.helper.make_node("Cast", ["use_cache_branch"], ["use_cache_branch_as_number"], to=1),
        onnx.helper.make_node("If", ["use_cache_branch"], ["x"], then_branch=branch("a"), else_branch=branch("b")),
    ]
    proto.graph.node.extend(nodes)


def test_a_merged_decoder_names_the_file_to_give(tmp_path: Path) -> None:
    path = tmp_path / "decoder_model_merged.onnx"
    shutil.copyfile(INLINE, path)
    rewrite(path, merged)
    reason = (
        r"has a subgraph .*: give its decoder_with_past_model.onnx, or export again with optimum's --no-post-process"
    )
    with pytest.raises(UserError, match=reason):
        load(path)
    (tmp_path / "decoder_with_past_model.onnx").touch()
    with pytest.raises(
        UserError, match=r"; give .*/decoder_with_past_model.onnx, the same decoder without control flow"
    ):
        load(path)


def test_what_the_libraries_warn_of_is_not_printed(tmp_path: Path) -> None:
    """onnx_ir logs values that are defined twice and the like; the refusal is one line all the same."""
    code = (
        "import logging, sys; from pathlib import Path; from passes.onnx.load.load import load\n"
        "logging.getLogger('onnx_ir._core').warning('twice'); print('read', load(Path(sys.argv[1])).graph.name != '')"
    )
    command = [sys.executable, "-c", code, str(INLINE)]
    done = subprocess.run(command, cwd=EXPORTS.parents[2], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("read True\n", "")


@pytest.mark.parametrize("name", ["modèle", "模型"])
def test_a_name_of_other_letters_without_utf8_mode(tmp_path: Path, name: str) -> None:
    """The command starts again in UTF-8 mode, so that inline weights are found in the file of that name."""
    path = tmp_path / name / f"{name}.onnx"
    path.parent.mkdir()
    shutil.copyfile(INLINE, path)
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", "import sys; from hetero_sd.cli import main; sys.exit(main())"]
    command += ["inspect", str(path), "--context", "32"]
    root = EXPORTS.parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{path}: compiles")


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"mod\xe8le.onnx")
    shutil.copyfile(INLINE, path)
    with pytest.raises(UserError, match=r"the file's name is not UTF-8"):
        load(path)
