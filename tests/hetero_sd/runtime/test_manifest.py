"""A bundle is opened only if it is what was written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from bundles import some_model, some_plan, some_prediction

from costmodel.schema.manifest import TokenizerFacts
from hetero_sd.runtime import manifest as manifest_module
from hetero_sd.runtime.file_hashes import hash_file
from hetero_sd.runtime.manifest import Bundle, write_manifest
from hetero_sd.runtime.manifest_checks import check_models
from targets.errors import UserError

MODELS = {"target": some_model(vocab=8)}
PLAN, TOKENIZER = some_plan(), TokenizerFacts((2,), 8)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "bundle"
    for name, text in {
        "lib/target.so": "code",
        "weights/target.safetensors": "numbers",
        "run.py": "print()",
        "python/a/__pycache__/x.pyc": "cache",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    write_manifest(folder, MODELS, PLAN, TOKENIZER, {"name": "host"})
    return folder


def edit(folder, change):
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def refused(folder, match):
    with pytest.raises(UserError, match=match) as caught:
        Bundle(folder)
    assert "\n" not in str(caught.value)


def test_round_trip(folder):
    bundle = Bundle(folder)
    assert (bundle.models, bundle.plan, bundle.tokenizer) == (MODELS, PLAN, TOKENIZER)
    assert bundle.path("lib/target.so").read_text() == "code"
    assert "run.py" in bundle
    assert "python/a/__pycache__/x.pyc" not in bundle
    shutil.rmtree(folder / "python")
    assert bundle.verify_all() == len("codenumbersprint()")


def test_same_folder_same_bytes(folder):
    first = (folder / "manifest.json").read_bytes()
    write_manifest(folder, dict(MODELS), some_plan(), TokenizerFacts((2,), 8), {"name": "host"})
    assert (folder / "manifest.json").read_bytes() == first
    assert first.endswith(b"}\n")
    sha256 = hashlib.sha256(b"code").hexdigest()
    assert json.loads(first)["files"]["lib/target.so"] == {"bytes": 4, "sha256": sha256}
    assert b'\n "files": {\n  "lib/target.so": {\n   "bytes": 4,\n   "sha256": "' in first


def test_changed_contents_are_refused_before_the_path_is_given(folder):
    (folder / "lib/target.so").write_text("edoc")
    (folder / "weights/target.safetensors").write_text("NUMBERS")
    bundle = Bundle(folder)  # same sizes
    with pytest.raises(UserError, match=r"target\.so does not match its SHA-256"):
        bundle.path("lib/target.so")
    with pytest.raises(UserError, match=r"target\.safetensors does not match"):
        bundle.path("weights/target.safetensors")
    with pytest.raises(UserError, match=r"target\.safetensors: bytes 0 to 7 are not those that were written"):
        bundle.path("weights/target.safetensors", hashed=False)
    shutil.rmtree(folder / "python")
    with pytest.raises(UserError, match="does not match"):
        bundle.verify_all()


def test_a_file_is_hashed_once(folder, monkeypatch):
    hashed = []
    honest = hash_file
    monkeypatch.setattr(manifest_module, "hash_file", lambda path: hashed.append(path) or honest(path))
    bundle = Bundle(folder)
    assert hashed == []
    for _ in range(2):
        bundle.path("lib/target.so")
    assert hashed == [folder / "lib/target.so"]


def test_changed_size_is_refused(folder):
    (folder / "run.py").write_text("print(1)")
    refused(folder, r"run\.py has 8 bytes, manifest\.json says 7")


def test_missing_file_is_refused(folder):
    (folder / "run.py").unlink()
    refused(folder, r"run\.py is listed .* cannot be read")


def test_folder_in_place_of_a_file_is_refused(folder):
    (folder / "run.py").unlink()
    (folder / "run.py").mkdir()
    refused(folder, r"run\.py .* is not a file")


@pytest.mark.parametrize("name", ["lib/extra.so", "weights/extra", "tokenizer/chat_template.jinja"])
def test_unlisted_files_of_the_main_folders_are_refused(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("code")
    refused(folder, rf"{name} is not listed")


@pytest.mark.parametrize("name", ["any", "python/a/b.py", "python/a/__pycache__/x.pyc", "site/x", "tokenizer/x"])
def test_no_unlisted_file_passes_a_check_of_all(folder, name):
    shutil.rmtree(folder / "python")
    (folder / "manifest.json.sig").write_text("no file of the manifest")
    Bundle(folder).verify_all()
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("")
    with pytest.raises(UserError, match=rf"{name} is not listed in manifest\.json: remove it"):
        Bundle(folder).verify_all()


def test_weights_without_hashes_of_blocks_are_refused(folder):
    edit(folder, lambda m: m["blocks"].clear())
    with pytest.raises(UserError, match=r"blocks has no hashes of weights/target\.safetensors"):
        Bundle(folder).path("weights/target.safetensors", hashed=False)
    edit(folder, lambda m: m["blocks"].update({"lib/target.so": {"blake2b": []}}))
    refused(folder, "blocks has 0 hashes of 'lib/target.so', not 1")


def test_a_library_is_read_through_the_descriptor_that_was_hashed(folder):
    bundle = Bundle(folder)
    with bundle.opened("lib/target.so") as first, bundle.opened("lib/target.so") as second:
        (folder / "other.so").write_text("evil")
        os.replace(folder / "other.so", folder / "lib/target.so")
        assert Path(first).read_text() == "code"
        assert first != second
        assert first.startswith("/proc/self/fd/")
    with pytest.raises(UserError, match=r"target\.so does not match its SHA-256"), bundle.opened("lib/target.so"):
        pass


def test_a_library_is_opened_by_its_name_where_there_is_no_proc(folder, monkeypatch):
    monkeypatch.setattr(manifest_module, "_DESCRIPTORS", "/nowhere")
    with Bundle(folder).opened("lib/target.so") as opened:
        assert opened == str(folder / "lib/target.so")


def test_a_bundle_without_a_target_is_refused(folder):
    edit(folder, lambda m: (m["models"].clear(), m.update(plan=None)))
    with pytest.raises(UserError, match=r"models\.target is missing"):
        check_models(Bundle(folder))


def test_unlisted_other_files_are_no_matter(folder):
    (folder / "site").mkdir()
    (folder / "site/any.so").write_text("installed later")
    Bundle(folder)
    with pytest.raises(UserError, match=r"does not list .site/any\.so."):
        Bundle(folder).path("site/any.so")


@pytest.mark.parametrize(
    "changes",
    [
        {"libraries": {"cpu": "lib/other.so"}},
        {"weights": "weights/other"},
        {"weights": "/etc/other.safetensors"},
        {"opencl_runtime": "other"},
    ],
)
def test_models_name_only_listed_files(folder, changes):
    edit(folder, lambda m: m["models"]["target"].update(changes))
    refused(folder, "models name .*other.*, which `files` does not list")
    with pytest.raises(ValueError, match="models name files"):
        write_manifest(folder, {"target": some_model(vocab=8, **changes)})


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../outside",
        "lib/../../outside",
        "lib/./a",
        "./a",
        "a//b",
        "a/",
        "",
        ".",
        "..",
        "C:a",
        "a\\b",
        "a\0b",
    ],
)
def test_paths_that_could_leave_the_bundle_are_refused(folder, name):
    (folder.parent / "outside").write_text("secret")
    facts = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    edit(folder, lambda m: m["files"].update({name: facts}))
    refused(folder, "not a plain path inside the bundle")


@pytest.mark.parametrize("name", ["x" * 5000, "\ud800"])
def test_paths_no_file_system_takes_are_refused(folder, name):
    edit(folder, lambda m: m["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
    refused(folder, "cannot be read")


@pytest.mark.parametrize("through_folder", [False, True])
def test_links_out_of_the_bundle_are_refused(folder, tmp_path, through_folder):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "target.so").write_text("code")
    (folder / "lib/target.so").unlink()
    if through_folder:
        (folder / "lib").rmdir()
        (folder / "lib").symlink_to(outside)
    else:
        (folder / "lib/target.so").symlink_to(outside / "target.so")
    refused(folder, "leaves the bundle")


def test_links_inside_the_bundle_and_to_the_bundle_are_fine(folder, tmp_path):
    os.rename(folder / "run.py", folder / "python/real.py")
    (folder / "run.py").symlink_to("python/real.py")
    (tmp_path / "link").symlink_to(folder)
    assert Bundle(tmp_path / "link").path("run.py").read_text() == "print()"


def test_looping_link_is_refused(folder):
    (folder / "run.py").unlink()
    (folder / "run.py").symlink_to("run.py")
    refused(folder, "cannot be read")


def test_links_are_not_written(folder):
    (folder / "more").symlink_to("run.py")
    with pytest.raises(ValueError, match="is a link"):
        write_manifest(folder)


@pytest.mark.parametrize(
    "facts",
    [
        None,
        {},
        {"bytes": 7},
        {"bytes": -1, "sha256": "0" * 64},
        {"bytes": True, "sha256": "0" * 64},
        {"bytes": 7.0, "sha256": "0" * 64},
        {"bytes": 7, "sha256": "0" * 63},
        {"bytes": 7, "sha256": "A" * 64},
        {"bytes": 7, "sha256": None},
    ],
)
def test_malformed_entries_are_refused(folder, facts):
    edit(folder, lambda m: m["files"].update({"run.py": facts}))
    refused(folder, r"manifest.json: files.run.py(.bytes|.sha256|:| ).*: build the bundle again")


@pytest.mark.parametrize("version", [None, 0, 1, 2, 3, 4, 5, 6, 8, "7", 7.0, True])
def test_another_format_is_refused_with_what_to_do(folder, version):
    edit(folder, lambda m: (m.update(format_version=version), m.pop("files")))  # its other keys may be other ones
    refused(folder, "has format_version .*, this version of hetero-sd reads 7: build the bundle again with this v")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ("\udcff", "not valid JSON"),
        ("[]", "has format_version None"),
        ('{"files": {}, "format_version": 7, "plan": {"gamma": NaN}}', "not valid JSON"),
        ('{"files": {}, "format_version": 7, "plan": {"gamma": 1e999}}', "not valid JSON"),
        ('{"format_version": 7}', "files is missing"),
        ('{"files": [], "format_version": 7}', r"files is \[\], not an object"),
        ('{"files": {}, "format_version": 7}', None),
        ('{"files": {}, "format_version": 7, "models": [1]}', r"models is \[1\], not an object"),
        ('{"files": {}, "format_version": 7, "models": {"helper": {}}}', "a key of models is 'helper', none of target"),
        ('{"files": {}, "format_version": 7, "plan": "x"}', "plan is 'x', not an object or null"),
    ],
)
def test_malformed_manifest_is_refused(folder, text, match):
    (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    for file in (*(folder / "lib").iterdir(), *(folder / "weights").iterdir()):
        file.unlink()
    if match is None:
        assert Bundle(folder).models == {}
    else:
        refused(folder, match)


def test_huge_manifest_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(manifest_module, "_MAX_MANIFEST_BYTES", 10)
    refused(folder, "larger than 10 bytes")


def test_a_folder_that_is_no_bundle(tmp_path):
    refused(tmp_path, r"cannot read .*manifest\.json: No such file or directory: is .* a bundle\?")


def test_a_failed_write_leaves_the_old_manifest(folder):
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_manifest(folder, MODELS, some_plan(prediction=some_prediction(sampling_s=float("nan"))))
    assert (folder / "manifest.json").read_bytes() == before
    assert not list(folder.glob("*.part"))
    assert not list(folder.glob(".*"))
