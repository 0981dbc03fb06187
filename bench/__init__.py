"""Measurements: not tests, and nothing here asserts a time."""
