"""Quantising float exports: what the user asks for, what it costs, and repeating it for `verify`."""
