"""`python -m hetero_sd` is the `hetero-sd` command."""

from __future__ import annotations

import sys

from hetero_sd.cli import main

sys.exit(main())
