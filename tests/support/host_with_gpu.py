"""A board for tests on PoCL."""

from __future__ import annotations

from targets.boards import load_board
from targets.device import Board
from targets.read_board import board_from_json


def host_with_gpu() -> Board:
    """This machine, with a GPU as its description says: an OpenCL driver on the CPU stands for it."""
    host = load_board("host", measure=False).to_json()
    gpu = load_board("rk3566").to_json()["gpu"]
    return board_from_json({**host, "gpu": gpu, "name": "host_with_gpu"})
