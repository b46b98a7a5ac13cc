"""Every command that the documents show works as it is written.

A command is a line of a code block, or a span of code in a sentence, that begins with a program of ours or of the
shell. Each has an entry below that says how it is tried; one without an entry fails, and so does an entry that no
document shows any more. Placeholders are files of the folder that the commands run in.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from requirements import need_program

from hetero_sd import cli
from hetero_sd.cli import main
from hetero_sd.compile.sign import read_private_key, sign
from hetero_sd.runtime.manifest import write_manifest
from hetero_sd.runtime.options import parse_options
from targets.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
EXPORTS = ROOT / "tests" / "data" / "exports"
DOCS = ROOT / "docs"
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "examples/translation/README.md",
    "examples/chat/README.md",
    "benchmarks/prediction.md",
)
PROGRAMS = (
    "hetero-sd",
    "run.py",
    "bundle/run.py",
    "python",
    "python3",
    "make",
    "pytest",
    "pre-commit",
    "pip",
    "scp",
    "ssh",
    "openssl",
    "sha256sum",
)
PACKAGES = ("targets", "costmodel", "passes", "hetero_sd")
FOLDERS = (*PACKAGES, "tests", "benchmarks", "examples")
PAIR = "target/model.onnx --draft draft/model.onnx"
VERIFY = "hetero-sd verify bundle --against target/model.onnx"

RUN = {  # run as it stands, in a folder with the pair and a bundle of it for this machine
    f"{VERIFY}",
    f"{VERIFY} --from F",
    "hetero-sd audit bundle --prompts prompts.txt",
    "hetero-sd inspect FILE.onnx",
    "hetero-sd inspect FILE.onnx --json",
    "hetero-sd inspect bundle",
    "hetero-sd predict target/config.json --draft draft/config.json --board imx95 --alpha 0.8 --report r.html",
    "hetero-sd predict --check",
    "hetero-sd predict target/config.json --board rpi5 --weights int4 --requests 8",
    "hetero-sd acceptance target/model.onnx draft/model.onnx --tokenizer . --prompts prompts.txt",
    "hetero-sd acceptance target/model.onnx early-exit:1 --tokenizer . --prompts prompts.txt",
    "hetero-sd explain target/model.onnx --board imx95",
    "hetero-sd doctor",
    "run.py --help",
    "run.py --doctor",
    "run.py --prompts prompts.txt --save-logits F",
    "run.py --prompt TEXT --mode overlapped",
    "python bundle/run.py --prompt TEXT",
}
SLOW = {  # the same, but long: what is appended makes it shorter
    f"hetero-sd compile {PAIR} --tokenizer . --board imx95 --out bundle": "",
    "run.py --calibrate F": "--calibrate-seconds 30",
}
PARSED = {  # needs a board, the hub, a signed bundle or typed prompts, or steps measured without anything else running
    "run.py --check",
    "run.py --serve",
    "run.py --serve --host 0.0.0.0 --port 8080 --token TOKEN",
    "run.py --verify-key PUB",
    "ssh board python3 bundle/run.py --prompt 'The dog sleeps.'",
    "hetero-sd compile hf:ORG/NAME --variant q4 --board rpi5 --out bundle",
    "hetero-sd verify bundle --against hf:ORG/NAME --variant q4",
    "hetero-sd predict target/config.json --draft draft/config.json --board rpi5 --alpha 0.7 --weights int4",
    "hetero-sd predict hf:ORG/NAME/config.json --draft hf:ORG/DRAFT/config.json --board rpi5 --weights int4",
    "hetero-sd calibrate F --target target/model.onnx --board imx95 --out my-imx95.toml",
    "hetero-sd calibrate --board host",
    "hetero-sd run --on USER@BOARD bundle -- --prompt TEXT",
    "hetero-sd doctor bundle --on USER@BOARD",
}
CHECKED = (  # one after the other, with a bundle's files that were signed with the key of the first
    "openssl genpkey -algorithm ed25519 -out key.pem",
    "openssl pkey -in key.pem -pubout -out key.pub",
    "openssl pkeyutl -verify -pubin -inkey key.pub -rawin -in manifest.json -sigfile manifest.json.sig",
    shlex.join(
        [
            "python3",
            "-c",
            'import hashlib, json; print(json.load(open("manifest.json"))["files"]["run.py"]["sha256"])',
        ]
    ),
    "sha256sum run.py",
)
ELSEWHERE = {  # takes what a test must not: an installation, all tests, a network, hours
    "make demo": "Makefile",
    "make chat": "Makefile",
    "make test": "Makefile",
    "make deep": "Makefile",
    "make setup": "Makefile",
    "make check": "Makefile",
    "pre-commit install": ".pre-commit-config.yaml",
    "pytest -m 'not slow'": "pyproject.toml",
    "pytest -n 2 -m 'not slow'": "pyproject.toml",
    "pytest --update-golden": "tests/conftest.py",
    "pytest --cpu-times FILE": "tests/conftest.py",
    "python tests/attack/figures.py '[KIND' '...]'": "tests/attack/figures.py",
    "python tests/attack/figures.py": "tests/attack/figures.py",
    "pip install 'hetero-sd[sign]'": "pyproject.toml",
    "python benchmarks/published.py": "tests/hetero_sd/predict/test_check.py",
    "scp -r bundle board:": "README.md",
    "pip install huggingface_hub": "pyproject.toml",
    "pip install 'hetero-sd[serve]'": "pyproject.toml",
    "pip install starlette uvicorn": "pyproject.toml",
    "pip install -r requirements-train.txt": "examples/translation/requirements-train.txt",
    "python train.py --work WORK": "examples/translation/train.py",
    "python export.py --work WORK": "examples/translation/export.py",
    "python corpus.py --train train.jsonl": "examples/translation/corpus.py",
    "python examples/chat/chat.py --board imx95 --out chat-imx95": "examples/chat/chat.py",
    "python examples/chat/export.py MODEL.gguf --out DIR": "examples/chat/export.py",
    "python -m onnxruntime_genai.models.builder -m ORG/NAME -o DIR -p int4 -e cpu": "tests/data/make_exports.py",
    "python evaluate.py": "examples/translation/evaluate.py",
    "python benchmarks/prediction.py": "benchmarks/prediction.py",
    "python benchmarks/arm_static.py --write": "benchmarks/arm_static.py",
}


def code_of(text: str) -> Iterator[str]:
    """Lines of code blocks, fenced or indented, and spans of code in the text between them."""
    fenced, prose = False, []
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()
        else:
            prose.append(line)
    yield from re.findall(r"`([^`]+)`", " ".join(prose))


def commands_of(text: str) -> set[str]:
    """The commands in a document, without comments and the path of the virtual environment, quoted in one way."""
    found = set()
    for code in code_of(text):
        for part in re.split(r"\s&&\s", code):
            with contextlib.suppress(ValueError):  # a drawing with a quote in it
                words = shlex.split(re.split(r"\s+#", part)[0])
                if words and (word := words[0].removeprefix(".venv/bin/")) in PROGRAMS and words[1:]:
                    found.add(shlex.join([word, *words[1:]]))
        if drawn := re.search(r"\bpython bundle/run\.py$", code):
            found.add(f"{drawn[0]} --prompt TEXT")
    return found


def documented() -> set[str]:
    documents = [*(ROOT / name for name in DOCUMENTS), *DOCS.rglob("*.md")]
    return set().union(*(commands_of(path.read_text("utf-8")) for path in documents))


def test_every_command_has_an_entry_and_every_entry_a_command() -> None:
    assert documented() == RUN | set(SLOW) | PARSED | set(ELSEWHERE) | set(CHECKED)


def test_a_new_command_would_be_noticed() -> None:
    """The negative control: in a block, in a fence, in a sentence; and what is no command is none."""
    assert commands_of("    .venv/bin/hetero-sd new --thing 'a b'   # why") == {"hetero-sd new --thing 'a b'"}
    assert commands_of("```\nmake it && ssh board true\n```") == {"make it", "ssh board true"}
    assert commands_of("say `run.py\n--new` and `--option`, `sweep` or `make_plan`") == {"run.py --new"}
    assert commands_of('`make` alone\n    target.onnx ─┐ "') == set()


def missing_paths(text: str, root: Path) -> list[str]:
    """The files, folders and modules of the project that a document names and that are not there."""
    named = [word for code in code_of(text) for word in re.findall(r"[\w./-]+", code)]
    named += re.findall(r"\]\(([\w./-]+)\)", text)
    found = []
    for word in dict.fromkeys(name.removesuffix("...").rstrip(".") for name in named):
        first, slash, _ = word.partition("/")
        if slash and first in FOLDERS:
            there = (root / word).exists()
        elif not slash and first.split(".")[0] in PACKAGES and word.count(".") > 1:  # package.module.name
            there = (root / word.replace(".", "/")).parent.with_suffix(".py").exists()
        elif not slash and word.endswith((".py", ".h")):
            there = any(True for folder in FOLDERS for _ in (root / folder).rglob(word))
        else:
            continue
        found += [] if there else [word]
    return found


@pytest.mark.parametrize("name", [*DOCUMENTS, *(f"docs/{path.name}" for path in sorted(DOCS.glob("*.md")))])
def test_every_path_in_a_document_exists(name: str) -> None:
    assert missing_paths((ROOT / name).read_text("utf-8"), ROOT) == []


def test_a_path_that_is_gone_would_be_noticed() -> None:
    """The negative control: files, folders, modules, links and bare names; others beside them exist or are not ours."""
    there = "`hetero_sd/cli.py`, `targets/cpu/kernels/`, `targets.errors.UserError`, [t](README.md), `cli.py`, `a/b.py`"
    assert missing_paths(there, ROOT) == []
    gone = "`hetero_sd/host.py`, `targets/mali/kernels/`, `targets.mistakes.UserError`, [t](passes/NO.md), `no_such.py`"
    expected = [
        "hetero_sd/host.py",
        "targets/mali/kernels/",
        "targets.mistakes.UserError",
        "no_such.py",
        "passes/NO.md",
    ]
    assert missing_paths(gone, ROOT) == expected
    assert missing_paths("    cp targets/boards/none.toml .\n", ROOT) == ["targets/boards/none.toml"]


def test_every_option_in_a_sentence_exists() -> None:
    known = {option for parser in _all_parsers() for option in parser._option_string_actions}
    help_text = (ROOT / "tests/golden/hetero_sd/runtime/help.txt").read_text("utf-8")
    known |= set(re.findall(r"--[a-z][a-z-]*", help_text))
    documents = [ROOT / "README.md", ROOT / "SECURITY.md", *DOCS.rglob("*.md")]
    spans = [span for path in documents for span in re.findall(r"`([^`\n]+)`", path.read_text("utf-8"))]
    shown = {option for span in spans for option in re.findall(r"(?:^|\s)(--[a-z][a-z-]*)", span)}
    assert len(shown) > 25
    assert shown - known == set()


def _all_parsers() -> list[object]:
    parser = cli.parser()
    subcommands = next(action for action in parser._actions if hasattr(action, "choices") and action.choices)
    return [parser, *subcommands.choices.values()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything the commands name; the bundle is for this machine."""
    folder = tmp_path_factory.mktemp("documented")
    for role, export in (("target", "llama-dynamo-fp32"), ("draft", "llama-drafter-dynamo-fp32")):
        shutil.copytree(EXPORTS / export, folder / role)
    for path in (folder / "target").glob("*.json"):
        shutil.copyfile(path, folder / path.name)
    shutil.copyfile(folder / "target/model.onnx", folder / "FILE.onnx")
    (folder / "prompts.txt").write_text("The quick brown fox\nOnce upon a time\n")
    [compile_it] = [command for command in SLOW if " compile " in command]
    done = tried(compile_it.replace("--board imx95", "--board host --context 128"), folder)
    assert done.returncode == 0, done.stderr
    return folder


def tried(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder; `run.py` is the bundle's."""
    words = shlex.split(command)
    programs = {
        "hetero-sd": [sys.executable, "-m", "hetero_sd"],
        "run.py": [sys.executable, "bundle/run.py"],
        "python": [sys.executable],
    }
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    full = [*programs[words[0]], *words[1:]]
    return subprocess.run(full, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_bundle_of_a_stranger_is_checked_with_other_programs(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text("print()")
    write_manifest(tmp_path)
    need_program("openssl")

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(shlex.split(command), cwd=tmp_path, capture_output=True, text=True, check=False)

    make, publish, check, stated, found = CHECKED
    assert [run(make).returncode, run(publish).returncode] == [0, 0]
    sign(tmp_path / "manifest.json", read_private_key(tmp_path / "key.pem"))
    assert run(check).returncode == 0
    assert run(stated).stdout.split() == run(found).stdout.split()[:1]
    (tmp_path / "run.py").write_text("print(1)")  # the negative controls
    assert run(stated).stdout.split() != run(found).stdout.split()[:1]
    (tmp_path / "manifest.json").write_text("{}")
    assert run(check).returncode != 0


ORDER = sorted(RUN, key=lambda command: ("--from" in command, command))  # what --from reads is written before


@pytest.mark.slow
@pytest.mark.parametrize("command", ORDER)
def test_it_runs_as_written(place: Path, command: str) -> None:
    if "--from F" in command and not (place / "F").exists():
        assert tried("run.py --prompts prompts.txt --save-logits F", place).returncode == 0
    done = tried(command, place)
    findings = command.endswith("doctor") and done.returncode == 1  # the doctor found something, as it may
    assert done.returncode == 0 or findings, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout or done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", SLOW)
def test_a_long_one_runs_as_written(place: Path, tmp_path: Path, command: str) -> None:
    folder = place
    if " compile " in command:
        folder = tmp_path
        for name in ("target", "draft", "tokenizer.json", "generation_config.json"):
            if (place / name).exists():
                (folder / name).symlink_to(place / name)
    done = tried(f"{command} {SLOW[command]}", folder)
    assert done.returncode == 0, done.stderr
    if " compile " in command:  # and it says first that it is for another machine
        [line] = [line for line in done.stdout.splitlines() if line.startswith("bundle ")]
        assert ("copy it to the board" in line) == ("this bundle is for" in tried("run.py --help", folder).stderr)


@pytest.mark.parametrize("command", sorted(PARSED))
def test_its_options_are_known(command: str) -> None:
    words = shlex.split(command)
    if "run.py" in words[0] or words[0] == "ssh":
        start = next(i for i, word in enumerate(words) if word.endswith("run.py"))
        parse_options(words[start + 1 :])
        with pytest.raises(UserError):  # the negative control
            parse_options([*words[start + 1 :], "--no-such-option"])
    else:
        cli.parser().parse_args(words[1:])
        assert main([*words[1:], "--no-such-option"]) == 2


@pytest.mark.parametrize("command", sorted(ELSEWHERE))
def test_what_is_not_run_is_there(command: str) -> None:
    words = shlex.split(command)
    source = ROOT / ELSEWHERE[command]
    assert source.is_file()
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", source.read_text("utf-8"), re.MULTILINE)
    elif words[0] == "python":
        compile(source.read_text("utf-8"), str(source), "exec")
        assert all(f'"{option}"' in source.read_text("utf-8") for option in words if option.startswith("--"))
