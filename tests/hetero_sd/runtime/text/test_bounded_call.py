"""Text from a stranger's program: its bounds, and that nothing of it stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from hetero_sd.runtime.text.bounded_call import CallFailed, bounded_text


def fail() -> str:
    raise ValueError("two\nlines")


def vanish() -> str:
    os._exit(3)


def memory() -> str:
    return "x" * (1 << 40)


def sleep() -> str:
    time.sleep(600)
    return ""


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (fail, "two\nlines"),
        (vanish, "it ended without an answer"),
        (memory, "out of memory"),
        (sleep, r"it takes more than 0\.3 s"),
        (lambda: "x" * 2000, "it makes more than 1000 bytes"),
    ],
)
def test_what_ends_a_program(make: Callable[[], str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fork, children = os.fork, []

    def noted() -> int:
        children.append(fork())
        return children[-1]

    monkeypatch.setattr(os, "fork", noted)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(CallFailed, match=said):
        bounded_text(make, seconds=0.3 if make is sleep else 60.0, most_bytes=1000)
    assert os.listdir("/proc/self/fd") == before
    (child,) = children
    with pytest.raises(ChildProcessError):  # it was waited for
        os.waitpid(child, os.WNOHANG)


def test_where_the_user_may_have_less_memory_than_the_bound() -> None:
    """`ulimit -v`: it is not raised, and the text is made."""
    script = """
import resource
from hetero_sd.runtime.text.bounded_call import bounded_text
resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))
print(bounded_text(lambda: str(resource.getrlimit(resource.RLIMIT_AS)), seconds=60.0))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"({300 << 20}, {300 << 20})\n", "")


def test_its_text() -> None:
    assert bounded_text(lambda: "wörld 😀" * 20_000, seconds=60.0) == "wörld 😀" * 20_000
