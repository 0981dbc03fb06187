"""The texts that builds and `matryo verify` try a model with."""

from __future__ import annotations

TEXTS = (
    "search_query: who wrote the first compiler?",
    "search_document: A compiler translates source code into machine code, and reports errors.",
    "The quick brown fox jumps over the lazy dog; 42 times, in 3.14 seconds.",
    "Der Fluss entspringt in den Bergen und mündet nach 865 km ins Meer.",
    "ベクトル検索は意味の近い文書を見つけます。",
    "def mean(xs): return sum(xs) / len(xs)",
    "a",
)
"""Texts of several kinds that every build is checked with."""
