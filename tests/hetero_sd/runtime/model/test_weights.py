"""Weight files: the round trip, the official reader, alignment, and headers nobody should trust."""

from __future__ import annotations

import json
import math
import struct
import weakref

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.schema.model import WeightSlice
from hetero_sd.runtime.model.library_facts import check_weights
from hetero_sd.runtime.model.safetensors_header import DTYPES
from hetero_sd.runtime.model.weights import Weights, write_weights
from targets.errors import UserError


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    out = {}
    for index, (dtype, (_, view)) in enumerate(DTYPES.items()):
        shape = [(3, 5), (16,), (), (2, 0, 3), (7, 1, 3)][index % 5]
        raw = rng.integers(0, 2, (math.prod(shape) * int(view[2:]),), np.uint8)  # 0 and 1 are valid bools too
        out[f"layer.{index}"] = (dtype, raw.view(view).reshape(shape))
    return out


def tensors(named):
    return [(name, dtype, array.shape, lambda array=array: array) for name, (dtype, array) in named.items()]


@pytest.mark.parametrize("huge_pages", [False, True])
def test_round_trip_is_exact_and_aligned(tmp_path, huge_pages):
    named, path = arrays(), tmp_path / "w.safetensors"
    write_weights(path, tensors(named), {"layout": "panel 64"})
    weights = Weights(path, huge_pages)
    assert list(weights) == list(named)
    assert weights.metadata == {"layout": "panel 64"}
    for name, (dtype, array) in named.items():
        assert weights.dtype(name) == dtype
        assert weights[name].dtype == array.dtype
        assert weights[name].shape == array.shape
        assert weights[name].tobytes() == array.tobytes()
        assert weights[name].ctypes.data % 64 == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.safetensors"]


def test_the_official_library_reads_it(tmp_path):
    named, path = arrays(), tmp_path / "w.safetensors"
    write_weights(path, tensors(named), {"a": "b"})
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"a": "b"}
        assert [n for n in file.keys() if not n.startswith("__pad.")] == sorted(named)
        for name, (dtype, array) in named.items():
            if dtype != "bfloat16":  # the library needs ml_dtypes for it
                np.testing.assert_array_equal(file.get_tensor(name), array)


def test_files_of_the_official_library_are_read(tmp_path):
    path = tmp_path / "w.safetensors"
    given_ = {"b": np.arange(7, dtype=np.int8), "a": np.ones((2, 3), np.float32), "c": np.float16([[1.5]])}
    safetensors.numpy.save_file(given_, path, {"x": "y"})
    weights = Weights(path)
    assert weights.metadata == {"x": "y"}
    assert set(weights) == set(given_)
    for name, array in given_.items():
        np.testing.assert_array_equal(weights[name], array)


def test_views_are_zero_copy_and_writing_to_one_leaves_the_file_alone(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, [("a", "float32", (4,), lambda: np.zeros(4, np.float32))])
    before = path.read_bytes()
    weights = Weights(path)
    assert np.shares_memory(weights["a"], weights["a"])
    weights["a"][0] = 1.0
    assert path.read_bytes() == before


def test_tvm_takes_the_views_without_a_copy(tmp_path):
    import tvm

    path = tmp_path / "w.safetensors"
    write_weights(
        path,
        [("pad", "int8", (3,), lambda: np.zeros(3, np.int8)), ("a", "float32", (4,), lambda: np.ones(4, np.float32))],
    )
    for huge_pages in (False, True):
        view = Weights(path, huge_pages)["a"]
        tensor = tvm.runtime.from_dlpack(view)
        view[1] = 5.0
        assert tensor.numpy().tolist() == [1.0, 5.0, 1.0, 1.0]


def test_one_tensor_at_a_time(tmp_path):
    made = []

    def make(index):
        assert all(earlier() is None for earlier in made), "an earlier tensor is still in memory"
        array = np.full((4, 8), index, np.float32)
        made.append(weakref.ref(array))
        return array

    write_weights(tmp_path / "w", [(f"t{i}", "float32", (4, 8), lambda i=i: make(i)) for i in range(3)])
    assert [Weights(tmp_path / "w")[f"t{i}"].sum() for i in range(3)] == [0, 32, 64]


def test_a_tensor_can_come_in_pieces(tmp_path):
    rows = (np.full((2, 3), i, np.int16) for i in range(2))
    write_weights(tmp_path / "w", [("a", "int16", (4, 3), lambda: rows)])
    assert Weights(tmp_path / "w")["a"].tolist() == [[0] * 3] * 2 + [[1] * 3] * 2


def test_columns_are_written_in_row_order(tmp_path):
    array = np.arange(6, dtype=np.int32).reshape(2, 3).T
    write_weights(tmp_path / "w", [("a", "int32", (3, 2), lambda: array)])
    np.testing.assert_array_equal(Weights(tmp_path / "w")["a"], array)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (("a", "float32", (2,), lambda: np.zeros(3, np.float32)), "has shape"),
        (("a", "float32", (2,), lambda: np.zeros(2, np.float64)), "is float64"),
        (("a", "float32", (2,), lambda: [np.zeros(1, np.float32)]), "has 4 bytes"),
        (("a", "complex64", (2,), lambda: None), "cannot be stored"),
        (("__pad.0", "float32", (2,), lambda: None), "reserved"),
        (("__metadata__", "float32", (2,), lambda: None), "reserved"),
        (("twice", "float32", (2,), lambda: None), "appears twice"),
    ],
)
def test_wrong_declarations_leave_nothing_behind(tmp_path, tensor, reason):
    first = ("twice", "uint8", (1,), lambda: np.zeros(1, np.uint8))
    with pytest.raises(ValueError, match=reason):
        write_weights(tmp_path / "w", [first, tensor])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "w"
    write_weights(path, [("a", "uint8", (1,), lambda: np.ones(1, np.uint8))])
    with pytest.raises(ZeroDivisionError):
        write_weights(path, [("a", "uint8", (1,), lambda: 1 / 0)])
    assert Weights(path)["a"].tolist() == [1]
    assert list(tmp_path.iterdir()) == [path]


def file_of(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="U8", shape=(4,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"", "shorter"),
        (b"\x00" * 7, "shorter"),
        (file_of({}, length=3), "does not fit|not JSON"),
        (file_of({}, length=2**63), "does not fit"),
        (file_of({}, length=10), "does not fit"),
        (file_of(b""), "not JSON"),
        (file_of(b"\xff{}"), "not JSON"),
        (file_of(b"{"), "not JSON"),
        (file_of(b"[" * 200_000), "not JSON"),
        (file_of(b'{"a":' + b"9" * 5000 + b"}"), "not JSON|needs dtype"),
        (file_of([]), "not a JSON object"),
        (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
        (file_of({"__metadata__": []}), "__metadata__"),
        (file_of({"a": 1}), "needs dtype"),
        (file_of({"a": {"dtype": "U8"}}), "needs dtype"),
        (file_of({"a": {**entry(), "more": 1}}, b"1234"), "needs dtype"),
        (file_of({"a": entry(dtype="F4")}, b"1234"), "not supported"),
        (file_of({"a": entry(dtype=["U8"])}, b"1234"), "not supported"),
        (file_of({"a": entry(shape=(-4,))}, b"1234"), "shape"),
        (file_of({"a": entry(shape=(4.0,))}, b"1234"), "shape"),
        (file_of({"a": entry(shape=(True,), offsets=(0, 1))}, b"1"), "shape"),
        (file_of({"a": {**entry(), "shape": "4"}}, b"1234"), "shape"),
        (file_of({"a": entry(shape=(1,) * 33, offsets=(0, 1))}, b"1"), "shape"),
        (file_of({"a": entry(shape=(2**62, 2**62, 0, 4))}, b"1234"), "do not agree"),
        (file_of({"a": entry(offsets=(0, 4, 4))}, b"1234"), "data_offsets"),
        (file_of({"a": entry(offsets=(4, 0))}, b"1234"), "do not agree"),
        (file_of({"a": entry(offsets=(-4, 0))}, b"1234"), "data_offsets"),
        (file_of({"a": entry(shape=(2**62,), offsets=(0, 2**62))}, b"1234"), "end at byte"),
        (file_of({"a": entry(offsets=(0, 4)), "b": entry(offsets=(2, 6))}, b"123456"), "overlaps"),
        (file_of({"a": entry(offsets=(0, 4)), "b": entry(offsets=(0, 4))}, b"1234"), "overlaps"),
        (file_of({"a": entry(offsets=(2, 6))}, b"123456"), "hole"),
        (file_of({"a": entry()}, b"12345"), "end at byte"),
        (file_of({"a": entry()}, b"123"), "end at byte"),
    ],
)
def test_malformed_files_are_refused_before_mapping(tmp_path, contents, reason, monkeypatch):
    monkeypatch.setattr("hetero_sd.runtime.model.weights._map", None)
    path = tmp_path / "w.safetensors"
    path.write_bytes(contents)
    with pytest.raises(UserError, match=reason) as caught:
        Weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        Weights(tmp_path / "w")


@settings(max_examples=400, deadline=None)
@given(data=st.data())
@pytest.mark.slow
def test_corrupted_bytes_give_an_error_or_readable_tensors(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "w"
    write_weights(path, tensors(arrays()))
    raw = bytearray(path.read_bytes())
    head = 8 + struct.unpack("<Q", raw[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["set", "cut", "insert"]))
        at = data.draw(st.integers(0, min(head, len(raw)) - 1)) if raw else 0
        if kind == "set" and raw:
            raw[at] = data.draw(st.sampled_from(b'0123456789"{}[],:\x00\xff -'))
        elif kind == "cut":
            del raw[at : at + data.draw(st.integers(1, 8))]
        else:
            raw[at:at] = data.draw(st.binary(max_size=8))
    path.write_bytes(raw)
    try:
        weights = Weights(path)
    except UserError:
        return
    for name in weights:
        assert weights[name].nbytes <= len(raw)
        weights[name].tobytes()


def test_a_part_of_a_weight_is_read_where_the_file_is_mapped(tmp_path):
    """Panels of columns are rows of the stored tensor; other parts, and those that are not aligned, are copied."""
    panels, path = np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8), tmp_path / "w.safetensors"
    write_weights(path, tensors({"w": ("float32", panels)}), {})
    weights = Weights(path)
    assert weights.part("w") is not panels
    np.testing.assert_array_equal(weights.part("w"), panels)
    columns, rows = weights.part(WeightSlice("w", 0, 1, 3)), weights.part(WeightSlice("w", 1, 2, 5))
    np.testing.assert_array_equal(columns, panels[1:3])
    np.testing.assert_array_equal(rows, panels[:, 2:5])
    assert np.shares_memory(columns, weights["w"])
    assert not np.shares_memory(rows, weights["w"])
    for part in (columns, rows):
        assert part.flags.c_contiguous
        assert part.ctypes.data % 64 == 0
    odd = np.arange(3 * 5, dtype=np.float32).reshape(3, 5)
    write_weights(tmp_path / "odd", tensors({"w": ("float32", odd)}), {})
    part = Weights(tmp_path / "odd").part(WeightSlice("w", 0, 1, 3))
    np.testing.assert_array_equal(part, odd[1:])
    assert part.ctypes.data % 64 == 0


@pytest.mark.parametrize(("axis", "end", "fits"), [(0, 4, True), (0, 5, False), (1, 6, True), (2, 9, False), (3, 1, 0)])
def test_a_part_that_is_not_there_is_refused(tmp_path, axis, end, fits):
    path = tmp_path / "w.safetensors"
    write_weights(path, tensors({"w": ("float32", np.zeros((4, 6, 8), np.float32))}), {})
    weights, types = Weights(path), {"w": ("float32", 4, 6, 8)}
    if fits:
        check_weights(weights, "weights", types, [WeightSlice("w", axis, 0, end)])
    else:
        with pytest.raises(UserError, match=f"has no part 0 to {end} of axis {axis}: build the bundle again"):
            check_weights(weights, "weights", types, [WeightSlice("w", axis, 0, end)])
