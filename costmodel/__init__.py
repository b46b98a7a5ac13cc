"""What work costs on a processor: pure arithmetic, importable on the device; needs neither TVM nor ONNX."""

from __future__ import annotations
