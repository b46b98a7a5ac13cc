"""The numbers of a manifest held against each other, before anything is loaded.

The plan and the models state some of them twice, and everything a user may run with was written by one compilation.
What the manifest alone cannot tell is compared with the libraries, which keep their own facts (library_facts.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hetero_sd.runtime.decode.policy import MOST_GAMMA, read_predicted
from hetero_sd.runtime.manifest import MANIFEST, Bundle
from hetero_sd.runtime.model.model_facts import ModelFacts, read_model_facts
from targets.errors import UserError

_ROLES = ("target", "draft")
_MODES = ("target-only", "sequential")
_MOST_THREADS = 1024
_MOST_CPUS = 1 << 16


def check_models(bundle: Bundle) -> dict[str, ModelFacts]:
    """Return the facts of the models, by role, checked.

    Raises:
        UserError: a number is missing, makes no sense, or contradicts another one.
    """
    models = bundle.models
    if not models.get("target"):
        raise UserError(f"{MANIFEST}: models.target is missing: build the bundle again")
    return {role: read_model_facts(role, models[role]) for role in _ROLES if models.get(role)}


def check_plan(bundle: Bundle) -> None:
    """Check the plan and the tokenizer's facts, as far as they are stated, also against the models.

    Raises:
        UserError: the first number that makes no sense or contradicts another one.
    """
    plan, models = bundle.plan, {r: m for r, m in bundle.models.items() if isinstance(m, Mapping)}
    try:
        _check_choices(plan)
        _check_against_models(plan, models)
        _check_prediction(plan)
        _check_tokenizer(bundle.tokenizer, models.get("target", {}))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{MANIFEST}: {error}: build the bundle again") from None


def _check_choices(plan: Mapping[str, Any]) -> None:
    _whole(plan, "plan.threads", 1, _MOST_THREADS)
    gamma = _whole(plan, "plan.gamma", 0, MOST_GAMMA)
    mode = plan.get("mode")
    if mode is not None and mode not in _MODES:
        raise ValueError(f"plan.mode is {str(mode)[:40]!r}, none of {', '.join(_MODES)}")
    if gamma is not None and mode is not None and (gamma > 0) != (mode == "sequential"):
        raise ValueError(f"plan.gamma is {gamma}, but plan.mode is {mode!r}")
    widths = plan.get("target_widths")
    if gamma is not None and isinstance(widths, list) and gamma + 1 not in widths:
        raise ValueError(f"plan.gamma is {gamma}, but plan.target_widths has no {gamma + 1}")
    cpus = plan.get("cpu_ids")
    if cpus is not None and (not isinstance(cpus, list) or not all(_is_whole(c, 0, _MOST_CPUS) for c in cpus)):
        raise ValueError("plan.cpu_ids is not a list of CPUs")
    given = plan.get("given")
    if given is not None and (not isinstance(given, list) or not all(isinstance(g, str) for g in given)):
        raise ValueError("plan.given is not a list of names")


def _check_against_models(plan: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]]) -> None:
    """What the plan and a model both state must be the same."""
    places = plan.get("places") or {}
    if not isinstance(places, Mapping):
        raise ValueError("plan.places is not an object")
    for role, model in models.items():
        pairs = {
            "context": (plan.get("context"), model.get("context")),
            "prefill_width": (plan.get("prefill_width"), model.get("prefill_width")),
            f"{role}_widths": (plan.get(f"{role}_widths"), model.get("widths")),
            f"places.{role}": (places.get(role), model.get("place")),
        }
        for key, (ours, theirs) in pairs.items():
            if ours is not None and theirs is not None and (type(ours) is not type(theirs) or ours != theirs):
                raise ValueError(f"plan.{key} is {str(ours)[:60]}, models.{role} has {str(theirs)[:60]}")


def _check_prediction(plan: Mapping[str, Any]) -> None:
    prediction = plan.get("prediction")
    if prediction is None:
        return
    if not isinstance(prediction, Mapping):
        raise ValueError("plan.prediction is not an object")
    if prediction.get("live") is not None:
        live = read_predicted(plan)
        if live is None:
            raise ValueError("plan.prediction.live has a number that makes no sense, or lacks one")
        widths = plan.get("target_widths")
        if isinstance(widths, list) and list(live.verify_s) != widths:
            raise ValueError(f"plan.prediction.live has widths {list(live.verify_s)}, plan.target_widths {widths}")


def _check_tokenizer(tokenizer: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    rows = target.get("vocab")
    vocab = _whole(tokenizer, "tokenizer.vocab", 1, rows if isinstance(rows, int) else None)
    ids, most = tokenizer.get("eos_ids"), (vocab or rows or 1 << 31) - 1
    if ids is None:
        return
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise ValueError("tokenizer.eos_ids is not a list of integers")
    if strange := [i for i in ids if not 0 <= i <= most]:
        raise ValueError(f"tokenizer.eos_ids has {strange[0]}, which is not an id from 0 to {most}")


def _whole(table: Mapping[str, Any], name: str, least: int, most: int | None) -> int | None:
    """The number ``name`` names, None where it is not stated."""
    value = table.get(name.rpartition(".")[2])
    if value is None:
        return None
    if not _is_whole(value, least, most):
        raise ValueError(f"{name} is {str(value)[:40]}, not a whole number {_range(least, most)}")
    return int(value)


def _range(least: int, most: int | None) -> str:
    return f">= {least}" if most is None else f"from {least} to {most}"


def _is_whole(value: Any, least: int, most: int | None) -> bool:
    return type(value) is int and least <= value and (most is None or value <= most)
