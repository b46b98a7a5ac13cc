"""A command whose process ends without Python's knowing: one line, an exit code, and nothing left."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
COMMAND = """
    import ctypes, os, signal, sys, time
    from hetero_sd.commands.in_a_copy import in_a_copy
    def native(text):
        os.write(2, text.encode())
    code = in_a_copy("program", "working", lambda: print("cleaned", flush=True))
    if code is None:
        {0}
        code = 0
    sys.exit(code)
"""


def run(body: str, before: str = "") -> subprocess.CompletedProcess[str]:
    script = before + textwrap.dedent(COMMAND).format(body)
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("native('LLVM ERROR: out of memory\\n'); os.abort()", 2, "error: LLVM ERROR: out of memory (working)"),
        (
            "native('LLVM ERROR: IO failure: No space left on device\\n'); ctypes.CDLL(None).exit(1)",
            *(2, "error: LLVM ERROR: IO failure: No space left on device (working)"),
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", 2, "error: the system ended it (SIGKILL): is there enough memory?"),
        ("native('first\\nlast\\n'); os.abort()", 70, "internal error (working): it ended by signal 6: last;"),
        ("ctypes.CDLL(None).exit(0)", 70, "internal error (working): it ended by exit code 0;"),
    ],
    ids=["no memory", "no space", "killed", "crashed", "gone"],
)
def test_an_end_that_python_does_not_see_gives_one_line(body: str, code: int, said: str) -> None:
    done = run(body)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "cleaned\n", 1)
    assert done.stderr.startswith(f"program: {said}")


def test_a_regular_end_is_the_commands_own() -> None:
    done = run("print('out'); print('said', file=sys.stderr); native('a warning\\n'); sys.exit(0)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "said\na warning\n")
    done = run("native('a warning\\n'); print('said', file=sys.stderr); sys.exit(2)")
    assert (done.returncode, done.stderr) == (2, "said\n")
    done = run("raise KeyError('x')")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "KeyError: 'x'")


@pytest.mark.parametrize("number", ["SIGSEGV", "SIGABRT"])
def test_a_crash_where_memory_is_limited_is_no_internal_error(number: str) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 45, 1 << 45))\n"
    crash = f"os.kill(os.getpid(), signal.{number})"
    done = run(crash, limited)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "cleaned\n", 1)
    assert done.stderr.startswith(f"program: error: the system ended it ({number}): is there enough memory?")
    assert run(crash).returncode == 70


WAITING = "print(os.getpid(), flush=True); time.sleep(600)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_is_for_both(number: signal.Signals) -> None:
    script = textwrap.dedent(COMMAND).format(WAITING)
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert int(process.stdout.readline()) != process.pid
    process.send_signal(number)
    assert process.wait(60) == -number
    assert process.stdout.read() == ("cleaned\n" if number == signal.SIGTERM else "")  # it ends when both are gone
    process.stdout.close()


LATE = """
import os, time
fork = os.fork
def late():
    copy = fork()
    if copy:
        time.sleep(0.3)
    return copy
os.fork = late
"""


def test_a_signal_before_the_first_process_waits_is_not_lost() -> None:
    done = run("os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)", LATE)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "cleaned\n")
