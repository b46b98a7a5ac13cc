"""Exports lie packed in tests/data/*.tar.xz; tests see them unpacked beside the archive.

families.tar.xz has those of the coverage table, cases.tar.xz those that once failed.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
from pathlib import Path


# families with an export or two, in the coverage table alone
OTHERS = (
    *("olmo", "smollm3", "stablelm", "phi", "starcoder2", "gpt-neox", "gptj", "cohere", "cohere2", "exaone4"),
    *("internlm3", "glm4", "opt", "opt-350m", "falcon", "falcon-grouped", "nemotron"),
    *("bloom", "mpt", "falcon-alibi", "hunyuan", "nanochat"),
    *("stablelm-heads", "phi-heads", "persimmon", "cohere-heads", "olmo-clipped", "apertus"),
    *("gemma", "gemma3n", "gemma3n-shared", "exaone", "glm", "olmo3", "gpt-neo", "codegen", "vaultgemma", "ministral", "arcee"),
    *("seed-oss", "helium", "ernie4-5"),
)
EXPORTERS = ("dynamo", "legacy17", "optimum")


def one_of_its_kind(name: str) -> bool:
    """Whether a cell is another one as a tool saved it, or of such a family: the longer tests leave those out."""
    return "-saved-" in name or name in {f"{family}-{exporter}-fp32" for family in OTHERS for exporter in EXPORTERS}


def unpack_families(data: Path, name: str = "families") -> Path:
    """Unpack `data`/`name`.tar.xz to `data`/`name` unless that has been done; returns the folder."""
    archive, folder = data / f"{name}.tar.xz", data / name
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    mark = folder / ".sha256"
    if mark.is_file() and mark.read_text() == digest:
        return folder
    with tempfile.TemporaryDirectory(dir=data) as scratch:
        fresh = Path(scratch) / name
        with tarfile.open(archive) as content:
            content.extractall(fresh, filter="data")
        (fresh / ".sha256").write_text(digest)
        if folder.exists():
            os.replace(folder, Path(scratch) / "old")
        try:
            os.rename(fresh, folder)
        except OSError:  # another test session was quicker
            if not mark.is_file():
                raise
    return folder
