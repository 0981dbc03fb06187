"""Tests that need servers or large packages; `make integration` runs them."""
