"""A real sshd on the loopback interface, with keys, configuration and home folder in a folder of its own."""

from __future__ import annotations

import getpass
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from requirements import need, need_program

HOST = "board"  # its name in the configuration of ssh
RELAYED = "relayed"  # the same by way of `Relay`


class Relay:
    """Passes connections on to a port and counts what goes there.

    Attributes:
        most_bytes: after so many nothing more goes there, and the connection is closed,
        when: once this holds.
        sent_bytes: of the last connection.
    """

    def __init__(self, to: int) -> None:
        self._to, self._server = to, socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.most_bytes: int | None = None
        self.when: Callable[[], bool] = lambda: True
        self.sent_bytes = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._server.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                with client, socket.create_connection(("127.0.0.1", self._to)) as server, suppress(OSError):
                    self._pass_on(client, server)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        self.sent_bytes = 0
        while self.most_bytes is None or self.sent_bytes < self.most_bytes:
            for ready in select.select([client, server], [], [])[0]:
                if not (data := ready.recv(4096)):
                    return
                (server if ready is client else client).sendall(data)
                self.sent_bytes += len(data) if ready is client else 0
        while not self.when():
            time.sleep(0.02)


class Sshd:
    """A running one.

    Attributes:
        home: of the user who logs in.
        bin: a folder for PATH, whose `ssh` knows HOST and RELAYED.
        relay: between RELAYED and the daemon.
    """

    def __init__(self, folder: Path, relay: Relay) -> None:
        self.home, self.bin, self.relay = folder / "home", folder / "bin", relay


@contextmanager
def running_sshd(folder: Path, python: Callable[[Path], str] | None = None) -> Iterator[Sshd]:
    """Start one in a folder, for the user who runs the tests.

    python3 there is the one that runs them, or what the shell command is that `python` gives for the home folder.
    """
    program = Path("/usr/sbin/sshd")
    need(program.is_file(), "no sshd")
    need(os.geteuid() != 0 or Path("/run/sshd").is_dir(), "no folder /run/sshd, which sshd needs where root starts it")
    ssh = need_program("ssh")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    relay = Relay(port)
    made = Sshd(folder, relay)
    for path in (made.home, made.bin, folder / "python"):
        path.mkdir()
    # A link to the interpreter would not know its packages.
    _script(folder / "python/python3", f"exec {sys.executable if python is None else python(made.home)}")
    for key in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    public = " ".join((folder / "host_key.pub").read_text("utf-8").split()[:2])
    (folder / "known_hosts").write_text("".join(f"[127.0.0.1]:{p} {public}\n" for p in (port, relay.port)))
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/user_key.pub\n"
        "StrictModes no\nPidFile none\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f'PermitRootLogin prohibit-password\nSetEnv "HOME={made.home}" "PATH={folder}/python:/usr/bin:/bin"\n'
    )
    (folder / "ssh_config").write_text(
        "".join(f"Host {name}\n  Port {p}\n" for name, p in ((HOST, port), (RELAYED, relay.port)))
        + f"Host *\n  HostName 127.0.0.1\n  User {getpass.getuser()}\n  IdentityFile {folder}/user_key\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n  BatchMode yes\n"
    )
    _script(made.bin / "ssh", f"exec {ssh} -F {folder}/ssh_config")
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen([program, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        while True:
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            assert daemon.poll() is None, (folder / "log").read_text("utf-8")
            time.sleep(0.02)
        yield made
    finally:
        relay.close()
        daemon.terminate()
        daemon.wait()


def _script(path: Path, command: str) -> None:
    """A program of that name which is another one, with options."""
    path.write_text(f'#!/bin/sh\n{command} "$@"\n')
    path.chmod(0o755)
