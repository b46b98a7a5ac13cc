"""Quantising the float weights of an export: recipe, matrices, scales and codes."""
