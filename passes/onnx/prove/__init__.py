"""What an export is shown to be before and after it is rewritten.

Proofs by running a piece on chosen numbers: run_subgraph, and prove_mask, prove_rope and prove_rotation, which the
passes of rewrite/ call. Two passes that check the whole graph: check_logits and check_vocabulary, whose operators stand
in vocabulary. What both folders ask of a graph: weight_expression, gate, context_limit.
"""
