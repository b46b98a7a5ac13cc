"""Which files external data may lie in: the model's own, a hub's blobs; never another file of the user's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from passes.onnx.load.load import load
from targets.errors import UserError

EXPORTS = Path(__file__).parents[3] / "data" / "exports"
EXTERNAL, INLINE = EXPORTS / "llama-genai-fp32", EXPORTS / "llama-dynamo-fp32"
DATA = "model.onnx.data"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose weights lie beside it, in a folder of its own with a secret above it."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("model.onnx", DATA):
        shutil.copyfile(EXTERNAL / name, folder / name)
    shutil.copyfile(EXTERNAL / DATA, tmp_path / "secret")
    return folder / "model.onnx"


def hub(cache: Path, source: Path, repository: str = "models--org--name") -> Path:
    """The model as a hub's client lays it out: a snapshot of links into blobs."""
    blobs, snapshot = cache / repository / "blobs", cache / repository / "snapshots" / "abc" / "onnx"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, name in enumerate(sorted(p.name for p in source.glob("model.onnx*"))):
        shutil.copyfile(source / name, blobs / f"{i:064x}")
        (snapshot / name).symlink_to(f"../../../blobs/{i:064x}")
    return snapshot / "model.onnx"


def relocate(model: Path, location: str) -> None:
    proto = onnx.load(model, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    model.write_bytes(proto.SerializeToString())


def refused(model: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(model)
    assert "\n" not in str(caught.value)
    assert str(model) in str(caught.value)


@pytest.mark.parametrize("source", [EXTERNAL, INLINE], ids=lambda p: p.name)
def test_a_hubs_cache_is_read_as_the_folder_is(tmp_path: Path, source: Path) -> None:
    linked, plain = (load(path).graph.initializers for path in (hub(tmp_path, source), source / "model.onnx"))
    assert list(linked) == list(plain)
    for name in plain:
        assert np.array_equal(linked[name].const_value.numpy(), plain[name].const_value.numpy()), name


def test_onnxruntime_reads_a_hubs_cache_too(tmp_path: Path) -> None:
    from hetero_sd.reference import ReferenceModel

    expected = ReferenceModel(EXTERNAL / "model.onnx").forward([1, 2, 3])
    assert np.array_equal(ReferenceModel(hub(tmp_path, EXTERNAL)).forward([1, 2, 3]), expected)


def test_a_link_out_of_the_hubs_repository_is_refused(tmp_path: Path) -> None:
    model = hub(tmp_path, EXTERNAL)
    other = hub(tmp_path, EXTERNAL, "models--org--other")
    data = model.with_name(DATA)
    data.unlink()
    data.symlink_to(other.with_name(DATA).resolve())
    refused(model, "outside the model's folder .*models--org--other")


def test_a_link_to_the_repositorys_own_files_outside_blobs_is_refused(tmp_path: Path) -> None:
    model = hub(tmp_path, EXTERNAL)
    data = model.with_name(DATA)
    moved = data.resolve().rename(tmp_path / "models--org--name" / "refs")
    data.unlink()
    data.symlink_to(moved)
    refused(model, "outside the model's folder")


def test_blobs_that_are_a_link_are_no_hubs(tmp_path: Path) -> None:
    model = hub(tmp_path, EXTERNAL)
    blobs = tmp_path / "models--org--name" / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    refused(model, "outside the model's folder")


def test_blobs_without_a_snapshot_are_no_hubs(model: Path) -> None:
    """The name of a folder alone opens nothing."""
    folder = model.parent.rename(model.parent.parent / "models--org--name")
    (folder / "blobs").mkdir()
    (folder.parent / "blobs").mkdir()
    (folder / DATA).rename(folder.parent / "blobs" / "0")
    (folder / DATA).symlink_to("../blobs/0")
    refused(folder / "model.onnx", "outside the model's folder")


def test_a_link_to_the_model_is_followed(tmp_path: Path) -> None:
    """The user chose the file; its own weights come with it, external ones lie beside the link."""
    shutil.copyfile(INLINE / "model.onnx", tmp_path / "real.onnx")
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "model.onnx"
    link.symlink_to(tmp_path / "real.onnx")
    assert load(link).graph.initializers["model.model.embed_tokens.weight"].const_value.numpy().size


@pytest.mark.parametrize("way", ["relative", "absolute", "folder"])
def test_a_link_out_of_the_folder_is_refused(model: Path, way: str) -> None:
    data, secret = model.with_name(DATA), model.parent.parent / "secret"
    data.unlink()
    if way == "folder":
        (model.parent / "sub").symlink_to(model.parent.parent)
        relocate(model, "sub/secret")
    else:
        data.symlink_to(secret if way == "absolute" else Path("..", "secret"))
    refused(model, "outside the model's folder .*secret.*copy the file beside")


def test_links_within_the_folder_are_followed(model: Path) -> None:
    (model.parent / "sub").mkdir()
    (model.parent / "linked").symlink_to("sub")
    model.with_name(DATA).rename(model.parent / "sub" / "weights")
    (model.parent / "sub" / "also").symlink_to(model.parent / "sub" / "weights")
    relocate(model, "linked/also")
    assert load(model).graph.initializers["lm_head.MatMul.weight"].const_value.numpy().shape == (64, 512)


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "sub/../../secret", f"../own/{DATA}", f"./../own/{DATA}"]
)
def test_paths_with_two_dots_and_absolute_ones_are_refused(model: Path, location: str) -> None:
    """Also where they come back to the folder: ONNX forbids them, and a copy under another name would not load."""
    relocate(model, location)
    refused(model, "outside the model's folder .*relative and without")


def test_an_absolute_path_into_the_folder_is_refused(model: Path) -> None:
    relocate(model, str(model.with_name(DATA)))
    refused(model, "relative and without")


def test_what_is_no_regular_file_is_refused(model: Path) -> None:
    data = model.with_name(DATA)
    data.unlink()
    os.mkfifo(data)
    refused(model, "is not a regular file")  # and does not wait for a writer
    data.unlink()
    data.symlink_to("/dev/zero")
    refused(model, "outside the model's folder")
    relocate(model, ".")
    refused(model, "is not a regular file")


@pytest.mark.parametrize(("location", "message"), [("", "has no name"), ("x" * 400, "is no usable path")])
def test_a_path_that_is_none(model: Path, location: str, message: str) -> None:
    relocate(model, location)
    refused(model, message)


def test_links_in_a_circle(model: Path) -> None:
    data = model.with_name(DATA)
    data.unlink()
    data.symlink_to(DATA)
    refused(model, "is no usable path|is missing")
