"""What pieces of an export compute, shown by running them on chosen numbers, and what the result must be."""
