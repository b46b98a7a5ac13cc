"""Damaged bundles: a field of the manifest changed, or a file damaged, with its hash in the manifest or without.

A bundle that differs from its manifest is refused in one line or gives the intact bundle's tokens. One that was damaged
with its hash made right says what its files say: any tokens, or one line, never a traceback or a signal. Kernels with
their hash made right are left out: a bundle is code (SECURITY.md).
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hetero_sd.runtime.file_hashes import hash_file
from tests.attack.figure import Figures
from tests.attack.workers import CompileWorker, Question, compile_arguments

FULL = 5000
_DATA = ("weights/", "tokenizer/")  # what is read as data, whatever its hash says


def attack(count: int, first: int, jobs: int) -> Figures:
    """Run `count` damaged bundles, the seeds from `first` on."""
    from tests.hetero_sd.runtime.conftest import Worker
    from tests.hetero_sd.runtime.test_manifest_mutations import Bundle, complaint, draw, weighted

    figures = Figures("bundles", f"seeds {first} to {first + count - 1}")
    with tempfile.TemporaryDirectory(prefix="hsd-bundles-") as name:
        base = Path(name)
        with CompileWorker(base / "tmp") as compiler:
            done = compiler.ask(Question(compile_arguments(base / "source")))
            assert done.code == 0, done.err
        (base / "work").mkdir()
        worker = Worker()
        try:
            bundle = Bundle(base / "source", base / "work", worker)
            all_places = weighted(bundle.manifest)
            names = sorted(bundle.manifest["files"])
            for seed in range(first, first + count):
                rng = random.Random(seed)
                if rng.random() < 0.6:
                    what, manifest = draw(bundle.manifest, rng.choice(all_places), rng.randrange)
                    outcome = bundle.run(manifest)
                    problem = complaint(outcome, bundle.wanted)
                    kind = "manifest"
                else:
                    file = rng.choice(names)
                    made_right = file.startswith(_DATA) and rng.random() < 0.7
                    what = _damage(rng, bundle.folder / file)
                    manifest = copy.deepcopy(bundle.manifest)
                    path = bundle.folder / file
                    if made_right and path.is_file():
                        manifest["files"][file] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
                    outcome = bundle.run(manifest)
                    problem = _no_crash(outcome) if made_right else complaint(outcome, bundle.wanted)
                    kind, what = "data" if made_right else "file", f"{file}: {what}"
                    _restore(path, base / "source" / file)
                figures.counts[f"{kind} ended {outcome['code']}"] += 1
                figures.failures += [f"seed {seed}, {what}: {problem}"] if problem else []
        finally:
            worker.process.kill()
            worker.process.wait()
    return figures


def _damage(rng: random.Random, path: Path) -> str:
    content = bytearray(path.read_bytes())
    edge = min(len(content), rng.choice([16, 512, 1 << 30]))
    kind = rng.choice(["bytes", "bytes", "cut", "longer", "gone", "folder", "empty", "repeated"])
    if kind == "bytes":
        for _ in range(rng.choice([1, 1, 4, 64])):
            if content:
                content[rng.randrange(edge)] = rng.randrange(256)
    elif kind == "cut":
        del content[rng.randrange(len(content) + 1) :]
    elif kind == "longer":
        content += bytes(rng.randrange(1, 4096))
    elif kind == "empty":
        content.clear()
    elif kind == "repeated":
        at = rng.randrange(edge + 1)
        content[at:at] = content[at : at + rng.randrange(1, 256)]
    if kind in ("gone", "folder"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
        return kind
    path.write_bytes(content)
    return kind


def _restore(path: Path, source: Path) -> None:
    if path.is_dir():
        path.rmdir()
    shutil.copyfile(source, path)


def _no_crash(outcome: dict[str, Any]) -> str:
    """What is wrong with the end of a run of data that may mean anything."""
    lines = outcome["err"].splitlines()
    if outcome["code"] in (2, 3):
        one_line = len(lines) == 1 and lines[0].startswith("run.py: error: ")
        return "" if one_line else f"not one line: {outcome['err'][-500:]!r}"
    if outcome["code"] != 0:
        return f"ended with {outcome['code']}: {lines[-3:]}"
    for line in outcome["out"].splitlines():
        json.loads(line)
    return ""
