"""The default context is what the models have positions for; one that is asked for and too long is refused early."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from hetero_sd.cli import main
from hetero_sd.compile import import_models as importing
from hetero_sd.inspect import InspectRequest, inspect
from passes.onnx import ContextTooLong, canonicalise, canonicalise_up_to
from targets.errors import UserError

DATA = Path(__file__).resolve().parents[1] / "data"
LLAMA, DRAFT = (DATA / "exports" / f"llama-{name}" / "model.onnx" for name in ("dynamo-fp32", "drafter-dynamo-fp32"))
GENAI = DATA / "exports" / "llama-genai-fp32" / "model.onnx"  # 256 positions


@pytest.mark.parametrize(
    ("export", "positions"),
    [
        ("exports/llama-genai-fp32", 256),  # GroupQueryAttention
        ("exports/llama-genai-fp16", 256),  # RotaryEmbedding
        ("families/gpt2-optimum-fp32", 128),  # learned positions
        ("families/phi3-longrope-genai-fp32", 64),  # LongRoPE behind an If
        ("families/phi3-longrope-dynamo-fp32", 64),  # LongRoPE by the longest position
        ("families/llama-dynamo-no-cache", 1024),  # no cache inputs: proven at its full length
    ],
)
def test_every_kind_of_limit_is_found(export: str, positions: int) -> None:
    path = DATA / export / "model.onnx"
    decoder, context = canonicalise_up_to(path, 1024)
    assert context == positions == decoder.facts.context
    with pytest.raises(ContextTooLong, match=f"--context {positions} or less") as caught:
        canonicalise(path, positions + 1)
    assert caught.value.longest == positions
    assert "\n" not in str(caught.value)


def test_a_limit_above_the_default_changes_nothing() -> None:
    assert canonicalise_up_to(GENAI, 100)[1] == 100
    assert canonicalise_up_to(LLAMA, 1024)[1] == 1024


def test_another_reason_is_no_limit(tmp_path: Path) -> None:
    """The negative control: an export that is refused for something else is refused, not tried again and again."""
    proto = onnx.load(GENAI)
    proto.graph.node[-1].op_type = "Sin"
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(UserError) as caught:
        canonicalise_up_to(tmp_path / "model.onnx", 128)
    assert not isinstance(caught.value, ContextTooLong)


def test_inspect_says_the_context_it_was_checked_for() -> None:
    assert inspect(InspectRequest(GENAI)).context == 256
    assert not inspect(InspectRequest(GENAI)).refused
    assert inspect(InspectRequest(GENAI, 1024)).refused


def compile_args(out: Path, *more: str | Path) -> list[str]:
    return ["compile", str(GENAI), "--board", "host", "--out", str(out), *map(str, more)]


@pytest.mark.slow
def test_compile_takes_the_smaller_context_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    assert main(compile_args(out)) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "context 256" in line]
    assert said == [f"  - context 256 tokens, not 1024: {GENAI} has positions for 256"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["plan"]["context"] == manifest["models"]["target"]["context"] == 256


def test_a_context_that_is_asked_for_is_refused_with_the_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(compile_args(tmp_path / "bundle", "--context", "512")) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "has 256 positions, the context is 512; compile with --context 256 or less" in line
    assert not (tmp_path / "bundle").exists()


def test_positions_that_fill_no_whole_tile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Caches have whole tiles of rows, so of 250 positions 240 or so can be used; that number is said."""
    proto = onnx.load(GENAI)
    for tensor in proto.graph.initializer:
        if tensor.name in ("cos_cache", "sin_cache"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)[:250], tensor.name))
    onnx.save(proto, tmp_path / "model.onnx")
    (tmp_path / "tokenizer.json").write_bytes(GENAI.with_name("tokenizer.json").read_bytes())
    args = compile_args(tmp_path / "bundle", "--context", "250", "--eos", "0")
    args[1] = str(tmp_path / "model.onnx")
    assert main(args) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    rows = int(line.split("(")[-1].split(",")[0])
    assert 32 <= rows <= 250
    assert canonicalise(tmp_path / "model.onnx", rows)


def test_a_drafters_context_is_refused_before_the_target_is_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = []
    original = importing._import
    monkeypatch.setattr(importing, "_import", lambda role, *rest: imported.append(role) or original(role, *rest))
    args = compile_args(tmp_path / "bundle", "--context", "512", "--tokenizer", LLAMA.parent, "--draft", GENAI)
    args[1] = str(LLAMA)
    assert main(args) == 2
    assert "has 256 positions, the context is 512" in capsys.readouterr().err
    assert imported == ["draft"]


def test_the_target_limits_the_drafter_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are imported for the context in the end."""
    from hetero_sd.compile.tokenizer_files import find_tokenizer
    from hetero_sd.progress import Progress
    from targets.boards import load_board

    sources = {"target": GENAI, "draft": DRAFT}
    tokenizer = find_tokenizer(LLAMA.parent, [GENAI], (0,))
    board = load_board("imx95")
    models, context, notes = importing.import_models(None, sources, board, tokenizer, None, Progress(quiet=True))
    assert list(models) == ["target", "draft"]
    assert context == 256
    assert len(notes) == 1
    assert all(decoder.facts.context == 256 for decoder, _ in models.values())
    assert np.all([shape.vocab for _, shape in models.values()])
