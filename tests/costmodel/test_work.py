from __future__ import annotations

from typing import Any

import pytest

from costmodel.decoder import DecoderSpec
from costmodel.format import Format
from costmodel.operators import Operator
from costmodel.place import Part
from costmodel.work import Op, step_ops, step_units, totals
from targets.errors import UserError

INT4 = Format("int4", block=32, scale_dtype="float16", zeros=True)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # layers x (q + k + v + o + 3 ffn + 2 norms) + embedding (tied) + last norm
        ("Llama-3.2-1B", 16 * (2048 * (2048 + 512 + 512 + 2048) + 3 * 2048 * 8192 + 2 * 2048) + 128256 * 2048 + 2048),
        ("Llama-3.2-3B", 28 * (3072 * (3072 + 2048 + 3072) + 3 * 3072 * 8192 + 2 * 3072) + 128256 * 3072 + 3072),
        # Qwen3 normalises q and k by head: 2 x 128 more a layer; its q is wider than the hidden size
        ("Qwen3-0.6B", 28 * (1024 * (2048 + 2048 + 2048) + 3 * 1024 * 3072 + 2 * 1024 + 256) + 151936 * 1024 + 1024),
        ("SmolLM2-135M", 30 * (576 * (576 + 384 + 576) + 3 * 576 * 1536 + 2 * 576) + 49152 * 576 + 576),
    ],
)
def test_parameters_by_hand(published: Any, name: str, parameters: int) -> None:
    shape = published[name]()
    assert shape.parameters == parameters
    published_total = {
        "Llama-3.2-1B": 1_235_814_400,
        "Llama-3.2-3B": 3_212_749_824,
        "Qwen3-0.6B": 596_049_920,
        "SmolLM2-135M": 134_515_008,
    }
    assert shape.parameters == published_total[name]  # the number on the model's page


def test_weight_bytes_by_dtype(published: Any) -> None:
    shape = published["Llama-3.2-1B"]()
    norms = (16 * 2 + 1) * 2048
    assert shape.weight_bytes_by_dtype == {"float16": 2 * (1_235_814_400 - norms), "float32": 4 * norms}
    assert shape.weight_bytes == sum(shape.unit_bytes) == 2 * (1_235_814_400 - norms) + 4 * norms


def test_int4_bytes_by_hand() -> None:
    # 2048 x 8192 nibbles, and for each of 8192 x 64 blocks an fp16 scale and a zero point of one byte
    assert INT4.nbytes(2048, 8192) == 2048 * 8192 // 2 + 8192 * 64 * (2 + 1)
    assert Format("int4", 32, "float16").nbytes(2048, 8192) == 2048 * 8192 // 2 + 8192 * 64 * 2


def of_layer(ops: list[Op]) -> dict[str, Op]:
    """The operators by name; of layers that are alike the last one stands for all."""
    return {op.name: op for op in ops}


def test_decode_flops_by_hand(published: Any) -> None:
    shape = published["Llama-3.2-1B"]()
    ops = step_ops(shape, n=1, past=100)
    named = of_layer(ops)
    assert named["gate"].flops == 2 * 2048 * 8192
    assert named["head"].flops == 2 * 2048 * 128256
    assert named["attention"].flops == 4 * 32 * 64 * 101  # scores and weighted sum over 101 keys
    linears = sum(op.flops for op in ops if op.kind == "linear")
    assert linears == 2 * (1_235_814_400 - (16 * 2 + 1) * 2048)  # every matrix once, the tied one as the head


def test_kv_bytes_by_hand(published: Any) -> None:
    shape = published["Llama-3.2-3B"]()
    assert shape.kv_bytes(512) == 512 * 28 * 2 * 8 * 128 * 4  # tokens, layers, k and v, heads, dim, float32
    read = totals(step_ops(shape, n=1, past=511)).read[("kv", "float32")]
    assert read == shape.kv_bytes(512)
    written = totals(step_ops(shape, n=1, past=511)).written[("kv", "float32")]
    assert written == shape.kv_bytes(1)


def test_attention_counts_each_row_with_its_own_keys(published: Any) -> None:
    shape = published["SmolLM2-135M"]()
    op = next(op for op in step_ops(shape, n=4, past=10) if op.kind == "attention")
    assert op.flops == 4 * 9 * 64 * (11 + 12 + 13 + 14)


def test_weights_are_read_once_for_any_n_and_batch(published: Any) -> None:
    shape = published["SmolLM2-135M"]()
    head = [
        next(op for op in step_ops(shape, n, 64, batch) if op.name == "head") for n, batch in ((1, 1), (8, 1), (1, 8))
    ]
    assert {op.bytes_of("weights") for op in head} == {49152 * 576 * 2}
    assert head[1].flops == head[2].flops == 8 * head[0].flops


def test_batch_multiplies_kv_but_not_weights(published: Any) -> None:
    shape = published["SmolLM2-135M"]()
    one, four = totals(step_ops(shape, 1, 64, 1)), totals(step_ops(shape, 1, 64, 4))
    assert four.read[("kv", "float32")] == 4 * one.read[("kv", "float32")]
    layer_weights = one.read[("weights", "float16")] - 576 * 2  # the embedding row is read for each token
    assert four.read[("weights", "float16")] == layer_weights + 4 * 576 * 2


def test_a_prompt_chunk_needs_one_row_of_logits(published: Any) -> None:
    shape = published["SmolLM2-135M"]()
    chunk = of_layer(step_ops(shape, 32, 0, result_rows=1))
    assert chunk["head"].flops == 2 * 576 * 49152
    assert chunk["argmax"].flops == 49152
    assert (chunk["k"].rows, chunk["attention"].rows, chunk["down"].rows) == (32, 32, 1)  # of the last layer
    before = step_units(shape, 32, 0, result_rows=1)[-3]
    assert {op.rows for op in before} == {32}
    assert step_units(shape, 32, 0, 3, 1)[-1][-1].rows == 3  # one of each sequence


def test_a_chunk_without_results_ends_with_the_last_attention(published: Any) -> None:
    shape = published["SmolLM2-135M"]()
    *before, layer, head = step_units(shape, 32, 16, result_rows=0)
    assert head == ()
    assert layer[-1].kind == "attention"
    whole = step_units(shape, 32, 16)
    assert before == whole[:-2]
    assert layer == whole[-2][: len(layer)]
    with_row = step_units(shape, 32, 16, result_rows=1)[-2]
    assert len(with_row) == len(whole[-2])
    assert with_row[: len(layer)] == layer


def test_sliding_window_bounds_the_keys(make_decoder: Any) -> None:
    full, windowed = (make_decoder("d", 64, 1, 4, 2, 16, 96, 512, window=w) for w in (0, 8))

    def attention(shape: Any) -> Op:
        return next(op for op in step_ops(shape, 1, 100) if op.kind == "attention")

    assert attention(windowed).flops == 4 * 4 * 16 * 8
    assert attention(full).flops == 4 * 4 * 16 * 101


def test_a_norm_with_the_residual_addition_moves_both_rows(published: Any) -> None:
    ops = step_ops(published["Llama-3.2-1B"](), 3, 0)
    first, second = (next(op for op in ops if op.name == name) for name in ("attention_norm", "ffn_norm"))
    assert (first.kind, first.read_bytes, first.written_bytes) == ("rms_norm", 4 * (3 + 1) * 2048, 4 * 3 * 2048)
    assert (second.kind, second.read_bytes) == ("add_rms_norm", 4 * (2 * 3 + 1) * 2048)
    assert second.written_bytes == 2 * 4 * 3 * 2048


def test_units_are_embedding_layers_head(published: Any) -> None:
    shape = published["Llama-3.2-1B"]()
    units = step_units(shape, 1, 0)
    assert len(units) == len(shape.units) == 16 + 2
    assert [op.kind for op in units[0]] == ["embedding"]
    assert units[-1][-1].kind == "argmax"
    assert units[2] is units[3]  # equal layers are counted once
    assert units[1] is not units[2]  # nothing is added before the first norm


@pytest.mark.parametrize(("n", "past", "batch"), [(0, 0, 1), (1, -1, 1), (1, 0, 0)])
def test_impossible_steps_are_refused(published: Any, n: int, past: int, batch: int) -> None:
    with pytest.raises(UserError, match="n >= 1"):
        step_ops(published["SmolLM2-135M"](), n, past, batch)


def test_contradictory_sizes_are_refused(make_decoder: Any) -> None:
    with pytest.raises(UserError, match="5 heads cannot share 2 KV heads"):
        make_decoder("odd", 80, 1, 5, 2, 16, 96, 512)


def test_unknown_format_is_refused() -> None:
    with pytest.raises(UserError, match="int3"):
        Format("int3")
    with pytest.raises(UserError, match="blocks of 0"):
        Format("int4")


def test_lists_that_are_no_decoder_are_refused(make_decoder: Any) -> None:
    good = make_decoder("good", 64, 1, 4, 2, 16, 96, 512)
    without = {
        "no layers": tuple(op for op in good.operators if op.kind != "attention"),
        "0 operators of kind embedding": tuple(op for op in good.operators if op.kind != "embedding"),
        "2 operators of kind argmax": (*good.operators, good.operators[-1]),
    }
    for message, operators in without.items():
        with pytest.raises(UserError, match=message):
            DecoderSpec("bad", operators, tied=True)
    with pytest.raises(UserError, match="'convolution' is not known"):
        Operator("convolution", "c", Part("head"), 1)
    with pytest.raises(UserError, match="q: k is 0"):
        Operator("linear", "q", Part("attention", 3), 1)
