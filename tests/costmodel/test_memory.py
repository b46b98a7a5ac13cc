from __future__ import annotations

from typing import Any

from costmodel.memory import PROCESS_BYTES, Memory, available_bytes, model_memory


def test_by_hand(published: Any, rk3588: Any) -> None:
    shape = published["Llama-3.2-1B"]()
    found = model_memory(shape, 512, (shape.weight_bytes - 1000, 1000), rows=1)
    assert found.mapped_bytes + found.gpu_bytes == shape.weight_bytes
    assert found.kv_bytes == 512 * 16 * 2 * 8 * 64 * 4
    # one row of residual stream and temporaries, q and its product, k and v, gate, up and product, logits
    assert found.activation_bytes == 4 * (4 * 2048 + 2 * 2048 + 2 * 512 + 3 * 8192 + 128256)
    assert found.total_bytes == shape.weight_bytes + found.kv_bytes + found.activation_bytes
    assert model_memory(shape, 512, (0, 0), slots=4).kv_bytes == 4 * found.kv_bytes
    both = found + Memory(process_bytes=PROCESS_BYTES)
    assert both.total_bytes == found.total_bytes + PROCESS_BYTES
    assert available_bytes(rk3588) == 8 * 2**30 - 2**30
