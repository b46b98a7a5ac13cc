"""From the decoder dialect to kernels and packed weights: one table of operators, makers from each backend."""
