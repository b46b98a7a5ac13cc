"""hetero_sd: ONNX LLMs on Cortex-A and Mali, with speculative decoding decided by a cost model.

In Python a bundle is used so::

    session = hetero_sd.load("bundle")
    for piece in session.chat([{"role": "user", "content": "Why is the sky blue?"}], max_new_tokens=64):
        print(piece.text, end="", flush=True)

Where only a bundle is, as on a device, its folder ``python`` is the path to import from.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Unpack

    from hetero_sd.runtime.load import Settings
    from hetero_sd.runtime.session import Session


def load(folder: str | Path, **settings: Unpack[Settings]) -> Session:
    """Load the bundle in ``folder``; its models stay in memory as long as the session.

    Args:
        folder: the bundle.
        settings: see :class:`hetero_sd.runtime.load.Settings`.

    Raises:
        targets.errors.UserError: the bundle is damaged, for another machine, or has not what a setting needs.
    """
    from hetero_sd.runtime.load import load_folder

    return load_folder(Path(folder), settings)
