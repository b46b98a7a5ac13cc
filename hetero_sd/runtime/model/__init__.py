"""The compiled decoder on the device: segments, weights, caches, threads."""
