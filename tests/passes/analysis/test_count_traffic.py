"""Bytes moved and needed, by hand: products, attention, norms and embeddings of both processors."""

from __future__ import annotations

from typing import Any

import pytest

from passes.analysis.count_traffic import count_traffic
from passes.analysis.traffic import Counted, Traffic
from targets.cpu.tile import CpuTile
from targets.opencl.tile import GpuTile
from tests.support.lowered import lower_whole

GPU, CPU = GpuTile(), CpuTile(lanes=4, panel=16, accumulators=24, dot="sdot")


def by_name(counted: Counted) -> dict[str, Traffic]:
    return {t.name: t for t in counted.traffic}


def test_one_row_reads_the_weights_once() -> None:
    from targets.opencl.kernels.linear import linear

    counted = count_traffic(linear(GPU, 1, 64, 48, "float16"))
    t, (kernel,) = by_name(counted), counted.kernels
    assert t["w"] == Traffic("w", 64 * 48 * 2, 0, 64 * 48 * 2, 0)
    assert t["x"] == Traffic("x", 6 * 64 * 4, 0, 64 * 4, 0)  # 48 columns, 8 a work-item: 6 of them read the row
    assert t["y"] == Traffic("y", 0, 48 * 4, 0, 48 * 4)
    assert counted.moved_bytes == 64 * 48 * 2 + 6 * 64 * 4 + 48 * 4
    assert counted.needed_bytes == 64 * 48 * 2 + 64 * 4 + 48 * 4
    assert (kernel.name, kernel.launches, kernel.work_items, kernel.group) == ("tile", 1, 64, 64)  # one group for 6
    assert (kernel.vector_lanes, kernel.vector_bits, kernel.register_tile) == (8, 16, (4, 8))  # 4 steps of 8 weights


def test_rows_share_the_weights_up_to_eight_and_columns_end_inside_a_panel() -> None:
    from targets.opencl.kernels.linear import linear
    from targets.opencl.kernels.linear_nbits import linear_nbits

    for n, tiles in ((4, 1), (5, 1), (8, 1), (9, 2), (16, 2)):
        t = by_name(count_traffic(linear(GPU, n, 64, 50, "float16")))
        assert t["w"].read_bytes == tiles * 4 * 64 * 16 * 2  # 4 panels of 16 columns for 50, padding included
        assert t["y"].written_bytes == n * 50 * 4
        t = by_name(count_traffic(linear_nbits(GPU, n, 64, 50, 4, 32, "float16", True)))
        assert t["q"].read_bytes == tiles * 4 * 64 * 16 // 2
        assert (t["scale"].read_bytes, t["zero"].read_bytes) == (tiles * 4 * 2 * 16 * 2, tiles * 4 * 2 * 16)
        assert t["q"].needed_read_bytes == 4 * 64 * 16 // 2


def test_the_cpu_keeps_rows_and_panels_in_registers() -> None:
    from targets.cpu.kernels.linear import linear
    from targets.cpu.kernels.linear_nbits import linear_nbits

    # 8 rows are two tiles of 4, which take turns: each reads the weights, the sums of both are kept; each of the 32
    # panels reads all rows
    counted = count_traffic(linear(CPU, 8, 64, 512, "float16"))
    t, (kernel,) = by_name(counted), counted.kernels
    assert (t["w"].read_bytes, t["x"].read_bytes) == (2 * 64 * 512 * 2, 32 * 8 * 64 * 4)
    assert (kernel.tasks, kernel.work_items, kernel.register_tile) == (32, 0, (8, 16))
    # a scale is read once for its block of 32 weights, not with each of them
    t = by_name(count_traffic(linear_nbits(CPU, 1, 64, 32, 8, 32, "float16", False)))
    assert (t["q"].read_bytes, t["scale"].read_bytes) == (64 * 32, 2 * 32 * 2)


def test_attention_reads_what_each_row_sees() -> None:
    from targets.cpu.kernels.attention import attention_cached

    # 3 rows after 20 keys see 21, 22, 23 keys, read once for the tile; the values of the last two keys, which only some
    # rows see, once for each query that does: 1 and 2 keys, two heads
    heads, kv_heads, dim, past = 4, 2, 32, 20
    counted = count_traffic(attention_cached(CPU, 3, heads, kv_heads, dim, 64, 0.2, 0, 0.0), scalar=past)
    t = by_name(counted)
    row = kv_heads * dim * 4
    assert t["values"] == Traffic("values", (21 + 2 * (1 + 2)) * row, 3 * row, 23 * row, 3 * row)
    assert t["keys"] == Traffic("keys", 24 * row, 3 * row, 24 * row, 3 * row)
    windowed = attention_cached(CPU, 1, heads, kv_heads, dim, 64, 0.2, 5, 0.0)
    assert by_name(count_traffic(windowed, scalar=past))["values"].read_bytes == 5 * row
    # a cache that is long enough for parts of 384 keys, whose first and number are bound to names
    for window, seen in ((0, 701), (5, 5)):
        parts = attention_cached(CPU, 1, heads, kv_heads, dim, 1024, 0.2, window, 0.0)
        assert by_name(count_traffic(parts, scalar=700))["values"].read_bytes == seen * row
    later = by_name(count_traffic(attention_cached(CPU, 3, heads, kv_heads, dim, 64, 0.2, 0, 0.0), scalar=past + 1))
    # the negative control: one more key in the cache is one more row
    assert later["values"].read_bytes == (22 + 2 * (1 + 2)) * row


def test_scratch_and_own_results_need_nothing() -> None:
    from targets.opencl.kernels.norm import add_rms_norm

    # squares: x, r -> s and a sum for each 64 values; scale: s, w and both sums for each vector of 4 -> y
    counted = count_traffic(add_rms_norm(GPU, 2, 128, 1e-5), outputs=3, scratch=(5,))
    t, row = by_name(counted), 128 * 4
    assert [k.name for k in counted.kernels] == ["squares", "scale"]
    assert t["s"] == Traffic("s", 2 * row, 2 * row, 0, 2 * row)
    assert t["sums"] == Traffic("sums", 2 * 32 * 2 * 4, 2 * 2 * 4, 0, 0)
    assert t["w"] == Traffic("w", 2 * row, 0, row, 0)
    assert counted.needed_bytes == 2 * row + 2 * row + row + 2 * row + 2 * row
    assert counted.moved_bytes == sum(k.moved_bytes for k in counted.kernels)
    kept = count_traffic(add_rms_norm(GPU, 2, 128, 1e-5), outputs=3)
    assert kept.needed_bytes == counted.needed_bytes + 2 * 2 * 4  # the negative control: were the sums a result


@pytest.mark.parametrize("tile", [GPU, CPU], ids=["gpu", "cpu"])
def test_embedding_needs_the_rows_that_are_looked_up(tile: Any) -> None:
    import importlib

    where = "opencl" if tile is GPU else "cpu"
    module = importlib.import_module(f"targets.{where}.kernels.embedding")
    t = by_name(count_traffic(module.embedding(tile, 3, 512, 96, "float16")))
    assert (t["w"].read_bytes, t["w"].needed_read_bytes) == (3 * 96 * 2, 3 * 96 * 2)
    assert (t["ids"].needed_read_bytes, t["y"].written_bytes) == (3 * 8, 3 * 96 * 4)


@pytest.mark.slow
def test_every_kernel_of_both_processors_is_understood() -> None:
    """The decoders that tests compile, at one and at several tokens."""
    from passes.lower.kernel_calls import kernel_uses
    from passes.testing import TinyDecoder

    for options in ({"dtype": "float16", "tied": True, "qk_norm": True}, {"bits": 4, "qkv_bias": True}):
        tiny = TinyDecoder(**options)
        for processor, tile in (("gpu", GPU), ("cpu", CPU)):
            mod = lower_whole(tiny.decoder(tiny.proto()), tile, 64, (3,), 8, processor=processor).mod
            for entry in ("step_3", "prefill_8"):
                uses = kernel_uses(mod[entry])
                assert sum(use.calls for use in uses) > 10
                for use in uses:
                    counted = count_traffic(mod[use.name], 20, use.outputs, use.scratch)
                    assert 0 < counted.needed_bytes <= counted.moved_bytes, use
                    scratch = [str(mod[use.name].params[i].name) for i in use.scratch]
                    assert not {"y", "s", "ids"} & set(scratch), use


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_integer_kernels_of_a_gpu_read_each_weight_once_for_eight_rows(bits: int, zeros: bool) -> None:
    """Nothing but the codes of the rows is read again: by each work-item, from a cache."""
    from targets.opencl.kernels.linear_int import linear_int, quantise_rows

    for n in range(1, 17):
        tiles = 1 + (n > 8)
        counted = count_traffic(linear_int(GPU, n, 128, 64, bits, 32, "float16", zeros))
        t = by_name(counted)
        assert t["q"].read_bytes == tiles * t["q"].needed_read_bytes == tiles * 128 * 64 * bits // 8
        assert t["scale"].read_bytes == tiles * t["scale"].needed_read_bytes == tiles * 4 * 64 * 2
        if zeros:
            assert t["zero"].read_bytes == tiles * t["zero"].needed_read_bytes == tiles * 4 * 64
        assert (t["x"].needed_read_bytes, t["y"].written_bytes) == (n * 128, n * 64 * 4)
        if n in (1, 16):  # 4 or 2 columns a work-item
            assert t["x"].read_bytes == n * 128 * 64 // (4 if n == 1 else 2)
    t = by_name(count_traffic(quantise_rows(GPU, 2, 128, "uint32"), outputs=3))
    assert (t["x"].read_bytes, t["x"].needed_read_bytes) == (2 * 128 * 4, 2 * 128 * 4)
    written = [t[name].written_bytes for name in ("codes", "scale", "total")]
    assert written == [2 * 128, 2 * 4 * 4, 2 * 4 * 4]


@pytest.mark.parametrize("bits", [4, 8])
def test_integer_kernels_read_each_weight_once_for_a_tile_of_rows(bits: int) -> None:
    from targets.cpu.kernels.linear_int import linear_int, quantise_rows

    for n, tiles in ((1, 1), (4, 1), (8, 1), (12, 2)):
        t = by_name(count_traffic(linear_int(CPU, n, 128, 64, bits, 32, "float16", True)))
        assert t["q"].needed_read_bytes == 128 * 64 * bits // 8
        assert t["q"].read_bytes == tiles * t["q"].needed_read_bytes  # what is asked for ahead is not read
        assert (t["scale"].read_bytes, t["zero"].read_bytes) == (tiles * 4 * 64 * 2, tiles * 4 * 64)
        assert (t["x"].needed_read_bytes, t["y"].written_bytes) == (n * 128, n * 64 * 4)
    t = by_name(count_traffic(quantise_rows(CPU, 2, 128, "int8"), outputs=3))
    written = [t[name].written_bytes for name in ("codes", "scale", "total")]
    assert (t["x"].needed_read_bytes, written) == (2 * 128 * 4, [2 * 128, 2 * 4 * 4, 2 * 4 * 4])
