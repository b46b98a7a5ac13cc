"""Reading an untrusted ONNX file: what is checked before anything is read through it."""
