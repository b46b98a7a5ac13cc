"""Reading an ONNX file that nobody vouches for: what is checked before anything is read through it."""
