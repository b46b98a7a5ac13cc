"""The decoder in Relax: the operators of our own, the translation from ONNX, and one pass a file."""
