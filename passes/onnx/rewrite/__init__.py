"""From exporters' spellings to the canonical operators: one pass a file.

No passes but what several of them use: attention_sites (where an export attends), local_functions (the functions of the
canonical form), sort_nodes (one order of the nodes) and write_attention (the canonical attention).
"""
