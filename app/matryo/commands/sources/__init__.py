"""Texts of files: lines, JSON lines, CSV and Parquet; of folders, globs, URLs and pipes."""
