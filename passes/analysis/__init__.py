"""What a decoder and its kernels compute and move, counted."""
