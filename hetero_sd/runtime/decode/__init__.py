"""Generation and speculation over the model protocol, with sampling and the record of a run."""
