"""Cycles of the integer kernels' inner loops on Arm cores, as LLVM's scheduling models have them; no board is needed.

    python benchmarks/arm_static.py [--write]

It compiles linear_int for each core and runs llvm-mca (LLVM 18 or later) on the loop that multiplies. --write puts the
table into benchmarks/arm_static.md. Data is in the level-1 cache in such a model; what memory takes comes on top.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from inner_loops import K, Kernel, Loop, assembly, hot_loop  # noqa: E402

from targets.cpu import core  # noqa: E402
from targets.cpu.dot import STEP  # noqa: E402
from targets.errors import UserError  # noqa: E402

# core -> (core whose scheduling model is asked, micro-operations dispatched a cycle or 0 for the model's own number).
# LLVM takes Cortex-A57's model for Cortex-A76 and A78. Nearer are Neoverse N1's and N2's: N1 is made from Cortex-A76,
# N2 from Cortex-A710, which follows A78. LLVM has N1 dispatch 3, Arm's guide for the core 8 (recalled, not read again).
MODELS = {
    "cortex-a53": ("cortex-a53", 0),
    "cortex-a55": ("cortex-a55", 0),
    "cortex-a72": ("cortex-a72", 0),
    "cortex-a76": ("neoverse-n1", 8),
    "cortex-a78": ("neoverse-n2", 0),
    "cortex-a510": ("cortex-a510", 0),
    "cortex-a710": ("cortex-a710", 0),
    "cortex-x2": ("cortex-x2", 0),
}
ROWS = (1, 2, 4, 5, 8, 12)
_ITERATIONS = 200
FOLDERS = Path("/usr/lib")  # where Debian has LLVM's programs, in a folder for each version
_OLDEST = 18  # the first LLVM with a model of Cortex-A510

NOTES = """\
* cycles: of one step (32 values of k) of a panel (16 columns) for all n rows, by llvm-mca; model: those that the cost
  model counts for it. instr and stack: instructions of the loop for one step of one tile, and of the whole loop those
  that touch the stack.
* of peak: multiply-adds a cycle over the core's peak in targets/cpu/cores.toml. GB/s: weights and scales read a
  second at 1 GHz; what DRAM gives is another matter.
* LLVM orders instructions for Cortex-A72, A76 and A78 as for Cortex-A57. Cycles of A76 are those of Neoverse N1, of A78
  those of Neoverse N2.
* Cortex-A55: LLVM's model holds the load pipe for six cycles for `ldp q`, which is most of what the table shows at
  n = 1.
* SMMLA needs operands of two columns, which are interleaved in registers from the words of one column that all
  kernels read, and pairs of rows; 1, 2 and odd numbers of rows are multiplied with SDOT.
* It is the model family that also ordered the instructions: a comparison of kernels, not a measurement.
"""


def main() -> None:
    """Print the table, or the line that says what is missing."""
    parser = argparse.ArgumentParser(description="cycles of integer kernels on Arm cores by llvm-mca")
    parser.add_argument("--write", action="store_true", help="write benchmarks/arm_static.md")
    options = parser.parse_args()
    try:
        program, version = find_llvm_mca()
        text = table(program, version)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    if options.write:
        (ROOT / "benchmarks" / "arm_static.md").write_text(text, "utf-8")
    print(text, end="")


def find_llvm_mca() -> tuple[str, int]:
    """The newest llvm-mca here, and its version.

    Raises:
        UserError: there is none, or it is too old to know the cores.
    """
    named = [shutil.which("llvm-mca"), *(str(path) for path in FOLDERS.glob("llvm-*/bin/llvm-mca"))]
    found = []
    for program in filter(None, named):
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
        number = re.search(r"LLVM version (\d+)", said)
        if number:
            found.append((int(number[1]), program))
    version, program = max(found, default=(0, ""))
    if version < _OLDEST:
        has = f"the newest llvm-mca here is {version}" if version else "there is no llvm-mca here"
        raise UserError(f"{has}; {_OLDEST} or later is needed: install LLVM's tools, Debian's package llvm-19 has them")
    return program, version


def cycles_of(program: str, name: str, loop: Loop) -> float:
    """Cycles of one iteration of a loop on a core, in the steady state."""
    body = "\n".join(line for line in loop.instructions if not re.match(r"(b|b\.\w+|cbn?z|tbn?z)\s", line))
    model, dispatched = MODELS[name]
    options = [
        "-mtriple=aarch64",
        f"-mcpu={model}",
        f"-dispatch={dispatched}",
        "-mattr=+dotprod,+i8mm,+fullfp16",
        "-resource-pressure=0",
    ]
    options += ["-instruction-info=0", f"-iterations={_ITERATIONS}"]
    done = subprocess.run([program, *options], input=body, capture_output=True, text=True, check=False)
    total = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    if done.returncode != 0 or total is None:
        raise UserError(f"{program} cannot analyse the loop for {name}: {done.stderr.strip().splitlines()[:1]}")
    return int(total[1]) / _ITERATIONS


def modelled(kernel: Kernel) -> tuple[float, float]:
    """Cycles in the cost model: of the same step of a panel, and of making the codes of a step of one row."""
    from costmodel.cpu_cycles import kernel_cycles
    from costmodel.format import INT8, Format
    from costmodel.operators import Operator
    from costmodel.place import FFN, Part
    from costmodel.work import Op

    steps = 64
    stored = Format(f"int{kernel.bits}", STEP, "float16", kernel.zeros)

    def whole(panels: int) -> float:
        columns = panels * kernel.tile.panel
        operator = Operator("linear", "up", Part(FFN), columns, k=steps * STEP, format=stored, activations=INT8)
        return kernel_cycles(Op(operator, kernel.n, 0.0, ()), kernel.core, 1).cycles

    of_panel = whole(9) - whole(8)
    return of_panel / steps, (whole(8) - 8 * of_panel) / (steps * kernel.n)


def table(program: str, version: int) -> str:
    """Markdown of all kernels."""
    lines = [
        "# Inner loops of integer kernels on Arm cores",
        "",
        f"Written by benchmarks/arm_static.py with llvm-mca {version}.",
        "",
        "| core | bits | n | tile: rows x columns | instr | stack | cycles | model | MAC/cycle | of peak | GB/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in MODELS:
        for bits in (8, 4):
            for n in ROWS:
                lines.append(row(program, Kernel(core(name), bits, n), name))
    lines += ["", "| core | cycles for the codes of 32 activations | model |", "|---|---|---|"]
    lines += [row_of_codes(program, name) for name in MODELS]
    return "\n".join(lines) + "\n\n" + NOTES


def row_of_codes(program: str, name: str) -> str:
    """One line of the table of quantise_rows."""
    from targets.cpu.kernels.linear_int import quantise_rows

    kernel = Kernel(core(name), 8, 4)
    loop = hot_loop(assembly(kernel.core, quantise_rows(kernel.tile, kernel.n, K, "int8")), vectors_of_codes)
    cycles = cycles_of(program, name, loop) / (vectors_of_codes(loop) / (STEP / 4))
    return f"| {name} | {cycles:.0f} | {modelled(kernel)[1]:.0f} |"


def vectors_of_codes(loop: Loop) -> int:
    """Vectors of four numbers that a loop of quantise_rows makes whole."""
    return loop.count("fcvtzs")


def row(program: str, kernel: Kernel, name: str) -> str:
    """One line of the table."""
    loop = hot_loop(kernel.assembly(), kernel.multiplications)
    steps = kernel.steps(loop)
    cycles = cycles_of(program, name, loop) / steps * kernel.tiles
    panel = kernel.tile.panel
    products = kernel.n * panel * STEP / cycles
    peak = products / (kernel.core.int8_ops_per_cycle / 2)
    read = (panel * STEP * kernel.bits / 8 + 2 * panel) / cycles
    tile = f"{kernel.dot} {kernel.rows} x {4 * kernel.vectors}"
    counted = f"{len(loop.instructions) / steps:.0f} | {loop.stack}"
    figures = f"{cycles:.0f} | {modelled(kernel)[0]:.0f} | {products:.1f} | {100 * peak:.0f} % | {read:.1f}"
    return f"| {name} | {kernel.bits} | {kernel.n} | {tile} | {counted} | {figures} |"


if __name__ == "__main__":
    main()
