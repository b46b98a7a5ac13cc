"""CONTRIBUTING's recipes, tried: what each says has to be added is all that is added here, and it works.

A drafter: tests/hetero_sd/runtime/decode/drafters/test_protocol.py. A kind of processor:
tests/hetero_sd/runtime/test_numpy_backend.py. A Relax pass: tests/passes/test_relax_passes.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import tirx as T

from costmodel import format as weight_formats
from costmodel.cpu_cycles import kernel_cycles
from costmodel.format import Format, WeightType
from costmodel.processor import GpuSlice, processors
from costmodel.roofline import Roofline
from costmodel.standard_decoder import Blocks, standard_decoder
from costmodel.work import step_ops
from hetero_sd.cli import main
from passes.lower import operators
from passes.lower.operators import Lower, Operator
from passes.relax import dialect as D
from targets.backend import backend
from targets.boards import load_board
from targets.cpu.kernels import table
from targets.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
RPI5 = (ROOT / "targets" / "boards" / "rpi5.toml").read_text("utf-8")
CONFIG = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
    "num_key_value_heads": 8, "num_hidden_layers": 16, "vocab_size": 128256, "tie_word_embeddings": True,
    "head_dim": 64,
}  # fmt: skip


def tokens_per_s(folder: Path, board: str, capsys: pytest.CaptureFixture[str]) -> float:
    """What `predict` says of a 1 B shape in int8, alone."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    assert main(["predict", str(folder / "config.json"), "--board", board, "--weights", "int8", "--json"]) == 0
    return float(json.loads(capsys.readouterr().out)["leading"][0]["tokens_per_s"])


def test_a_board_is_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the bandwidth, everything else equal: reading the weights takes twice as long, arithmetic does not."""
    slow = RPI5.replace('name = "rpi5"', 'name = "slow"').replace("[13.7, 12.7, 11.6, 10.5]", "[6.85, 6.35, 5.8, 5.25]")
    slow = slow.replace("value = 13.7", "value = 6.85").replace("value = 10.5", "value = 5.25")
    (tmp_path / "slow.toml").write_text(slow)
    ratio = tokens_per_s(tmp_path, "rpi5", capsys) / tokens_per_s(tmp_path, str(tmp_path / "slow.toml"), capsys)
    assert 1.7 < ratio < 2  # 1.79: most of a decode step in int8 waits for reads
    (tmp_path / "slow.toml").write_text(slow.replace("value = 5.25, kind", "value = 5.25, kin"))
    assert main(["predict", str(tmp_path / "config.json"), "--board", str(tmp_path / "slow.toml")]) == 2
    assert "slow.toml" in capsys.readouterr().err


def test_a_core_is_a_table_of_the_board_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A core that is in no table of ours, once out of order and once in order."""
    cores = (ROOT / "targets" / "cpu" / "cores.toml").read_text("utf-8")
    table = cores.split("[cortex-a76]\n")[1].split("\n[")[0].replace('"cortex-a76"', '"own"', 1)
    given = next(line for line in table.splitlines() if line.startswith("in_order"))
    found = {}
    for in_order in ("false", "true"):
        text = RPI5.replace('core = "cortex-a76"\n', "").replace('name = "rpi5"', f'name = "own-{in_order}"')
        head, tail = text.split("\n[dram]")
        own = f'in_order = {{ value = {in_order}, kind = "assumed", source = "a test" }}'
        core = f"\n[clusters.core]\n{table.replace(given, own)}"
        board = tmp_path / f"{in_order}.toml"
        board.write_text(f"{head}{core}\n[dram]{tail}")
        found[in_order] = tokens_per_s(tmp_path, str(board), capsys)
    assert found["true"] < 0.99 * found["false"]


def test_an_operator_is_a_name_an_entry_and_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """x * x on the CPU, from the dialect to a library; a kind of processor without the kernel refuses it."""
    square = D._operator("hsd.square", lambda attrs, x: x, lambda bb, attrs, x: bb.emit(relax.op.multiply(x, x)))
    monkeypatch.setitem(operators.OPERATORS, "hsd.square", Operator("square", operators._n_width, "square_{n}"))
    bb, x = relax.BlockBuilder(), relax.Var("x", D.tensor((1, 3, 16)))
    with bb.function("main", [x]):
        with bb.dataflow():
            out = bb.emit_output(square(x))
        bb.emit_func_output(out)
    core = load_board("host", measure=False).clusters[0].core
    cpu = backend("cpu")
    with pytest.raises(UserError, match="the CPU has no kernel square"):
        Lower(cpu, cpu.tile(core, None))(bb.get())

    def make_square(tile: Any, n: int, width: int) -> Any:
        @T.prim_func(s_tir=True)
        def square(x: T.Buffer((1, n, width), "float32"), y: T.Buffer((1, n, width), "float32")):  # type: ignore[valid-type]
            T.func_attr({"tirx.noalias": True})
            for m, i in T.grid(n, width):
                with T.sblock("value"):
                    vm, vi = T.axis.remap("SS", [m, i])
                    y[0, vm, vi] = x[0, vm, vi] * x[0, vm, vi]

        return square

    monkeypatch.setitem(table.MAKERS, "square", make_square)
    lowered = Lower(cpu, cpu.tile(core, None))(bb.get())
    vm = relax.VirtualMachine(relax.build(lowered, cpu.tvm_target(core)), tvm.cpu())
    given = np.random.default_rng(0).standard_normal((1, 3, 16)).astype(np.float32)
    found = vm["main"](tvm.runtime.tensor(given)).numpy()
    np.testing.assert_array_equal(found, given * given)
    assert np.abs(found - given).max() > 0.1


def test_a_weight_type_is_priced_from_its_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three bits in blocks of 32 with float16 scales: 3.5 bits a weight against int4's 4.5, and one operation more."""
    with pytest.raises(UserError, match="weight format 'int3' is not known"):
        Format("int3", block=32, scale_dtype="float16")
    monkeypatch.setitem(weight_formats.WEIGHT_TYPES, "int3", WeightType(3, True, cpu_unpack=7.0, gpu_unpack=6.0))
    with pytest.raises(UserError, match="int8 and int4 and int2 and nf4 and fp4 and int3 have scales"):
        Format("int3")
    matrix_bytes, cycles, gpu_s = {}, {}, {}
    board = load_board("rk3588")
    gpu = next(p for p in processors(board) if isinstance(p, GpuSlice))
    for name in ("int3", "int4"):
        stored = Format(name, block=32, scale_dtype="float16")
        spec = standard_decoder(name, Blocks(1024, 16, 8, 64, 4096, 32000, stored), [0], tied=True)
        op = next(op for op in step_ops(spec, 16, 128) if op.kind == "linear" and op.operator.columns == 4096)
        matrix_bytes[name] = op.operator.matrix_bytes
        cycles[name] = kernel_cycles(op, board.clusters[0].core, 1).cycles
        gpu_s[name] = Roofline(board).op(op, gpu)
    assert matrix_bytes == {"int3": 1024 * 4096 * 7 // 16, "int4": 1024 * 4096 * 9 // 16}
    assert cycles["int3"] != cycles["int4"]
    assert gpu_s["int3"] != gpu_s["int4"]
