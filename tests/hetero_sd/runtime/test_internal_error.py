"""An unexpected error is one line and exit code 70; the traceback is there for those who ask for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hetero_sd import cli
from hetero_sd.progress import Progress
from hetero_sd.runtime import run
from hetero_sd.runtime.internal_error import EXIT_CODE, report, step
from hetero_sd.runtime.launcher import launcher
from hetero_sd.runtime.manifest import write_manifest
from hetero_sd.runtime.text.chat_template import Chat, ChatTemplate
from targets import memory
from targets.errors import UserError
from targets.opencl.runtime import machine

ROOT = Path(__file__).resolve().parents[3]


def fails(error: BaseException):
    def command(*_):
        raise error

    return command


@pytest.mark.parametrize("error", [ValueError("two\nlines \x1b[31m"), AssertionError(), RuntimeError("x" * 5000)])
def test_an_unexpected_exception_is_one_line(error, monkeypatch, capsys):
    monkeypatch.setattr(cli.doctor, "run", fails(error))
    assert cli.main(["doctor"]) == EXIT_CODE == 70
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "\x1b" not in err
    assert len(err) < 700
    assert err.startswith(f"hetero-sd: internal error (doctor): {type(error).__name__}")
    assert "report it" in err


def test_debugging_shows_the_traceback(monkeypatch, capsys):
    monkeypatch.setattr(cli.doctor, "run", fails(ValueError("that")))
    monkeypatch.setenv("HSD_DEBUG", "1")
    assert cli.main(["doctor"]) == EXIT_CODE
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("hetero-sd: internal error")


def test_a_panic_is_no_exception_and_said_too(monkeypatch, capsys):
    class PanicException(BaseException):
        pass

    monkeypatch.setattr(cli.doctor, "run", fails(PanicException("in Rust")))
    assert cli.main(["doctor"]) == EXIT_CODE
    assert "PanicException: in Rust" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "/a/b"), "/a/b: No space left on device"),
        (MemoryError(), "out of memory"),
        (OSError(12, "Cannot allocate memory", "/a/b"), "out of memory"),
        (
            RuntimeError("Traceback\n  Cannot open file: a.o No space left on device\n"),
            "Cannot open file: a.o No space left on device",
        ),
    ],
)
def test_what_the_machine_lacks_is_no_internal_error(error, said, monkeypatch, capsys):
    monkeypatch.setattr(cli.doctor, "run", fails(error))
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == f"hetero-sd: error: {said} (doctor)\n"


def test_errors_where_memory_is_short_say_so_first(monkeypatch, capsys):
    monkeypatch.setattr(memory, "is_short", lambda size: True)
    monkeypatch.setattr(cli.doctor, "run", fails(UserError("model.onnx: the shape of val_2 is unknown")))
    assert cli.main(["doctor"]) == 2
    said = "out of memory? less than 64 MiB are left of what the system allows; it ended with: "
    assert capsys.readouterr().err == f"hetero-sd: error: {said}model.onnx: the shape of val_2 is unknown\n"
    monkeypatch.setattr(cli.doctor, "run", fails(SystemError("error return without exception set")))
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == (
        f"hetero-sd: error: {said}SystemError: error return without exception set (doctor)\n"
    )


def test_a_library_that_cannot_be_imported_where_memory_is_limited(tmp_path, monkeypatch, capsys):
    """Python 3.12 loses the MemoryError of a source that it compiles: what comes out of the import is a SystemError."""
    (tmp_path / "jinja2").mkdir()
    (tmp_path / "jinja2" / "__init__.py").write_text("raise SystemError('error return without exception set')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "jinja2"]:
        monkeypatch.delitem(sys.modules, name)
    template = ChatTemplate("{{ messages[0].content }}", {})
    monkeypatch.setattr(run, "_run", lambda *_: template.render(Chat([{"role": "user", "content": "x"}])))
    for limited, code, said in [(True, 2, "error: out of memory (running"), (False, 70, "internal error (running")]:
        monkeypatch.setattr(memory, "is_limited", lambda limited=limited: limited)
        assert run.main(tmp_path, ["--prompt", "x"]) == code
        err = capsys.readouterr().err
        assert err.startswith(f"run.py: {said}")
        assert err.count("\n") == 1


def test_commands_that_may_have_too_little_to_begin_with(tmp_path):
    (tmp_path / "run.py").write_text(launcher(machine(), "host"))
    write_manifest(tmp_path)
    for program, command in (("run.py", [tmp_path / "run.py"]), ("hetero-sd", ["-m", "hetero_sd", "doctor"])):
        for kib in (20_000, 100_000):
            limited = ["sh", "-c", f'ulimit -v {kib}; exec "$0" "$@"', sys.executable, *command]
            done = subprocess.run(limited, capture_output=True, text=True, cwd=ROOT, check=False)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
            assert done.stderr.startswith(f"{program}: error: out of memory: the system allows this process less than")


def test_interrupts_and_exits_are_as_before(monkeypatch):
    monkeypatch.setattr(cli.doctor, "run", fails(KeyboardInterrupt()))
    assert cli.main(["doctor"]) == 130
    monkeypatch.setattr(cli.doctor, "run", fails(SystemExit(5)))
    with pytest.raises(SystemExit):
        cli.main(["doctor"])


def test_the_innermost_step_is_named(capsys):
    try:
        with Progress(quiet=True).step("target: import model.onnx"), step("reading"):
            raise KeyError("a")
    except KeyError as error:
        assert report("hetero-sd", "compile", error) == EXIT_CODE  # noqa: PT017 (it is caught to be reported)
    assert "internal error (reading): KeyError: 'a'" in capsys.readouterr().err


def test_on_the_device(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "_run", fails(ZeroDivisionError("of something")))
    assert run.main(tmp_path, ["--prompt", "x"]) == EXIT_CODE
    err = capsys.readouterr().err
    assert err.startswith("run.py: internal error (running the bundle): ZeroDivisionError: of something")
    assert err.count("\n") == 1


def test_the_launcher_says_what_fails_before_the_command(tmp_path):
    (tmp_path / "run.py").write_text(launcher(machine(), "host"))
    broken = tmp_path / "python" / "hetero_sd" / "runtime"
    broken.mkdir(parents=True)
    for package in (broken, broken.parent):
        (package / "__init__.py").touch()
    (broken / "run.py").write_text("raise ValueError('a\\nb')")
    write_manifest(tmp_path)
    command = [sys.executable, str(tmp_path / "run.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        70,
        "run.py: internal error (starting): ValueError: a b; HSD_DEBUG=1 shows the traceback\n",
    )
