"""How the graph changes: ONNX in, Relax, kernels out. `pipeline.py` is the table of contents."""

from __future__ import annotations
