"""The `hetero-sd` command and `python -m hetero_sd`: it looks for memory before it loads the libraries that need it."""

from __future__ import annotations

import sys

from targets.memory import is_short

_LEAST_BYTES = 256 << 20  # of address space: libraries that get none while they load end the process as they like


def main() -> int:
    """Run the command line of this process; its exit code is that of `hetero_sd.cli.main`, or 2 without memory."""
    if is_short(_LEAST_BYTES):
        least = f"the system allows this process less than the {_LEAST_BYTES >> 20} MiB that it begins with"
        print(f"hetero-sd: error: out of memory: {least}", file=sys.stderr)
        return 2
    from hetero_sd import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
