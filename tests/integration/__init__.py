"""Tests that `make integration` runs: each needs more than the development environment."""
