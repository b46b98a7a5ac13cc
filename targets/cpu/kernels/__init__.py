"""TIR kernels for one CPU: plain loops over vectors, the same schedules for NEON, AVX2 and AVX-512.

All kernels keep two promises. A row of the result does not depend on how many rows are computed with it (each
output has one accumulator, reduced in one order, with an explicit fused multiply-add), so speculation is
lossless bit for bit. And weights are read once, in order, from panels of `CpuTile.panel` columns.
"""
