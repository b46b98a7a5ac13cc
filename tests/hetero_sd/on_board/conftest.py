from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from sshd import Sshd, running_sshd


@pytest.fixture(scope="package")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A board, which is this machine."""
    with running_sshd(tmp_path_factory.mktemp("sshd")) as made:
        yield made


@pytest.fixture
def board(daemon: Sshd, monkeypatch: pytest.MonkeyPatch) -> Sshd:
    """The same, which `ssh` reaches."""
    daemon.relay.most_bytes = None
    monkeypatch.setenv("PATH", f"{daemon.bin}{os.pathsep}{os.environ['PATH']}")
    return daemon
