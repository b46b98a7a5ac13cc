"""The only place where a test is skipped: what can be installed is skipped by hand and fails in CI."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

SETUP = "run tests/setup.sh"


def missing(what: str, install: str = SETUP) -> NoReturn:
    """Skip the test, or fail it with CI=true, where everything that can be installed must be there.

    Args:
        what: what is missing.
        install: what brings it.
    """
    message = f"{what}: {install}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def need(found: object, what: str, install: str = SETUP) -> None:
    """Call `missing` unless `found` is true."""
    if not found:
        missing(what, install)


def need_program(*names: str) -> str:
    """The path of the first of these programs; without any of them the test is skipped, in CI it fails."""
    path = next((found for name in names if (found := shutil.which(name))), None)
    return path or missing(f"no {names[0]}")


def only_where(holds: object, otherwise: str) -> None:
    """Skip, in CI, too, on a machine where the test means nothing, whatever is installed.

    Args:
        holds: whether the test means something on this machine.
        otherwise: why it does not.
    """
    if not holds:
        pytest.skip(otherwise)
