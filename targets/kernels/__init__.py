"""What the kernels of several processors share: signatures, vector arithmetic, elementwise functions.

The loops around them stay with each processor. A CPU kernel walks rows and whole vectors on one thread, or on a few by
T.parallel; an OpenCL kernel binds every output, of any width, to a work-item and splits long sums into several kernels
with scratch between them. TVMScript writes loops as code, so a kernel for both would be two in one file.
"""
