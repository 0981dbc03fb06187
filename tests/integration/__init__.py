"""Tests with servers and engines of others; `make integration` runs them, `make test` does not."""
