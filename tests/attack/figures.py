"""Runs the attacks that SECURITY.md counts, each at its full length, and prints the figures.

    python tests/attack/figures.py                        every kind: hours of CPU time
    python tests/attack/figures.py onnx bundles           some
    python tests/attack/figures.py kills --count 20       a tenth, to see that it works
    python tests/attack/figures.py onnx --first 500000    other seeds

Exit code 1 where an attack succeeded. `make deep` runs the same code at the lengths of test_attacks.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "data")]

from tests.attack import bundles, faults, first_runs, kills, onnx_files, readers, templates  # noqa: E402
from tests.attack.figure import Figures  # noqa: E402

KINDS: dict[str, tuple[Callable[[int, int, int], Figures], int]] = {
    "onnx": (onnx_files.attack, onnx_files.FULL),
    "bundles": (bundles.attack, bundles.FULL),
    "kills": (kills.attack, kills.FULL),
    "first-runs": (first_runs.attack, first_runs.FULL),
    "templates": (templates.attack, templates.FULL),
    "faults": (faults.attack, faults.FULL),
    "readers": (readers.attack, readers.FULL),
}


def main() -> int:
    """Attack, print, and return 1 where something must not have happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], help="all of them where none is named")
    parser.add_argument("--count", type=int, help="instead of the full length; of readers: seconds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    options = parser.parse_args()
    failed = False
    for kind in options.kinds or KINDS:
        attack, full = KINDS[kind]
        begin = time.monotonic()
        figures = attack(options.count or full, options.first, options.jobs)
        if not figures.counts.total():
            figures.failures.append("nothing was attacked: --first is past the last")
        print(f"{figures.text()}; {time.monotonic() - begin:.0f} s", flush=True)
        failed |= bool(figures.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
