"""Benchmarks. They measure and print; they are not tests, and none of them asserts a time."""
