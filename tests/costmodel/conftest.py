"""Published decoders, from their config.json on Hugging Face, and a small board."""

from __future__ import annotations

from typing import Any

import pytest

from costmodel.decoder import DecoderSpec
from costmodel.format import Format
from costmodel.standard_decoder import Blocks, standard_decoder
from targets.boards import load_board
from targets.device import Board


def decoder(
    name: str,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    ffn: int,
    vocab: int,
    weights: Format | None = None,
    qk_norm: str = "",
    window: int = 0,
) -> DecoderSpec:
    """A Llama-shaped decoder with a tied head."""
    blocks = Blocks(hidden, heads, kv_heads, head_dim, ffn, vocab, weights or Format("float16"), qk_norm=qk_norm)
    return standard_decoder(name, blocks, [window] * layers, tied=True)


@pytest.fixture(scope="session")
def published() -> dict[str, Any]:
    """Makers of published shapes by name: call them with a weight format."""
    return {
        "Llama-3.2-1B": lambda w=None: decoder("Llama-3.2-1B", 2048, 16, 32, 8, 64, 8192, 128256, w),
        "Llama-3.2-3B": lambda w=None: decoder("Llama-3.2-3B", 3072, 28, 24, 8, 128, 8192, 128256, w),
        "Qwen3-0.6B": lambda w=None: decoder("Qwen3-0.6B", 1024, 28, 16, 8, 128, 3072, 151936, w, qk_norm="head"),
        "SmolLM2-135M": lambda w=None: decoder("SmolLM2-135M", 576, 30, 9, 3, 64, 1536, 49152, w),
    }


@pytest.fixture(scope="session")
def make_decoder() -> Any:
    """The maker itself, for small shapes."""
    return decoder


@pytest.fixture(scope="session")
def rk3588() -> Board:
    """Two clusters and a GPU."""
    return load_board("rk3588")


@pytest.fixture(scope="session")
def imx95() -> Board:
    """One cluster and a GPU."""
    return load_board("imx95")
