"""Vectors to files: JSON lines, `.npy` and Parquet, written aside and resumed exactly."""
