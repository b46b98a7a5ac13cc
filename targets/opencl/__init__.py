"""Mali GPUs: the OpenCL runtime that the stock TVM wheel lacks, and how to talk to it."""
