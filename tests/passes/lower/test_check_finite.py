"""NaN and infinity in a model are refused with the name of the tensor or node; every finite number passes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from hetero_sd.compile.build import _tensors
from passes.lower.check_finite import _CHUNK, check_attributes, check_finite
from passes.lower.lowered import LoweredDecoder
from passes.testing import TinyDecoder
from targets.cpu.tile import CpuTile
from targets.errors import UserError
from tests.support.lowered import lower_whole

BAD = [np.nan, -np.nan, np.inf, -np.inf]
TILE = CpuTile(lanes=8, panel=16, accumulators=12, dot="pmadd")
VARIANTS = [
    {},
    {"dtype": "float16", "tied": True, "qk_norm": True},
    {"bits": 4, "qkv_bias": True},
    {"bits": 8},
]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_each_place_and_each_value(dtype: str) -> None:
    array = np.full((3, _CHUNK // 2), np.finfo(dtype).max, dtype)
    array[1] = np.finfo(dtype).min
    array[2, :4] = [0, -0.0, np.finfo(dtype).tiny, np.finfo(dtype).smallest_subnormal]
    check_finite("w", array)
    for at in (0, _CHUNK - 1, _CHUNK, array.size - 1):
        for bad in BAD:
            broken = array.copy()
            broken.reshape(-1)[at] = bad
            for given in (broken, broken.T):
                with pytest.raises(UserError, match=r"^w, stored as float.*, holds -?(nan|inf),") as error:
                    check_finite("w", given)
                assert "\n" not in str(error.value)


def test_integers_and_empty_arrays_pass() -> None:
    check_finite("q", np.full((5, 5), 255, np.uint8))
    check_finite("w", np.zeros((0, 4), np.float32))


def test_numbers_of_an_operator() -> None:
    node = SimpleNamespace(name="norm_3", op_type="RMSNormalization")
    check_attributes({"eps": 1e-5, "groups": 1, "layout": "NK"}, node)
    for bad in BAD:
        with pytest.raises(UserError, match=r"node 'norm_3' \(RMSNormalization\): eps is"):
            check_attributes({"eps": bad}, node)


def lowered(tiny: TinyDecoder) -> LoweredDecoder:
    return lower_whole(tiny.decoder(), TILE, 64, (1,), 8)


def written(model: LoweredDecoder) -> set[str]:
    return {name for name, _, _, make in _tensors("target", model, lambda *_: None) if list(make())}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.slow
def test_every_stored_number_of_a_model_is_checked(variant: dict[str, object]) -> None:
    """One value in each floating-point tensor in turn: weights, scales, norms, biases, rope tables, embedding."""
    tiny = TinyDecoder(layers=1, **variant)  # type: ignore[arg-type]
    names = written(lowered(tiny))
    floats = sorted(name for name in names if tiny._init[name].dtype.kind == "f")
    assert len(floats) >= 10
    for i, name in enumerate(floats):
        whole = tiny._init[name]
        tiny._init[name] = whole.copy()
        tiny._init[name].reshape(-1)[-1 - i % 3] = BAD[i % 4]
        with pytest.raises(UserError, match=f"target model: weight '{name}', stored as {whole.dtype}"):
            written(lowered(tiny))
        tiny._init[name] = whole
    assert written(lowered(tiny)) == names  # the negative control


def test_a_number_that_overflows_where_it_is_stored_counts() -> None:
    """Packing that converts: 70,000 is a finite float32 and an infinite float16."""
    model = lowered(TinyDecoder(layers=1))
    (head,) = [w for w in model.packed if w.name == "head"]
    with np.errstate(over="ignore"):
        narrow = np.full(head.shape, 70_000, np.float32).astype(np.float16)
    object.__setattr__(head, "part", lambda *_: narrow)
    with pytest.raises(UserError, match="weight 'head', stored as float16, holds inf"):
        written(model)


def test_an_epsilon_that_is_not_finite_names_its_node() -> None:
    tiny = TinyDecoder(layers=1)
    norm = next(n for n in tiny._nodes if n.op_type == "RMSNormalization")
    (epsilon,) = [a for a in norm.attribute if a.name == "epsilon"]
    epsilon.f = float("nan")
    with pytest.raises(UserError, match=rf"node '{norm.name}' \(RMSNormalization\): eps is nan"):
        lowered(tiny)
