"""Compile on every committed export, byte for byte the same twice, and one line for every mistake."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hetero_sd.cli import main
from hetero_sd.runtime.manifest import Bundle
from hetero_sd.verify import VerifyRequest, verify_bundle
from targets.boards import load_board
from targets.kv_format import KV_FORMATS

ROOT = Path(__file__).resolve().parents[3]
EXPORTS = ROOT / "tests" / "data" / "exports"
QUICK = {"llama-dynamo-fp16", "llama-genai-int4", "qwen2-genai-fp32", "qwen3-genai-int4"}  # the others in `make deep`
LLAMA, DRAFT = EXPORTS / "llama-dynamo-fp32", EXPORTS / "llama-drafter-dynamo-fp32"


def compile_args(out: Path, **changed: str | Path | None) -> list[str]:
    options: dict[str, str | Path | None] = {
        "--tokenizer": LLAMA,
        "--board": "host",
        "--context": "64",
        "--out": out,
        **{"--" + k.replace("_", "-"): v for k, v in changed.items() if k != "target"},
    }
    flags = [str(word) for pair in options.items() if pair[1] is not None for word in pair]
    return ["compile", str(changed.get("target") or LLAMA / "model.onnx"), *flags]


@pytest.mark.slow
@pytest.mark.parametrize(
    "export",
    [
        p.name if p.name in QUICK else pytest.param(p.name, marks=pytest.mark.deep)
        for p in sorted(EXPORTS.iterdir())
        if (p / "model.onnx").is_file()
    ],
)
def test_every_export_compiles_and_verifies(export: str, tmp_path: Path) -> None:
    source = EXPORTS / export / "model.onnx"
    out = tmp_path / "bundle"
    assert main(compile_args(out, target=source, tokenizer=EXPORTS / export)) == 0
    result = verify_bundle(VerifyRequest(out, source))
    assert result.passed, result
    assert result.rows > 100
    packed = (out / "weights" / "target.safetensors").stat().st_size
    stored = sum(p.stat().st_size for p in source.parent.glob("model.onnx*"))
    assert packed <= 1.1 * stored


@pytest.mark.slow
def test_keys_and_values_that_are_rounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Less memory, logits as far from onnxruntime's as rounding does, and the same text with and without drafts."""
    source, bundles, results = LLAMA / "model.onnx", {}, {}
    for kv in KV_FORMATS:
        out = tmp_path / kv
        assert main(compile_args(out, target=source, draft=DRAFT / "model.onnx", kv=kv)) == 0
        bundles[kv], results[kv] = Bundle(out), verify_bundle(VerifyRequest(out, source))
    exact, whole = results.pop("float32"), bundles["float32"]
    assert exact.passed, exact
    assert exact.bound_rms is None
    assert whole.plan is not None
    heads, _, head_dim = whole.target.caches.value_shape[1:]
    for kv, rounded in results.items():
        bundle, stored = bundles[kv], KV_FORMATS[kv]
        assert {facts.caches.dtype for facts in bundle.manifest.models.values()} == {kv}
        tokens = heads * bundle.target.layers * bundle.target.context
        assert bundle.target.cache_bytes == tokens * stored.token_bytes(head_dim) < whole.target.cache_bytes
        assert bundle.plan is not None
        assert bundle.plan.memory.kv_bytes < whole.plan.memory.kv_bytes
        assert rounded.passed, rounded
        assert rounded.bound_rms is not None
        assert rounded.largest_error > 10 * exact.bound  # the negative control: floats would not pass so
        capsys.readouterr()
        assert main(["verify", str(tmp_path / kv), "--against", str(source)]) == 0
        assert f"keys and values are stored in {kv}: the bounds are" in capsys.readouterr().out
        assert main(["audit", str(tmp_path / kv)]) == 0
    assert bundles["int8"].target.cache_bytes < bundles["float16"].target.cache_bytes


@pytest.mark.slow
def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    def digest(folder: Path) -> dict[str, str]:
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    outs = [tmp_path / "a" / "one", tmp_path / "another"]
    for out in outs:
        assert main(compile_args(out, board="imx95", draft=DRAFT / "model.onnx")) == 0
    first, second = map(digest, outs)
    assert first == second
    assert "lib/draft_cpu.so" in first


def broken_onnx(tmp_path: Path) -> Path:
    data = (LLAMA / "model.onnx").read_bytes()
    path = tmp_path / "broken.onnx"
    path.write_bytes(data[: len(data) // 2])
    return path


def not_onnx(tmp_path: Path) -> Path:
    path = tmp_path / "text.onnx"
    path.write_text("this is no model")
    return path


def bad_board(tmp_path: Path) -> Path:
    path = tmp_path / "bad.toml"
    path.write_text("name = 3\n")
    return path


def crowded_board(tmp_path: Path) -> Path:
    """A Raspberry Pi whose system keeps all but 100 MB."""
    import targets.boards

    path, text = tmp_path / "crowded.toml", (Path(targets.boards.__file__).parent / "rpi5.toml").read_text("utf-8")
    dram = load_board("rpi5").dram
    old = f"reserved_bytes = {{ value = {dram.reserved_bytes}"
    assert old in text
    path.write_text(text.replace(old, f"reserved_bytes = {{ value = {dram.capacity_bytes - 100_000_000}"))
    return path


def bare_tokenizer(tmp_path: Path) -> Path:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "tokenizer.json").write_bytes((LLAMA / "tokenizer.json").read_bytes())
    return tmp_path / "bare"


def broken_tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": "1.0"}')
    return path


def copied_model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "model.onnx"
    path.write_bytes((LLAMA / "model.onnx").read_bytes())
    return path


MISTAKES: dict[str, tuple[Callable[[Path], dict[str, str | Path | None]], str]] = {
    "missing target": (lambda t: {"target": t / "none.onnx"}, "there is no such file"),
    "truncated target": (lambda t: {"target": broken_onnx(t)}, "broken.onnx"),
    "not an onnx file": (lambda t: {"target": not_onnx(t)}, "text.onnx"),
    "missing draft": (lambda t: {"draft": t / "none.onnx"}, "draft model"),
    "missing tokenizer": (lambda t: {"tokenizer": t / "none"}, "there is no tokenizer"),
    "broken tokenizer": (lambda t: {"tokenizer": broken_tokenizer(t)}, "not a tokenizer"),
    "no end of text": (lambda t: {"target": copied_model(t), "tokenizer": bare_tokenizer(t)}, "--eos"),
    "end of text out of range": (lambda t: {"eos": "99999"}, "99999"),
    "unknown board": (lambda t: {"board": "pi9000"}, "known boards"),
    "missing board file": (lambda t: {"board": t / "none.toml"}, "cannot be read"),
    "bad board file": (lambda t: {"board": bad_board(t)}, "bad.toml"),
    "context too short": (lambda t: {"context": "1"}, "--context"),
    "context no number": (lambda t: {"context": "many"}, "--context"),
    "gamma out of range": (lambda t: {"draft": DRAFT / "model.onnx", "gamma": "99"}, "--gamma"),
    "gamma no number": (lambda t: {"draft": DRAFT / "model.onnx", "gamma": "many"}, "'many'"),
    "acceptance out of range": (lambda t: {"draft": DRAFT / "model.onnx", "alpha": "1.5"}, "acceptance 1.5"),
    "acceptance twice": (lambda t: {"alpha": "0.5", "alpha_file": t / "a.json"}, "contradict"),
    "missing acceptance file": (
        lambda t: {"draft": DRAFT / "model.onnx", "alpha_file": t / "a.json"},
        "a.json: cannot be read",
    ),
    "drafts without a drafter": (lambda t: {"gamma": "3"}, "--gamma 3: there is no draft model; give --draft"),
    "acceptance without a drafter": (lambda t: {"alpha": "0.5"}, "--alpha 0.5: there is no draft model"),
    "folder for a model": (lambda t: {"target": LLAMA}, "this is a folder; give the .onnx file in it"),
    "file for a folder": (lambda t: {"subgraphs": LLAMA / "model.onnx"}, "model.onnx is not a folder"),
    "acceptance for factors": (lambda t: {"factors": LLAMA / "config.json"}, "there are no `factors` in it"),
    "place that cannot be read": (lambda t: {"place": "npu"}, "'npu' cannot be read"),
    "missing factors": (lambda t: {"factors": t / "f.json"}, "f.json: cannot be read"),
    "no such layer": (lambda t: {"board": "imx95", "place": "gpu:77"}, "there is no layer 77"),
    "memory too small": (lambda t: {"board": crowded_board(t)}, "are free"),
    "unknown device python": (lambda t: {"board_python": "2.7"}, "2.7"),
    "device python for nothing": (lambda t: {"board_python": "3.12"}, "--board-python belongs to --vendor-wheels"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line(mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, expected = MISTAKES[mistake]
    out = tmp_path / "bundle"
    assert main(compile_args(out, **make(tmp_path))) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hetero-sd: error:")]
    assert len(lines) == 1
    assert expected in lines[0]
    assert not out.exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".bundle")]


def test_an_existing_folder_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "precious").write_text("data")
    assert main(compile_args(out)) == 2
    assert "already exists" in capsys.readouterr().err
    assert (out / "precious").read_text() == "data"


@pytest.mark.slow
def test_a_damaged_bundle_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = tmp_path / "good"
    assert main(compile_args(good)) == 0
    manifest = json.loads((good / "manifest.json").read_text())
    capsys.readouterr()
    for name in ("lib/target_cpu.so", "weights/target.safetensors", "manifest.json", "tokenizer/tokenizer.json"):
        path = good / name
        whole = path.read_bytes()
        for damage in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1]), None):
            if damage is None:
                path.unlink()
            else:
                path.write_bytes(damage)
            assert main(["verify", str(good), "--against", str(LLAMA / "model.onnx")]) == 2, name
            error = capsys.readouterr().err.splitlines()
            assert len(error) == 1, error
            assert path.name in error[0] or "manifest" in error[0]
            path.write_bytes(whole)
    assert manifest == json.loads((good / "manifest.json").read_text())


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "dangling link", "below a file"])
def test_an_output_that_is_there_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def work(*given: object) -> None:
        raise AssertionError("the import began")

    monkeypatch.setattr("hetero_sd.compile.compile.import_models", work)
    out = tmp_path / "out"
    if kind == "dangling link":
        out.symlink_to(tmp_path / "nowhere")
    elif kind in ("file", "below a file"):
        out.write_text("mine")
    else:
        out.mkdir()
        if kind == "folder":
            (out / "mine").touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(compile_args(out / "bundle" if kind == "below a file" else out)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "is not a folder" in said if kind == "below a file" else "already exists; give a new folder" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_of_two_compiles_to_one_output_the_first_to_end_is_kept(tmp_path: Path) -> None:
    from hetero_sd.compile.bundle import new_bundle
    from targets.errors import UserError

    out = tmp_path / "out"

    def late() -> None:
        with new_bundle(out) as second:
            (second / "who").write_text("second")
            with new_bundle(out) as first:
                (first / "who").write_text("first")

    with pytest.raises(UserError, match="another compile wrote it meanwhile"):
        late()
    assert (out / "who").read_text() == "first"
    assert list(tmp_path.iterdir()) == [out]  # nothing of the second is left


def test_a_printed_command_can_be_copied(tmp_path: Path) -> None:
    """Also where the folder's name needs quotes; for another machine it says where to run it."""
    import shlex
    from types import SimpleNamespace

    from hetero_sd.compile.compile_report import _how_to_run

    out = tmp_path / "my bundle; rm"
    for here in (True, False):
        text = _how_to_run(SimpleNamespace(runs_here=here), out)  # type: ignore[arg-type]
        words = shlex.split(text.split(": ")[1])
        assert words == [
            "python" if here else "python3",
            str(out / "run.py") if here else f"{out.name}/run.py",
            "--prompt",
            "TEXT",
        ]
        assert ("copy it to the board" in text) != here


def test_the_columns_of_the_models_stay_apart() -> None:
    """The widest: float weights and float activations."""
    from types import SimpleNamespace

    from hetero_sd.compile.compile_report import _model_table

    facts = SimpleNamespace(
        layers=24,
        widths=(1, 2),
        prefill_widths=(32, 128),
        chain=(),
        weight_dtype="float32",
        activations="float",
        caches=SimpleNamespace(dtype="float16"),
        cache_bytes=125_000_000,
        row_widths=(2, 4),
        slots=4,
    )
    sizes = {"source_bytes": 616_000, "weights_bytes": 650_000, "library_bytes": 999_000_000}
    built = SimpleNamespace(facts=facts, **sizes)
    _, line = _model_table({"target": built})  # type: ignore[dict-item]
    assert line.split()[:7] == ["target", "24", "float32", "x", "float", "float16", "125"]
    assert line.endswith("1, 2 and prefill 32, 128, rows of 4 requests 2, 4")


@pytest.mark.slow
def test_a_bundle_for_a_mali_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh machine: nothing on the path, no OpenCL runtime built before."""
    from targets import elf
    from targets.opencl import runtime as opencl_runtime
    from targets.zig import zig_environment

    monkeypatch.setenv(
        "HSD_ZIG_CACHE", zig_environment(str(tmp_path))["ZIG_GLOBAL_CACHE_DIR"]
    )  # glibc, libc++: minutes
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert opencl_runtime.find("aarch64") is None
    out = tmp_path / "bundle"
    assert main(compile_args(out, board="rk3588", place="gpu")) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    library = out / manifest["models"]["target"]["opencl_runtime"]
    assert elf.machine(library) == "aarch64"
    built = opencl_runtime.find("aarch64")
    assert built is not None
    assert built.read_bytes() == library.read_bytes()  # and the next compile takes it from the cache
