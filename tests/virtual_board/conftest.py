"""The fixture ``virtual_board``: AArch64 Python on this machine, in an emulator. build.sh says what it is made of."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
from requirements import missing

from hetero_sd.compile.vendor import vendor_wheels
from targets.errors import UserError

_BUILD = Path(__file__).with_name("build.sh")
_SEE = "see tests/virtual_board/build.sh"
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

# Runs in a mount namespace of its own, so no mount outlives it or is seen outside. The root is read-only to the
# board's programs; /tmp is empty and vanishes. Arguments: root, then triples (host folder, board folder, ro|rw),
# then --, then the program.
_ENTER = """
set -eu
root="$1"; shift
mount --make-rprivate /
mount --bind "$root" "$root"
for system in proc sys dev; do mount --rbind "/$system" "$root/$system"; done
mount -t tmpfs -o mode=1777 none "$root/tmp"
while [ "$1" != -- ]; do
  mkdir -p "$root$2"
  mount --bind "$1" "$root$2"
  if [ "$3" = ro ]; then mount -o remount,bind,ro "$root$2"; fi
  shift 3
done
shift
mount -o remount,bind,ro "$root"
exec unshare --root="$root" --wd="$WORKING" /qemu-aarch64-static "$@"
"""


@dataclass(frozen=True)
class VirtualBoard:
    """An AArch64 Debian without timing: what it computes counts, how fast says nothing.

    Attributes:
        root: the board's file system.
        site: packages as a bundle carries them, mounted at /site and on PYTHONPATH.
        python: version of /usr/bin/python3, such as ``3.11``.
    """

    root: Path
    site: Path
    python: str

    def run(
        self,
        argv: Sequence[str],
        mounts: Mapping[Path, tuple[str, bool]] | None = None,
        env: Mapping[str, str] | None = None,
        cpu: str = "cortex-a76",
        timeout_s: float = 600,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the board and return what it printed.

        Args:
            argv: absolute path of the program on the board, and its arguments.
            mounts: folder here -> (folder on the board, read-only).
            env: added to PYTHONPATH=/site and TVM_USE_RUNTIME_LIB=1; nothing else of the caller's reaches the board.
            cpu: the emulated core; QEMU 7.2 has cortex-a53, cortex-a72 and cortex-a76, but not cortex-a55, which
                has the instructions of cortex-a76.
            timeout_s: after this many seconds the program is killed.
        """
        environment = {**self._environment(cpu), "PYTHONPATH": "/site", "WORKING": "/", **(env or {})}
        command = self._command(argv, {self.site: ("/site", True), **(mounts or {})})
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)

    def shell_python(self, home: Path) -> str:
        """A shell command that is the board's Python, in the folder where it is called, with a home folder and no more.

        It is the caller's, who gives it arguments; packages are those of a bundle.
        """
        variables = [
            f"{name}={value}" for name, value in {**self._environment("cortex-a76"), "HOME": str(home)}.items()
        ]
        command = self._command(["/usr/bin/python3"], {home: (str(home), False)})
        return shlex.join(["env", "-i", *variables]) + ' "WORKING=$PWD" ' + shlex.join(command)

    @staticmethod
    def _environment(cpu: str) -> dict[str, str]:
        fixed = {"PATH": _PATH, "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
        return {**fixed, "TVM_USE_RUNTIME_LIB": "1", "QEMU_CPU": cpu}

    def _command(self, argv: Sequence[str], folders: Mapping[Path, tuple[str, bool]]) -> list[str]:
        """The command that enters the board; the variable WORKING is the folder there."""
        triples: list[str] = []
        for here, (there, read_only) in folders.items():
            assert PurePosixPath(there).is_absolute()
            assert ".." not in PurePosixPath(there).parts
            triples += [str(here.resolve()), there, "ro" if read_only else "rw"]
        namespaces = ["--mount", "--pid", "--fork", "--kill-child"]
        if os.geteuid() != 0:
            namespaces.append("--map-root-user")
        return ["unshare", *namespaces, "sh", "-c", _ENTER, "sh", str(self.root), *triples, "--", *argv]


@pytest.fixture(scope="session")
def virtual_board() -> VirtualBoard:
    """The board, built on first use (about 100 MB to fetch). Skips where it cannot be had; with CI=true that fails."""
    try:
        return _build()
    except _CannotBuildError as error:
        missing(f"no virtual board: {error}", _SEE)


@pytest.fixture(scope="session")
def opencl_board() -> VirtualBoard:
    """The board with an OpenCL driver on its CPU; building it needs root, for binfmt. Skips like `virtual_board`."""
    try:
        return _build("--opencl")
    except _CannotBuildError as error:
        missing(f"no virtual board with OpenCL: {error}", f"{_SEE} --opencl")


class _CannotBuildError(Exception):
    """Why there is no board, in one line."""


def _build(*options: str) -> VirtualBoard:
    cache = Path(os.environ.get("HSD_VIRTUAL_BOARD") or Path.home() / ".cache" / "hetero_sd" / "virtual_board")
    environment = {**os.environ, "HSD_VIRTUAL_BOARD": str(cache)}
    done = subprocess.run(["bash", str(_BUILD), *options], env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise _CannotBuildError((done.stderr.strip() or "build.sh failed").splitlines()[-1])
    root = cache.resolve() / "root"
    python = (root / "usr/bin/python3").resolve().name.removeprefix("python")
    # The name changes with what vendor_wheels would make, so an older folder is not taken for a new one.
    recipe = hashlib.sha256(Path(vendor_wheels.__code__.co_filename).read_bytes()).hexdigest()[:12]
    site = cache.resolve() / f"site-{python}-{recipe}"
    try:
        if not site.exists():
            vendor_wheels(site, python)
    except UserError as error:
        if not site.exists():  # else another test session was quicker
            raise _CannotBuildError(str(error)) from None
    board = VirtualBoard(root, site, python)
    probe = board.run(["/bin/echo", "alive"])
    if probe.stdout != "alive\n":
        raise _CannotBuildError(f"the emulator did not start: {probe.stderr.strip() or probe.returncode}")
    return board
