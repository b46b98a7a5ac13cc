"""From exporters' spellings to the canonical operators: one pass a file."""
