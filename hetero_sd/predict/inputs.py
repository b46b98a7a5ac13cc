"""What a question is read from: models, a measured acceptance, the factors of a calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from costmodel.decoder import DecoderSpec
from costmodel.factors import Factors
from costmodel.format import FLOAT, INT8
from costmodel.question import factors_of
from costmodel.schema.model import QuantisedFacts
from costmodel.speculative import MOST_GAMMA
from hetero_sd.compile.hub_name import folder_name
from hetero_sd.early_exit import EarlyExit
from hetero_sd.predict.config_json import specs_from_config
from hetero_sd.predict.weight_formats import stored_as
from targets.device import Board
from targets.errors import UserError
from targets.files import read_object, refuse_no_file
from targets.kv_format import DEFAULT_KV, kv_format


@dataclass(frozen=True)
class AlphaFile:
    """What `hetero-sd acceptance` measured.

    Attributes:
        alpha: acceptance by position.
        low, high: its 95 % bounds, by position.
        source: the file.
    """

    alpha: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    source: str


def check_formats(names: Sequence[str], head: str | None = None) -> None:
    """Refuse a weight format that is not known.

    Raises:
        UserError: which one, and those that are known.
    """
    for name in names:
        stored_as(name, head)


def load_specs(
    path: Path,
    formats: Sequence[str],
    context: int,
    head: str | None = None,
    kv: str = DEFAULT_KV,
    activations: str | None = None,
    quantised: QuantisedFacts | None = None,
) -> tuple[DecoderSpec, ...]:
    """The decoder of an ONNX file, or of a config.json in each format.

    Activations that are left open are int8 where an ONNX file allows it, and for a config.json wherever a kernel has
    them: exporters of int4 and int8 models for CPUs allow it. With `quantised` the weights are those that a bundle has.

    Raises:
        UserError: no such file, not a decoder of a kind we know, or a head's format for an ONNX file, which has one;
            not the file that a bundle's weights were quantised from.
    """
    refuse_no_file(path, "model ")
    if path.suffix == ".json" and quantised is None:
        return tuple(with_activations(spec, activations) for spec in specs_from_config(path, formats, head, kv))
    if head is not None:
        raise UserError(f"--head {head}: {path} is an ONNX file, which says how its head is stored; leave --head out")
    from hetero_sd.quantisation.recipes import recipe_of
    from passes.analysis.count_work import count_work
    from passes.onnx import canonicalise

    decoder = canonicalise(path, max(2, context), None if quantised is None else recipe_of(quantised, path))
    spec = count_work(decoder, f"{folder_name(path)}/{path.name}")
    allowed = INT8 if decoder.facts.int8_activations else FLOAT
    return (replace(with_activations(spec, activations or allowed), kv=kv_format(kv).name),)


def pair_specs(
    target: Path,
    draft: Path | EarlyExit | None,
    context: int,
    activations: Mapping[str, str],
    kv: str = DEFAULT_KV,
    quantised: Mapping[str, QuantisedFacts] | None = None,
) -> dict[str, DecoderSpec]:
    """Target and drafter that a bundle was compiled from, by role; a config.json in float32.

    Raises:
        UserError: as `load_specs`; the target has too few layers to be left there.
    """

    def of(role: str, path: Path) -> DecoderSpec:
        facts = (quantised or {}).get(role)
        return load_specs(path, ["float32"], context, kv=kv, activations=activations[role], quantised=facts)[0]

    specs = {"target": of("target", target)}
    if isinstance(draft, EarlyExit):
        specs["draft"] = draft.spec(specs["target"])
    elif draft is not None:
        specs["draft"] = of("draft", draft)
    return specs


def with_activations(spec: DecoderSpec, activations: str | None) -> DecoderSpec:
    """The decoder with FLOAT or INT8 activations; None is INT8 where a kernel has them."""
    return spec if activations == FLOAT else spec.with_int8_activations()


def read_alpha_file(path: Path, sampled: bool = False) -> AlphaFile:
    """What `hetero-sd acceptance` wrote, for greedy or sampled decoding.

    Raises:
        UserError: unreadable, or a probability outside [0, 1].
    """
    data = read_object(path, "an acceptance file")
    mode = "sampled" if sampled else "greedy"
    part = ", in part: it was interrupted" if "partial" in data else ""
    data = data.get(mode, data)
    if not isinstance(data, dict):
        raise UserError(f"{path}: nothing was measured for {mode} decoding; measure it with `hetero-sd acceptance`")
    alpha = data.get("alpha_by_position")
    bounds = data.get("interval_by_position")
    if not isinstance(alpha, list) or not 1 <= len(alpha) <= MOST_GAMMA or not isinstance(bounds, list):
        raise UserError(
            f"{path}: alpha_by_position or interval_by_position is missing; write it with `hetero-sd acceptance`"
        )
    if len(bounds) != len(alpha) or not all(isinstance(b, list) and len(b) == 2 for b in bounds):
        raise UserError(f"{path}: interval_by_position must hold a pair for each of {len(alpha)} positions")
    for value in [*alpha, *(x for b in bounds for x in b)]:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise UserError(f"{path}: {str(value)[:40]} is not a probability; it must lie between 0 and 1")
    low, high = ([float(b[i]) for b in bounds] for i in (0, 1))
    return AlphaFile(tuple(map(float, alpha)), tuple(low), tuple(high), f"measured{part}, {path.name}")


def read_factors(path: Path | None, board: Board) -> Factors:
    """The factors of a file, else those of the board.

    Raises:
        UserError: unreadable, or an unknown factor.
    """
    if path is None:
        return factors_of(board)
    return Factors.from_json(read_object(path, "a calibration").get("factors"), str(path))
