"""What the kernels of several processors share."""
