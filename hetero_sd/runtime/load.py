"""From a bundle to a session: the tokenizer, the models, and how the draft length is chosen."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from costmodel.schema.plan import OVERLAPPED
from costmodel.speculative import MOST_GAMMA
from hetero_sd.runtime.decode.choose_policy import (
    AUTO,
    DRAFTERS,
    STOP_DRAFTS,
    choose_policy,
    fixed_gamma,
    plans_overlap,
)
from hetero_sd.runtime.decode.drafters import MODEL
from hetero_sd.runtime.decode.generate import Request
from hetero_sd.runtime.decode.live_gamma import LiveGamma
from hetero_sd.runtime.decode.live_mode import LiveMode
from hetero_sd.runtime.decode.overlapped.overlapping import overlapping
from hetero_sd.runtime.decode.overlapped.target_side import Overlap
from hetero_sd.runtime.decode.start_times import time_steps
from hetero_sd.runtime.file_hashes import hash_file
from hetero_sd.runtime.internal_error import step
from hetero_sd.runtime.manifest import MANIFEST, Bundle
from hetero_sd.runtime.model.kept_prefix import kept_prefixes
from hetero_sd.runtime.model.protocol import Models, NotFiniteError
from hetero_sd.runtime.model.shared_rows import with_shared_rows
from hetero_sd.runtime.model.side_by_side import why_not_apart
from hetero_sd.runtime.model.threads import choose_threads, prepare_environment, stay_on_cluster, usable_cpus
from hetero_sd.runtime.model.within_vocabulary import slots_of, within_vocabulary
from hetero_sd.runtime.session import Session
from hetero_sd.runtime.text import tokenizer as text_files
from hetero_sd.runtime.text.tokenizer import MORE_TEMPLATES, Text
from targets.errors import UserError
from targets.opencl.runtime import machine
from targets.read_board import board_from_json

TARGET_ONLY, SPECULATIVE = "target-only", "speculative"
OTHER_NAMES = {"off": TARGET_ONLY, "sequential": SPECULATIVE}
MODES = (AUTO, "off", "sequential", OVERLAPPED, TARGET_ONLY, SPECULATIVE)
Loader = Callable[[Bundle, bool], Models]


class Settings(TypedDict, total=False):
    """How a bundle is loaded; what is left out has the value in brackets.

    Attributes:
        mode: "auto" starts from the plan and drafts while that is faster than not to, "off" (or "target-only"),
            "sequential" (or "speculative"), or "overlapped": the drafter goes on while the target verifies ("auto").
        gamma: drafted tokens in every round; None decides while it runs, where the mode is not overlapped (None).
        least: drafts that the target waits for in mode overlapped; None is the plan's, or 0 (None).
        drafter: "model", "ngram" or "model+ngram"; None is the draft model, where the bundle has one (None).
        stop_drafts: "auto" ends a draft of the draft model by its confidence, where the draft length follows the run
            and that gains; "off" never does ("auto").
        threads: of the CPU; None takes the plan's (None).
        huge_pages: the weights are copied into huge pages (False).
        template: texts are put into the chat template, where there is one (True).
        template_name: which one, where there are several (None).
        system: the system message of conversations that have none (None).
    """

    mode: str
    gamma: int | None
    least: int | None
    drafter: str | None
    stop_drafts: str
    threads: int | None
    huge_pages: bool
    template: bool
    template_name: str | None
    system: str | None


def load_folder(folder: Path, settings: Settings) -> Session:
    """See :func:`hetero_sd.load`."""
    if unknown := sorted(settings.keys() - Settings.__annotations__.keys()):
        raise TypeError(f"unknown setting {unknown[0]!r}: there are {', '.join(Settings.__annotations__)}")
    for name, known in (("mode", MODES), ("drafter", (None, *DRAFTERS)), ("stop_drafts", STOP_DRAFTS)):
        if settings.get(name, known[0]) not in known:
            raise UserError(f"{name} {settings[name]!r}: give one of {', '.join(map(str, known))}")  # type: ignore[literal-required]
    gamma = settings.get("gamma")
    if gamma is not None and not 1 <= gamma <= MOST_GAMMA:
        raise UserError(f"gamma {gamma}: must be 1 to {MOST_GAMMA}")
    if settings.get("least") is not None and settings.get("mode") != OVERLAPPED:
        raise UserError(f"least belongs to mode {OVERLAPPED}: leave it out, or give that")
    bundle = Bundle(folder)
    check_machine(bundle)
    return load_session(bundle, load_text(bundle), settings)


def load_session(bundle: Bundle, text: Text | None, settings: Settings, load: Loader | None = None) -> Session:
    """Load the models of an opened bundle.

    Args:
        bundle: the bundle.
        text: its tokenizer (`load_text`).
        settings: as the user gave them.
        load: loads the models; None is :func:`hetero_sd.runtime.model.model.load_models`.

    Raises:
        UserError: a file is damaged, or a setting needs what the bundle has not.
    """
    _choose_template(text, settings)
    prepare_environment(choose_threads(settings.get("threads"), bundle.plan))  # before TVM is imported
    usable = usable_cpus()  # before models are loaded, which may keep this thread on a cluster
    with step("loading the models"):
        loaded = (load or load_models)(bundle, settings.get("huge_pages", False))
    for model in (loaded.target, loaded.draft) if (threads := settings.get("threads")) is not None else ():
        if (read_with := getattr(model, "read_with", None)) is not None:
            read_with(threads)  # as was asked for, prompts too
    vocab, target_vocab = bundle.tokenizer.vocab if bundle.tokenizer else None, loaded.target.vocab
    models = within_vocabulary(loaded, vocab)
    mode, gamma, chosen = settings.get("mode", AUTO), settings.get("gamma"), settings.get("drafter")
    mode, drafter = OTHER_NAMES.get(mode, mode), chosen or MODEL
    with_model = MODEL in drafter.split("+")
    if models.draft is None and with_model and chosen is not None:
        raise UserError("this bundle has no draft model: give --drafter ngram, which needs none")
    if models.draft is None and mode == OVERLAPPED:
        raise UserError(f"this bundle has no draft model: leave out --mode {OVERLAPPED}")
    if models.draft is None and with_model and (mode == SPECULATIVE or gamma is not None):
        raise UserError(
            "this bundle has no draft model: leave out --mode speculative and --gamma, or give --drafter ngram"
        )
    overlapped = models.draft is not None and plans_overlap(mode, bundle.plan, drafter)
    if overlapped and mode == AUTO and bundle.plan and (why := why_not_apart(loaded, bundle.plan, usable)) is not None:
        note(f"the plan drafts while the target verifies; here the models take turns: {why}")
        overlapped = False
    may_overlap = mode == AUTO and gamma is None and drafter == MODEL and models.draft is not None
    may_overlap = may_overlap and bundle.plan is not None and why_not_apart(loaded, bundle.plan, usable) is None
    drafts = (models.draft is not None or not with_model) and (may_overlap or not overlapped)
    stops = settings.get("stop_drafts", AUTO)
    policy = choose_policy(mode, gamma, bundle.plan, drafter, stop_drafts=stops) if drafts else None
    if isinstance(policy, LiveGamma):
        try:
            time_steps(models if with_model else Models(models.target), policy)
        except NotFiniteError as error:
            note(f"{error}; it is left out")
            policy = None
    resources, live = ExitStack(), None
    if may_overlap and isinstance(policy, LiveGamma) and bundle.plan is not None and bundle.plan.overlap is not None:
        live, overlapped = LiveMode(policy, bundle.plan.overlap), True
    return Session(
        kept_prefixes(models if overlapped else with_shared_rows(models, loaded)),
        text,
        Request(eos_ids=_eos_ids(bundle, text)),
        policy=policy,
        template=settings.get("template", True),
        drafter=drafter,
        system=settings.get("system"),
        repeatable=None if policy is None else choose_policy(mode, gamma, bundle.plan, drafter, repeatable=True),
        plan=bundle.plan,
        slots=slots_of(loaded.target, vocab),
        draft_slots=None if loaded.draft is None else slots_of(loaded.draft, min(vocab or target_vocab, target_vocab)),
        bundle_hash=hash_file(bundle.folder / MANIFEST),
        overlap=_overlap(bundle, loaded, usable, settings, resources, live) if overlapped else None,
        resources=resources,
    )


def _overlap(
    bundle: Bundle,
    models: Models,
    usable: Sequence[int],
    settings: Settings,
    resources: ExitStack,
    live: LiveMode | None,
) -> Overlap:
    """Start the drafter's thread beside the target's, the models on CPUs of their own, until `resources` close."""
    planned = None if bundle.plan is None else bundle.plan.overlap
    gamma = settings.get("gamma") or (planned.gamma if planned is not None else fixed_gamma(None, bundle.plan))
    least = settings.get("least")
    if least is None:
        least = min(gamma, planned.least) if planned is not None else 0
    if least > gamma:
        raise UserError(f"--least {least}: {gamma} are drafted in a round: give 0 to {gamma}, or --gamma")
    overlap = resources.enter_context(overlapping(models, bundle.plan, usable, gamma, least, note))
    return replace(overlap, live=live)


def note(line: str) -> None:
    """Say something that the user should know, and go on."""
    print(f"run.py: note: {line}", file=sys.stderr)


def check_machine(bundle: Bundle, instead: str = "") -> None:
    """Refuse a bundle that was compiled for another instruction set, saying what to do `instead`."""
    table = bundle.manifest.board
    if table is not None and (board := board_from_json(table, MANIFEST)).isa != machine():
        raise UserError(f"{bundle.folder} is for {board.isa} (board {board.name}) and cannot run here{instead}")


def load_models(bundle: Bundle, huge_pages: bool) -> Models:
    """Load the models, and with them TVM."""
    from hetero_sd.runtime.model.model import load_models
    from hetero_sd.runtime.model.thread_pool import why_tvms_pool

    stay_on_cluster(bundle.plan, int(os.environ["TVM_NUM_THREADS"]), why_tvms_pool(bundle) is not None)
    return load_models(bundle, huge_pages)


def load_text(bundle: Bundle) -> Text | None:
    """Return the tokenizer in the bundle's folder ``tokenizer``, or None where it carries none."""
    if f"{text_files.FOLDER}/tokenizer.json" not in bundle:
        return None
    start = f"{text_files.FOLDER}/"
    more = [name.removeprefix(start) for name in bundle.manifest.files if name.startswith(start + MORE_TEMPLATES)]
    return Text(lambda name: bundle.path(start + name) if start + name in bundle else None, more)


def _choose_template(text: Text | None, settings: Settings) -> None:
    """Check what needs a chat template before the models are loaded."""
    name, system = settings.get("template_name"), settings.get("system")
    if name is None and system is None:
        return
    if text is None or not text.has_template or not settings.get("template", True):
        what = "--chat-template" if system is None else "--system"
        raise UserError(f"{what} needs a chat template, and there is none: leave it out")
    text.use_template(name)


def _eos_ids(bundle: Bundle, text: Text | None) -> frozenset[int]:
    """Return the end-of-text ids of the manifest (tokenizer.eos_ids), else those of the tokenizer's files."""
    if bundle.tokenizer is None:
        return text.eos_ids if text else frozenset()
    return frozenset(bundle.tokenizer.eos_ids)
