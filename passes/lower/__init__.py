"""From the decoder dialect to kernels and packed weights, one table a processor."""
