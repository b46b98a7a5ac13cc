"""Records of the schema: what is written is read back, what is damaged is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
from dataclasses import replace
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
from bundles import LIVE, some_model, some_plan, some_prediction
from hypothesis import given, settings
from hypothesis import strategies as st
from json_places import at, places
from schema_records import RECORDS

from costmodel.place import Place, ReasonedPlace, Registered
from costmodel.schema import batch, manifest, measured, model, plan
from costmodel.schema.manifest import BlockHashes, FileFacts, Manifest, TokenizerFacts, refused_version
from costmodel.schema.model import ModelFacts, SegmentFacts, WeightSlice
from costmodel.schema.plan import Plan
from costmodel.schema.prediction import LivePrediction, PlanPrediction
from costmodel.schema.record import Ascending, Entries, OneOf, Record, SchemaError, Within
from targets.backend import names

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def values(kind: Any, bounds: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    """Values of a field's type within its bounds."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return values(arguments[0], (*arguments[1:], *bounds))
    if origin in (Union, types.UnionType):
        return st.one_of([values(arm) for arm in arguments])
    within = next((b for b in bounds if isinstance(b, Within)), Within())
    entries = next((b for b in bounds if isinstance(b, Entries)), Entries())
    if origin is tuple and arguments[-1] is not Ellipsis:
        return st.tuples(*map(values, arguments))
    if origin is tuple:
        rising = any(isinstance(b, Ascending) for b in bounds)
        some = st.lists(values(arguments[0]), min_size=entries.least, max_size=4, unique=rising)
        return some.map(sorted if rising else list).map(tuple)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), min_size=entries.least, max_size=3)
    if isinstance(kind, type) and issubclass(kind, Record):
        return records(kind)
    if kind is str:
        if any(isinstance(b, Registered) for b in bounds):
            return st.sampled_from(names())
        known = next((b for b in bounds if isinstance(b, OneOf)), None)
        return st.sampled_from(known.known) if known else TEXT
    if kind is int:
        return st.integers(0 if within.least is None else int(within.least), int(within.most or 1 << 40))
    if kind is float:
        least = within.least if within.above is None else within.above
        return st.floats(
            least, within.most, exclude_min=within.above is not None, allow_nan=False, allow_infinity=False
        )
    if kind is Any:
        return st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
    return {bool: st.booleans(), types.NoneType: st.none()}[kind]


def records(cls: type[Record]) -> st.SearchStrategy[Any]:
    """Records with every field within its bounds, and changed by REPAIRS where fields are held against each other."""
    if cls in WHOLE:
        return WHOLE[cls]()
    hints, repair = get_type_hints(cls, include_extras=True), REPAIRS.get(cls, lambda **found: found)
    fields = {f.name: values(hints[f.name]) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return st.fixed_dictionaries(fields).map(lambda found: cls(**repair(**found)))


def whole_chunks(n: int, chunk: int, **more: Any) -> dict[str, Any]:
    kinds = (*names(), measured.MIXED)
    return {**more, "processor": kinds[n % len(kinds)], "n": n, "chunk": chunk if chunk and n % chunk == 0 else 0}


REPAIRS: dict[type[Record], Any] = {
    measured.MeasuredStep: whole_chunks,
    measured.MeasuredPoint: whole_chunks,
    measured.Measured: lambda **found: {**found, "format": measured.CALIBRATION_FORMAT},
    measured.MeasuredBandwidth: lambda readers, gb_per_s: {"readers": readers, "gb_per_s": gb_per_s[:1] * len(readers)},
    Place: lambda processor, **_: {"processor": processor, "first": "1", "last": "head"},
    model.WeightSlice: lambda start, end, **found: {**found, "start": min(start, end - 1), "end": end},
    plan.PlannedOverlap: lambda gamma, least, target_cpus, **found: {
        **found,
        "gamma": gamma,
        "least": min(gamma, least),
        "target_cpus": target_cpus,
        "draft_cpus": (min({*range(len(target_cpus) + 1)} - {*target_cpus}),),
    },
    LivePrediction: lambda verify_s, **found: {**found, "verify_s": {**verify_s, 1: 0.5}},
    batch.BatchPrediction: lambda row_calls, read_calls, **found: {
        **found,
        "row_calls": {**row_calls, 1: (0.5, 0.0)},
        "read_calls": read_calls,
        "chunks": (max(read_calls),),
    },
    BlockHashes: lambda blake2b: {"blake2b": tuple(hashlib.md5(text.encode()).hexdigest() for text in blake2b)},
    FileFacts: lambda sha256, **found: {**found, "sha256": hashlib.sha256(sha256.encode()).hexdigest()},
    model.QuantisedFacts: lambda export_sha256, **found: {
        **found,
        "export_sha256": hashlib.sha256(export_sha256.encode()).hexdigest(),
    },
    TokenizerFacts: lambda eos_ids, vocab: {"eos_ids": eos_ids, "vocab": min(1 << 31, max(vocab, *eos_ids, 0) + 1)},
}
MIXED = some_model(
    processor="gpu",
    fallback=True,
    chain=(
        SegmentFacts("cpu", "a_", ("input_ids",), ("x",), (), False, ()),
        SegmentFacts("gpu", "b_", ("x",), ("logits", "choice"), (0,), True, ("w", WeightSlice("v", 0, 2, 4))),
    ),
)
OVERLAP = plan.PlannedOverlap(3, 0, (0, 1), (2,), "a55", 1.1, 1.0, 0.0, 4e-5, 2.5, 9.0)
PLANS = [
    some_plan(),
    some_plan(gamma=0, mode="target-only", overlap=OVERLAP),
    some_plan(prediction=some_prediction(live=LIVE)),
    some_plan(gamma=3, mode="overlapped", overlap=OVERLAP),
]


def models() -> st.SearchStrategy[Any]:
    some = st.sampled_from([some_model(), some_model("draft"), some_model(fallback=True, processor="gpu"), MIXED])
    return st.builds(replace, some, weights=TEXT, place=records(Place), widest_sum=st.integers(1, 1 << 31))


def plans() -> st.SearchStrategy[Any]:
    prediction = records(PlanPrediction).map(lambda p: replace(p, live=LIVE))
    more = {"variants": st.lists(records(plan.PlannedVariant), max_size=2).map(tuple), "verdict": TEXT}
    return st.builds(replace, st.sampled_from(PLANS), prediction=prediction, memory=records(plan.PlanMemory), **more)


def manifests() -> st.SearchStrategy[Any]:
    pair = {"target": some_model(), "draft": some_model("draft")}
    some = [
        Manifest({}, {"target": some_model()}, some_plan(), TokenizerFacts((2,), 8), {"name": "x"}),
        Manifest({}),
        Manifest({}, pair, some_plan(("target", "draft"))),
    ]
    files = st.dictionaries(TEXT, records(FileFacts), max_size=3)
    return st.builds(replace, st.sampled_from(some), files=files)


# Records that random fields would almost never make consistent.
WHOLE: dict[type[Record], Any] = {ModelFacts: models, Plan: plans, Manifest: manifests}
FILES = {"lib/target.so": FileFacts(3, "0" * 64)}
WRITTEN = Manifest(FILES, {"target": some_model()}, PLANS[2], TokenizerFacts((2,), 8), {"name": "x"})


@pytest.mark.parametrize("cls", RECORDS, ids=lambda cls: cls.__name__)
def test_what_is_written_is_read_back(cls: type[Record]) -> None:
    @settings(deadline=None, max_examples=30, database=None)
    @given(records(cls))
    def round_trip(record: Any) -> None:
        text = json.dumps(record.to_json(), sort_keys=True)
        assert cls.from_json(json.loads(text)) == record
        assert json.dumps(cls.from_json(json.loads(text)).to_json(), sort_keys=True) == text

    round_trip()


def test_a_field_that_is_not_written_would_show() -> None:
    """The negative control of the round trip."""
    written = some_plan().to_json()
    del written["threads"]
    with pytest.raises(SchemaError, match=r"plan\.threads is missing"):
        Plan.from_json(written, "plan")
    assert Plan.from_json({**some_plan().to_json(), "threads": 3}) != some_plan()


@pytest.mark.parametrize("record", [MIXED, *PLANS, WRITTEN], ids=lambda record: type(record).__name__)
def test_a_value_of_another_type_is_refused_everywhere(record: Record) -> None:
    """Each place, replaced by what its type does not allow: null only where it may be missing."""
    intact = record.to_json()
    for path in places(intact):
        if path[0] == "board":
            continue  # read by targets.device.Board
        for other in (None, True, -1, 1 << 70, float("nan"), "\ud800", [[]], {"x": []}):
            damaged = json.loads(json.dumps(intact))
            table = damaged
            for key in path[:-1]:
                table = table[key]
            table[path[-1]] = other
            found = refusal_or_record(type(record), damaged)
            if isinstance(found, str):
                assert "\n" not in found
                assert len(found) < 400
            else:  # accepted as it is, not as something else
                assert at(json.loads(json.dumps(found.to_json())), path) == other, path
                assert fits(at(intact, path), other, path), (path, other)


NULLABLE = {name for record in RECORDS for name, kind in get_type_hints(record).items() if type(None) in get_args(kind)}


def fits(intact: Any, other: Any, path: tuple[Any, ...]) -> bool:
    """Whether a place may hold `other`: null where its field may be missing, else a value of the intact one's type."""
    if other is None:
        return path[-1] in NULLABLE
    if intact is None:  # the text of a field's type is in the record alone
        return isinstance(other, (str, int))
    if isinstance(intact, dict) and path[-2:-1] == ("params",):  # a slice, where a name may stand
        return isinstance(other, str)
    if isinstance(other, (str, bool)):
        return type(other) is type(intact)
    return type(other) is int and type(intact) in (int, float)


def refusal_or_record(cls: type[Record], value: Any) -> Any:
    try:
        return cls.from_json(value)
    except SchemaError as error:
        return str(error)


def test_unknown_keys_of_a_model_are_refused_and_those_of_a_plan_are_not() -> None:
    with pytest.raises(SchemaError, match=r"models\.target\.more is not known"):
        Manifest.from_json({"files": {}, "models": {"target": {**some_model().to_json(), "more": 1}}})
    assert Plan.from_json({**some_plan().to_json(), "more": 1}) == some_plan()


CHAIN, VALUES = MIXED.chain, MIXED.caches.value_shape
TWO_SLOTS = replace(
    MIXED.caches,
    value_shape=(2, *VALUES[1:]),
    key_shape={name: (2, *shape[1:]) for name, shape in MIXED.caches.key_shape.items()},
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (2, 4)}, "no entry point for one token"),
        ({"context": 32}, "a value cache of shape .* does not hold a context of 32"),
        ({"chain": (CHAIN[1],)}, "a segment reads 'x', which none before it computes"),
        ({"chain": (CHAIN[0],)}, "do not compute logits and a choice"),
        ({"chain": (CHAIN[0], replace(CHAIN[1], layers=(0, 0)))}, r"caches of layers \[0, 0\], the model has 1 layers"),
        ({"chain": (CHAIN[0], replace(CHAIN[1], chooses=False))}, "`chooses` is False"),
        ({"chain": (replace(CHAIN[0], outputs=("logits",)), CHAIN[1])}, "`chooses` is False"),
        ({"chain": (CHAIN[0], replace(CHAIN[0], prefix="c_"), CHAIN[1])}, "is computed twice"),
        ({"chain": (CHAIN[0], replace(CHAIN[1], processor="cpu", prefix="a_"))}, "two segments have the same entry"),
        ({"fallback": (replace(CHAIN[0]), CHAIN[1])}, "a segment runs on gpu, for which there is no library"),
        ({"opencl_runtime": None}, "opencl_runtime is missing"),
        ({"libraries": {"gpu": "x"}}, "not of the same processors"),
        ({"caches": replace(MIXED.caches, value_shape=(1, 2, 64, 4))}, "a key cache of shape .* does not fit"),
        ({"caches": replace(MIXED.caches, value_shape=(2, *VALUES[1:]))}, "a key cache of shape .* does not fit"),
        ({"caches": TWO_SLOTS}, r"caches of 2 slots do not fit row_widths \[\]"),
        ({"row_widths": (2,)}, r"caches of 1 slots do not fit row_widths \[2\]"),
    ],
)
def test_a_model_is_held_against_itself(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        replace(MIXED, **changes)
    assert replace(MIXED, caches=TWO_SLOTS, row_widths=(2,)).slots == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 0}, "gamma is 0, but mode is 'sequential'"),
        ({"mode": "target-only"}, "gamma is 3, but mode is 'target-only'"),
        ({"target_widths": (1, 2)}, "gamma is 3, but target_widths has no 4"),
        ({"mode": "overlapped"}, "mode is 'overlapped', but overlap has no gamma 3"),
        ({"mode": "overlapped", "overlap": replace(OVERLAP, gamma=2)}, "mode is 'overlapped', but overlap has no"),
        ({"prediction": some_prediction(live=replace(LIVE, verify_s={1: 0.1}))}, "has widths .1., target_widths"),
    ],
)
def test_a_plan_is_held_against_itself(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        some_plan(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": some_plan(context=32)}, "plan.context is 32, models.target has 64"),
        ({"plan": some_plan(slots=2)}, "plan.slots of the target is 2, models.target has 1"),
        ({"plan": some_plan(prefill_width=8)}, "plan.prefill_width is 8, models.target has 32"),
        ({"plan": some_plan(long_prefill_width=64)}, "plan.long_prefill_width is 64, models.target has None"),
        (
            {"plan": some_plan(target_widths=(1, 2, 4))},
            r"target_widths is \(1, 2, 4\), models.target has \(1, 4\)",
        ),
        (
            {"plan": some_plan(places={"target": ReasonedPlace(Place("gpu"), "")})},
            "places.target is gpu, models.target",
        ),
        ({"plan": some_plan(("target", "draft"))}, "plan.places has target, draft, models target"),
        ({"tokenizer": TokenizerFacts((), 271)}, "tokenizer.vocab is 271, not a whole number from 1 to 270"),
        ({"models": {"draft": some_model()}}, "models.draft.role is 'target'"),
    ],
)
def test_a_manifest_is_held_against_itself(changes: dict[str, Any], message: str) -> None:
    whole = Manifest({}, {"target": some_model()}, some_plan(), TokenizerFacts((2,), 270))
    with pytest.raises(SchemaError, match=message):
        replace(whole, **changes)


def test_another_format_is_refused_in_one_line() -> None:
    assert refused_version({"format_version": manifest.FORMAT_VERSION}) is None
    said = refused_version({"format_version": 1})
    assert said is not None
    assert said.endswith("build the bundle again with this version of hetero-sd")


def test_the_same_manifest_gives_the_same_bytes() -> None:
    whole = WRITTEN
    shuffled = dict(reversed(list(whole.to_json().items())))
    assert Manifest.from_json(json.loads(json.dumps(shuffled))).to_text() == whole.to_text()
    assert replace(whole, board=None).to_text() != whole.to_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"least": 4}, "least is 4, but gamma is 3"),
        ({"draft_cpus": (3, 1)}, "CPU 1 is in target_cpus and in draft_cpus"),
    ],
)
def test_an_overlap_is_held_against_itself(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        replace(OVERLAP, **changes)
