"""Names of models of the hub: read, and told of a file in the client's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetero_sd.compile.hub_name import HubSource, folder_name, parse_source, source_of
from targets.errors import UserError


@pytest.mark.parametrize(
    "text",
    [
        "hf:model",
        "hf:a/b/../c.onnx",
        "hf:a/b/c.bin",
        "hf:../x",
        "hf:a/b/",
        "hf:a/b@",
        "hf:/a/b",
        "hf:a/b@c/../..",
        "hf:a/b//c.onnx/..",
        "hf:a/b/generation_config.json",
    ],
)
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=r"a model of the hub is hf:ORG/NAME, hf:ORG/NAME/FILE\.onnx, or either with"):
        parse_source(text)


@pytest.mark.parametrize(
    "text", ["hf:a/b", "hf:a/b@v1", "hf:a/b/onnx/model_q4.onnx", "hf:a/b/model.onnx@refs/pr/1", "hf:a/b/config.json"]
)
def test_a_name_is_written_as_it_was_read(text: str) -> None:
    assert str(parse_source(text)) == text


def test_a_file_in_the_cache_has_a_name(tmp_path: Path) -> None:
    repository = tmp_path / "models--maker--tiny-llama"
    file = repository / "snapshots" / "abc" / "onnx" / "model.onnx"
    assert source_of(file) == HubSource("maker/tiny-llama", "onnx/model.onnx", "abc")
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    assert str(source_of(file)) == "hf:maker/tiny-llama/onnx/model.onnx"
    assert str(source_of(repository / "snapshots" / "old" / "x.onnx")) == "hf:maker/tiny-llama/x.onnx@old"
    assert folder_name(file) == "tiny-llama"


def test_other_files_have_none(tmp_path: Path) -> None:
    for path in ("a/model.onnx", "models--a--b/model.onnx", "models--a--b/blobs/x/y.onnx", "b/snapshots/c/x.onnx"):
        assert source_of(tmp_path / path) is None
        assert folder_name(tmp_path / path) == (tmp_path / path).parent.name
