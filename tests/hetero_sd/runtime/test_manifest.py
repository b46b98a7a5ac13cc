"""A bundle is opened only if it is what was written."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from hetero_sd.runtime import manifest as manifest_module
from hetero_sd.runtime.manifest import Bundle, hash_file, write_manifest
from targets.errors import UserError

MODELS = {"target": {"library": "lib/target_cpu.so", "weights": "weights/target.safetensors", "vocab": 8}}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "bundle"
    for name, text in {
        "lib/target_cpu.so": "code",
        "weights/target.safetensors": "numbers",
        "run.py": "print()",
        "python/a/__pycache__/x.pyc": "cache",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    write_manifest(folder, {"models": MODELS, "plan": {"gamma": 3}, "tokenizer": {"eos_ids": [2]}})
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
    assert (bundle.models, bundle.plan, bundle.tokenizer) == (MODELS, {"gamma": 3}, {"eos_ids": [2]})
    assert bundle.path("lib/target_cpu.so").read_text() == "code"
    assert "run.py" in bundle
    assert "python/a/__pycache__/x.pyc" not in bundle
    bundle.verify_all()


def test_same_folder_same_bytes(folder):
    first = (folder / "manifest.json").read_bytes()
    write_manifest(folder, {"tokenizer": {"eos_ids": [2]}, "plan": {"gamma": 3}, "models": MODELS})
    assert (folder / "manifest.json").read_bytes() == first
    assert first.endswith(b"}\n")
    sha256 = hashlib.sha256(b"code").hexdigest()
    assert json.loads(first)["files"]["lib/target_cpu.so"] == {"bytes": 4, "sha256": sha256}
    assert first.startswith(b'{\n "files": {\n  "lib/target_cpu.so": {\n   "bytes": 4,\n   "sha256": "')


def test_hash_is_read_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest_module, "_CHUNK_BYTES", 7)
    data = bytes(range(256)) * 3
    (tmp_path / "f").write_bytes(data)
    assert hash_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_changed_contents_are_refused_before_the_path_is_given(folder):
    (folder / "lib/target_cpu.so").write_text("edoc")
    (folder / "weights/target.safetensors").write_text("NUMBERS")
    bundle = Bundle(folder)  # same sizes
    with pytest.raises(UserError, match=r"target_cpu\.so does not match its SHA-256"):
        bundle.path("lib/target_cpu.so")
    with pytest.raises(UserError, match=r"target\.safetensors does not match"):
        bundle.path("weights/target.safetensors")
    assert bundle.path("weights/target.safetensors", hashed=False).read_text() == "NUMBERS"
    with pytest.raises(UserError, match="does not match"):
        bundle.verify_all()


def test_a_file_is_hashed_once(folder, monkeypatch):
    hashed = []
    honest = hash_file
    monkeypatch.setattr(manifest_module, "hash_file", lambda path: hashed.append(path) or honest(path))
    bundle = Bundle(folder)
    assert hashed == []
    for _ in range(2):
        bundle.path("lib/target_cpu.so")
    assert hashed == [folder / "lib/target_cpu.so"]


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


def test_unlisted_other_files_are_no_matter(folder):
    (folder / "site").mkdir()
    (folder / "site/any.so").write_text("installed later")
    Bundle(folder)
    with pytest.raises(UserError, match=r"does not list .site/any\.so."):
        Bundle(folder).path("site/any.so")


@pytest.mark.parametrize(
    "models",
    [
        {"target": {"library": "lib/other.so"}},
        {"target": {"weights": "weights/other"}},
        {"target": {"parts": [{"anything": "lib/other.so"}]}},
        {"target": {"anything": "/etc/other.safetensors"}},
    ],
)
def test_models_name_only_listed_files(folder, models):
    edit(folder, lambda m: m.update(models=models))
    refused(folder, "models name .*other.*, which `files` does not list")
    with pytest.raises(ValueError, match="models name files"):
        write_manifest(folder, {"models": models})


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
    (outside / "target_cpu.so").write_text("code")
    (folder / "lib/target_cpu.so").unlink()
    if through_folder:
        (folder / "lib").rmdir()
        (folder / "lib").symlink_to(outside)
    else:
        (folder / "lib/target_cpu.so").symlink_to(outside / "target_cpu.so")
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
        write_manifest(folder, {})


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
    refused(folder, "'run.py' needs `bytes` and `sha256`")


@pytest.mark.parametrize("version", [None, 0, 2, "1", 1.0, True])
def test_unknown_version_is_refused(folder, version):
    edit(folder, lambda m: m.update(format_version=version))
    refused(folder, "format_version")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ("\udcff", "not valid JSON"),
        ("[]", "no object `files`"),
        ('{"files": {}, "format_version": 1, "plan": {"gamma": NaN}}', "not valid JSON"),
        ('{"files": {}, "format_version": 1, "plan": {"gamma": 1e999}}', "not valid JSON"),
        ('{"files": []}', "no object `files`"),
        ('{"files": {}, "format_version": 1, "models": []}', None),
        ('{"files": {}, "format_version": 1, "models": [1]}', "`models` is not an object"),
        ('{"files": {}, "format_version": 1, "plan": "x"}', "`plan` is not an object"),
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
        write_manifest(folder, {"plan": {"speed": float("nan")}})
    assert (folder / "manifest.json").read_bytes() == before
    assert not (folder / "manifest.json.part").exists()
