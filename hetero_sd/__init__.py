"""hetero_sd: ONNX LLMs on Cortex-A and Mali, with speculative decoding decided by a cost model."""

from __future__ import annotations
