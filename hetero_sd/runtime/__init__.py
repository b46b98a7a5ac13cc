"""What a bundle carries to the device and runs there.

It imports only the standard library, numpy, the TVM runtime (inside functions: what needs no model starts without it),
tokenizers, jinja2 (only for chat templates), costmodel and the facts of targets. A bundle holds a copy under
``DIR/python`` with the same import paths.
"""
