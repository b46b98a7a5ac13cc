"""Is the text of a bundle that speculates the target's own? Every way to draft, beside the target alone.

Greedy: the tokens must be the same, bit for bit, whatever is drafted. Where they are not, the report says where, and by
which margin the target prefers its own token there: a small one points to a row that depends on how many are computed
with it, a large one to a cache that is wrong. N-grams are looked for in the target's own answers, of which some tokens
are changed, so that drafts are accepted and taken back.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hetero_sd.run_here import sequences
from hetero_sd.runtime.decode.choose_policy import DRAFTERS, NGRAM, choose_policy
from hetero_sd.runtime.decode.drafters.ngram_pool import NgramPool
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.overlapped.overlapping import overlapping
from hetero_sd.runtime.decode.overlapped.target_side import Overlap
from hetero_sd.runtime.decode.policy import FixedGamma, GammaPolicy
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.decode.way import Way
from hetero_sd.runtime.load import check_machine
from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.model.protocol import LOGITS, Model, Models
from hetero_sd.runtime.model.shared_rows import with_shared_rows
from hetero_sd.runtime.model.threads import choose_threads, usable_cpus
from hetero_sd.runtime.model.within_vocabulary import within_vocabulary
from targets.errors import UserError

DEFAULT_NEW_TOKENS, _MOST_NEW_TOKENS = 64, 1 << 20
_CHANGED = 7  # of so many tokens in a row that n-grams are looked for in, one


@dataclass(frozen=True)
class AuditRequest:
    """What is to be run.

    Attributes:
        bundle: its folder.
        prompts: texts, one a line, or JSON lines; None takes random tokens.
        max_new_tokens: of each answer.
    """

    bundle: Path
    prompts: Path | None = None
    max_new_tokens: int = DEFAULT_NEW_TOKENS


@dataclass(frozen=True)
class Difference:
    """Where an answer first differs.

    Attributes:
        prompt: counted from 0.
        token: of the answer, counted from 0.
        alone, speculative: the tokens; None where the answer has ended.
        margin: logit of the target's own token over that of the other one, in a step of its own; None where one of them
            has ended.
    """

    prompt: int
    token: int
    alone: int | None
    speculative: int | None
    margin: float | None


@dataclass(frozen=True)
class AuditedWay:
    """One way to draft, over all prompts.

    Attributes:
        drafter: of choose_policy.DRAFTERS.
        gamma: drafted tokens a round; None is decided while it runs.
        least: drafts that the target waits for while the drafter goes on beside it; None where they take turns.
        prompts, identical: answers, and those that are the same.
        tokens, drafted, accepted: in all answers.
        differences: the first of each answer that differs.
    """

    drafter: str
    gamma: int | None
    least: int | None
    prompts: int
    identical: int
    tokens: int
    drafted: int
    accepted: int
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class AuditResult:
    """All ways; ``notes`` say what could not be tried as it should."""

    ways: tuple[AuditedWay, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every answer is the target's own."""
        return all(way.identical == way.prompts for way in self.ways)


def audit_bundle(request: AuditRequest) -> AuditResult:
    """Run a bundle both ways.

    Raises:
        UserError: a file is missing or unusable, the bundle is for another machine, or a prompt does not fit.
    """
    if not 2 <= request.max_new_tokens <= _MOST_NEW_TOKENS:
        raise UserError(f"--max-new-tokens {request.max_new_tokens}: must be 2 to {_MOST_NEW_TOKENS}")
    bundle = Bundle(request.bundle)
    check_machine(bundle, ": an audit runs its models, so do it there, where hetero_sd is installed, too")
    bundle.verify_all()
    os.environ.setdefault("TVM_NUM_THREADS", str(choose_threads(None, bundle.plan)))
    from hetero_sd.runtime.model.model import CompiledModel, load_models

    usable, loaded = usable_cpus(), load_models(bundle)
    models = within_vocabulary(loaded, bundle.tokenizer.vocab if bundle.tokenizer else None)
    prompts = list(sequences(bundle, models.target, request.prompts))
    if request.prompts is None:
        prompts = [ids[: max(1, models.target.context // 2)] for ids in prompts]
    for i, ids in enumerate(prompts):
        if not 1 <= len(ids) <= models.target.context:
            raise UserError(
                f"{request.prompts}: prompt {i + 1} has {len(ids)} tokens, the target's context is "
                f"{models.target.context}: give 1 to that many"
            )
    eos = frozenset(bundle.tokenizer.eos_ids) if bundle.tokenizer else frozenset()
    answers = Request(request.max_new_tokens, eos)
    widths = bundle.target.widths
    planned = 0 if bundle.plan is None else bundle.plan.gamma
    gammas = sorted({1, planned, max(widths) - 1} - {0})
    ways: list[tuple[str, int | None, GammaPolicy]] = []
    for drafter in DRAFTERS:
        if models.draft is None and drafter != NGRAM:
            continue
        ways += [(drafter, gamma, FixedGamma(gamma)) for gamma in gammas]
        live = choose_policy("auto", None, bundle.plan, drafter)
        ways += [] if live is None else [(drafter, None, live)]
    result = audit_models(with_shared_rows(models, loaded), prompts, answers, ways)
    if models.draft is None or not isinstance(loaded.draft, CompiledModel):
        return result
    loaded.draft.share_rows(None)
    notes: list[str] = []
    with overlapping(loaded, bundle.plan, usable, 1, 0, notes.append) as overlap:
        overlaps = [replace(overlap, gamma=gamma, least=least) for gamma in gammas for least in (0, gamma)]
        more = audit_overlapped(models, prompts, answers, overlaps)
    return AuditResult(result.ways + more.ways, tuple(notes))


def audit_models(
    models: Models, prompts: Sequence[list[int]], request: Request, ways: Sequence[tuple[str, int | None, GammaPolicy]]
) -> AuditResult:
    """Compare the answers of each way, (drafter, gamma, policy), with those of the target alone."""
    alone = [list(generate(models.target, ids, request, Trace())) for ids in prompts]
    made = [(Way(models, request, p, d, _pool(prompts, alone)), gamma) for d, gamma, p in ways]
    return AuditResult(tuple(_audit(way, prompts, alone, gamma) for way, gamma in made))


def audit_overlapped(
    models: Models, prompts: Sequence[list[int]], request: Request, overlaps: Sequence[Overlap]
) -> AuditResult:
    """Compare the answers where the drafter goes on beside the target with those of the target alone."""
    alone = [list(generate(models.target, ids, request, Trace())) for ids in prompts]
    made = [Way(models, request, overlap=overlap) for overlap in overlaps]
    return AuditResult(tuple(_audit(w, prompts, alone, o.gamma, o.least) for w, o in zip(made, overlaps, strict=True)))


def _pool(prompts: Sequence[list[int]], alone: Sequence[list[int]]) -> NgramPool:
    """What n-grams are looked for in."""
    pool = NgramPool()
    for ids, answer in zip(prompts, alone, strict=True):
        pool.begin()
        for i, token in enumerate([*ids, *answer]):
            pool.add(ids[0] if i % _CHANGED == _CHANGED - 1 else token)
    return pool


def _audit(
    way: Way,
    prompts: Sequence[list[int]],
    alone: Sequence[list[int]],
    gamma: int | None,
    least: int | None = None,
) -> AuditedWay:
    differences, traces = [], []
    for i, (ids, wanted) in enumerate(zip(prompts, alone, strict=True)):
        traces.append(Trace())
        found = list(way.stream(ids, traces[-1]))
        if found != wanted:
            differences.append(_difference(way.models.target, i, ids, wanted, found))
    rounds = [r for trace in traces for r in trace.rounds]
    return AuditedWay(
        drafter=way.drafter,
        gamma=gamma,
        least=least,
        prompts=len(prompts),
        identical=len(prompts) - len(differences),
        tokens=sum(len(trace.token_ids) for trace in traces),
        drafted=sum(r.drafted for r in rounds),
        accepted=sum(r.accepted for r in rounds),
        differences=tuple(differences),
    )


def _difference(target: Model, prompt: int, ids: list[int], wanted: list[int], found: list[int]) -> Difference:
    """Where two answers part, and how sure the target is there."""
    at = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), min(len(wanted), len(found)))
    own, other = (tokens[at] if at < len(tokens) else None for tokens in (wanted, found))
    margin = None
    if own is not None and other is not None:
        logits = target.submit([*ids, *wanted[:at]], 0, (LOGITS,), last=True).result()[LOGITS][0]
        margin = float(logits[own]) - float(logits[other])
    return Difference(prompt, at, own, other, margin)
