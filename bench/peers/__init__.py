"""Other engines beside Matryo's own, on the same weights, in one interleaved run."""
