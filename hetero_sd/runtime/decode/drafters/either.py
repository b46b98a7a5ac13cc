"""Several drafters in one: their offers stand side by side, in their order."""

from __future__ import annotations

from collections.abc import Sequence

from hetero_sd.runtime.decode.drafters import Draft, Drafter, GoOn, Offer
from hetero_sd.runtime.decode.sampling import Rng
from hetero_sd.runtime.decode.trace import Stopwatch


class EitherDrafter(Drafter):
    """Drafts from the source that is chosen; all of them follow the text."""

    def __init__(self, *drafters: Drafter) -> None:
        """Prefer the first."""
        self._drafters = drafters
        self._by_source: dict[str, Drafter] = {}

    @property
    def lost(self) -> str | None:  # type: ignore[override]
        """Why the first that drafts no more does not; the others go on."""
        return next((drafter.lost for drafter in self._drafters if drafter.lost is not None), None)

    def offers(self, tokens: Sequence[int], watch: Stopwatch) -> Sequence[Offer]:
        """All offers; see :class:`Drafter`."""
        offers: list[Offer] = []
        for drafter in self._drafters:
            for offer in drafter.offers(tokens, watch):
                self._by_source[offer.source] = drafter
                offers.append(offer)
        return offers

    def read(self, tokens: Sequence[int], most: int, skip: int, watch: Stopwatch) -> int:
        """Let all read; see :class:`Drafter`."""
        return sum(drafter.read(tokens, most, skip, watch) for drafter in self._drafters)

    def propose(
        self, tokens: Sequence[int], source: str, gamma: int, watch: Stopwatch, rng: Rng, go_on: GoOn | None = None
    ) -> Draft:
        """Let the drafter that offered the source draft."""
        return self._by_source[source].propose(tokens, source, gamma, watch, rng, go_on)

    def keep(self, length: int) -> None:
        """Let all know."""
        for drafter in self._drafters:
            drafter.keep(length)
