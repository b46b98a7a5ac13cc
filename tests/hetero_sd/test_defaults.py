"""A stranger's export folder compiles with no option but the board: the tokenizer is found beside the model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hetero_sd.cli import main
from hetero_sd.compile.tokenizer_files import find_tokenizer
from passes.onnx.testing import write_word_tokenizer
from targets.errors import UserError

DATA = Path(__file__).parents[1] / "data"
# two families and two exporters; where there is no tokenizer, one of words is put beside the model
FOLDERS = {"exports/qwen3-dynamo-fp32": "The drafter is small", "families/gemma3-optimum-fp32": "w5 w9 w33 w2"}


def test_the_tokenizer_beside_the_model_is_found(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    model = tmp_path / "onnx" / "model.onnx"
    with pytest.raises(UserError, match=r"there is no tokenizer.json beside it; say where it is with --tokenizer"):
        find_tokenizer(None, [model], ())
    write_word_tokenizer(tmp_path, 64)  # a hub's layout: one folder up
    assert find_tokenizer(None, [model], ()).folder == tmp_path
    write_word_tokenizer(model.parent, 32)
    found = find_tokenizer(None, [model], ())
    assert (found.folder, found.vocab, found.eos_ids) == (model.parent, 32, (1,))


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_an_export_folder_compiles_and_generates(folder: str, tmp_path: Path) -> None:
    export, bundle = tmp_path / "export", tmp_path / "bundle"
    shutil.copytree(DATA / folder, export)
    if not (export / "tokenizer.json").exists():
        write_word_tokenizer(export, 64)
    assert main(["compile", str(export / "model.onnx"), "--board", "host", "--out", str(bundle)]) == 0
    argv = [sys.executable, str(bundle / "run.py"), "--prompt", FOLDERS[folder], "--max-new-tokens", "8", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[0])
    assert 1 <= len(answer["token_ids"]) <= 8
    assert main(["verify", str(bundle), "--against", str(export / "model.onnx")]) == 0
