"""Where each operator runs: decisions with reasons, and the cut into segments."""
