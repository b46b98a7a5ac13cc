"""An early exit in the target's KV cache: what the target has read it has read, too."""

from __future__ import annotations

from collections.abc import Sequence

from hetero_sd.runtime.decode.drafters import Offer
from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.trace import Stopwatch


class EarlyExitDrafter(ModelDrafter):
    """Drafts as a draft model does, from the target's rows of the text: all but that of its last token."""

    def offers(self, tokens: Sequence[int], watch: Stopwatch) -> Sequence[Offer]:
        """Offer drafts, with nothing to read before; see :class:`Drafter`."""
        self._length = len(tokens) - 1
        return super().offers(tokens, watch)
