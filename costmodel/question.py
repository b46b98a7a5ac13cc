"""A question about a pair on a board, the ways to run it, and the answer, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from costmodel.decoder import DecoderSpec
from costmodel.engine import OURS
from costmodel.factors import Factors
from costmodel.memory import Memory
from costmodel.place import Place
from costmodel.placement import Placement
from costmodel.processor import CpuSlice
from costmodel.schema.plan import TARGET_ONLY
from costmodel.speculative import MOST_GAMMA, Acceptance, Round, check_acceptance
from costmodel.vocabulary import one_vocabulary
from targets.device import Board
from targets.errors import UserError

EXIT_FOLLOWS = (
    "an early exit runs where the target's layers do, whose weights and caches it uses: place the target alone"
)
NGRAM = "n-gram"  # besides the modes that a plan can have


def factors_of(board: Board) -> Factors:
    """The factors that a calibration wrote into the board file; the assumed ones where it has none.

    Raises:
        UserError: the file names a factor that is not known here.
    """
    return Factors.from_json(dict(board.factors), f"board {board.name}")


@dataclass(frozen=True)
class Question:
    """What to decide.

    Attributes:
        board: the hardware.
        targets: the target in every weight format at hand.
        drafts: the drafter likewise; empty without one.
        alpha: acceptance of drafted tokens, constant or by position.
        context: tokens in the KV caches when a step is priced.
        cache_rows: tokens that the caches have room for; None is `context`.
        factors: what kernels reach of the board's numbers.
        ngram_alpha: acceptance of n-gram drafting; None leaves that mode out.
        ngram_match: share of rounds in which the text has something to draft from; the others are plain steps.
        sampled: tokens are sampled; greedy choice is part of the models' steps.
        most_gamma: the longest draft.
        overlapped: consider drafting while the target verifies.
        one_process: only what the runtime can run: the target alone, sequential rounds where everything on the CPU has
            the same threads of one cluster, because both models live in one process with one pool of threads, and
            overlapped rounds, where each model has a pool of its own.
        cores: the slice of a cluster, where it is given, for `one_process`.
        gamma: the draft length, where it is given; None decides it.
        target_place, draft_place: the rule of each model, where it is given; None decides it.
        engine: whose kernels are assumed, a name of ENGINES of engine.py.
        kernels: the kind of that engine's, a name of KERNELS there; None is what the core allows.
        widths: the target's entry points, where they are compiled already: no other step verifies; empty is any.
        slots: sequences that the KV caches of each model hold.
        one_tokenizer: the models are known to share it, so the rows of their tables may be padded differently.
    """

    board: Board
    targets: tuple[DecoderSpec, ...]
    drafts: tuple[DecoderSpec, ...] = ()
    alpha: Acceptance = 0.8
    context: int = 512
    factors: Factors = field(default_factory=Factors)
    ngram_alpha: Acceptance | None = None
    ngram_match: float = 1.0
    sampled: bool = False
    most_gamma: int = MOST_GAMMA
    overlapped: bool = True
    cache_rows: int | None = None
    one_process: bool = False
    cores: CpuSlice | None = None
    gamma: int | None = None
    target_place: Place | None = None
    draft_place: Place | None = None
    one_tokenizer: bool = False
    engine: str = OURS
    kernels: str | None = None
    widths: tuple[int, ...] = ()
    slots: int = 1

    @property
    def gammas(self) -> Sequence[int]:
        """Draft lengths to look at, besides 0."""
        if self.gamma is None:
            every = range(1, self.most_gamma + 1)
            return [gamma for gamma in every if gamma + 1 in self.widths] if self.widths else every
        return (self.gamma,) if self.gamma else ()

    def drafts_of(self, target: DecoderSpec) -> Sequence[DecoderSpec]:
        """The drafters that a target can have: first layers draft for their own decoder alone."""
        return [draft for draft in self.drafts if draft.whole is None or draft.whole == target]

    def check(self) -> None:
        """Refuse questions without an answer.

        Raises:
            UserError: acceptance outside [0, 1], different vocabularies, a context or draft length out of range; a
                place of its own for a drafter that uses the target's weights.
        """
        if self.draft_place is not None and any(draft.whole is not None for draft in self.drafts):
            raise UserError(f"placement draft={self.draft_place.text}: {EXIT_FOLLOWS}")
        check_acceptance(self.alpha)
        if self.ngram_alpha is not None:
            check_acceptance(self.ngram_alpha)
            if not 0 <= self.ngram_match <= 1:
                raise UserError(f"n-gram match rate {self.ngram_match:g}: it must lie between 0 and 1")
        if self.context < 1:
            raise UserError(f"a context of {self.context} tokens cannot be priced; it must be at least 1")
        for gamma in (self.most_gamma, self.gamma or 0):
            if not 0 <= gamma <= MOST_GAMMA:
                raise UserError(f"gamma up to {gamma}: it must lie between 0 and {MOST_GAMMA}")
        for draft in () if self.one_tokenizer else self.drafts:
            if not one_vocabulary(self.targets[0].vocab, draft.vocab):
                raise UserError(
                    f"the vocabularies differ: target {self.targets[0].name} has {self.targets[0].vocab} token ids, "
                    f"drafter {draft.name} has {draft.vocab}; a drafter needs the target's tokenizer"
                )


@dataclass(frozen=True)
class Variant:
    """One way to run the pair, priced.

    Attributes:
        mode: target-only, sequential, overlapped or n-gram.
        target, target_placement: the target's format and where it runs.
        draft, draft_placement: the drafter's, or None.
        round: expected tokens and seconds of a round; for target-only one token.
        memory: what it keeps in memory.
        against_same: speed over the target alone under this variant's placement of it.
        against_best: speed over the fastest target alone on a single processor.
        reason: why it was chosen, or why not.
        least: drafts that the target waits for where the drafter goes on meanwhile; None elsewhere.
    """

    mode: str
    target: DecoderSpec
    target_placement: Placement
    draft: DecoderSpec | None
    draft_placement: Placement | None
    round: Round
    memory: Memory
    against_same: float = 1.0
    against_best: float = 1.0
    reason: str = ""
    least: int | None = None

    @property
    def gamma(self) -> int:
        """Drafted tokens a round."""
        return self.round.gamma

    @property
    def tokens_per_s(self) -> float:
        """Predicted speed."""
        return self.round.tokens_per_s


@dataclass(frozen=True)
class Decision:
    """The answer.

    Attributes:
        best: the chosen variant.
        leading: the best of each kind of variant that fits, fastest first, `best` at the head, each with its reason.
        not_fitting: kinds that would need more memory than there is, with the number in their reason.
        baseline: the fastest target alone on a single processor.
        tied: the fastest variant, where a surer one that ties with it is the best (costmodel/ties.py).
    """

    best: Variant
    leading: tuple[Variant, ...]
    not_fitting: tuple[Variant, ...]
    baseline: Variant
    tied: Variant | None = None


def rank(variant: Variant) -> tuple[float, int, int]:
    """Fastest first; of equals the shorter draft, then fewer borders."""
    segments = len(variant.target_placement.segments)
    segments += len(variant.draft_placement.segments) if variant.draft_placement is not None else 0
    return (-variant.tokens_per_s, variant.gamma, segments)


def fastest(variants: Sequence[Variant]) -> Variant:
    """The first by `rank`."""
    return min(variants, key=rank)


def why_not(variant: Variant, best: Variant) -> str:
    """What decided against a variant: its time of a token beside the chosen one's, and the term that costs it most."""
    gap = 1 / variant.tokens_per_s - 1 / best.tokens_per_s
    if gap <= 1e-12:
        return "as fast as the chosen one"
    here, there = _ms(1 / variant.tokens_per_s), _ms(1 / best.tokens_per_s)
    whole = f"{here} ms a token, {100 * gap * best.tokens_per_s:.0f} % more than the {there} ms of the chosen one"
    if variant.mode == best.mode == TARGET_ONLY:
        return whole
    ours, theirs = terms(variant), terms(best)
    name = max(ours, key=lambda term: ours[term] - theirs[term])
    r, each = variant.round, f"{_ms(ours[name])} ms for each of {variant.round.tokens:.2f} tokens"
    most = "" if variant.least in (None, r.gamma) else "up to "
    drafting = "drafting" if variant.least is None else "waiting for"
    source = {
        "verify": f"verifying {most}{r.gamma + 1} tokens in {_ms(r.verify_s)} ms: {each}",
        "draft": f"{drafting} {r.gamma} token{'s' if r.gamma > 1 else ''} in {_ms(r.draft_s)} ms: {each}",
        "other": f"the loop around the steps: {_ms(ours[name])} ms a token",
    }[name]
    if variant.mode == TARGET_ONLY and name == "verify":
        source = f"the target, whose step of {_ms(r.verify_s)} ms gives one token"
    return f"{whole}, mostly from {source}, where the chosen one takes {_ms(theirs[name])} ms"


def terms(variant: Variant) -> dict[str, float]:
    """Seconds a token by term."""
    r = variant.round
    return {"verify": r.verify_s / r.tokens, "draft": r.draft_s / r.tokens, "other": r.other_s / r.tokens}


def _ms(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"


def gb(size: int) -> str:
    """A size for people."""
    return f"{size / 1e9:.2f} GB"
