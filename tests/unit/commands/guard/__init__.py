"""`matryo guard`."""
