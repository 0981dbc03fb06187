"""Names of input types: what a text is for, which chooses the prompt put before the text.

A model's prompts may have any names. The names here are those that every client may rely on.
"""

from __future__ import annotations

STANDARD = ("query", "document", "classification", "clustering")
"""Input types that a model without prompts accepts, since each gives the same vector."""

NONE = "none"
"""The input type that puts no prompt before a text; every model accepts it."""

SYNONYMS = {"search_query": "query", "passage": "document", "search_document": "document"}
"""Names that other servers and model cards use, and the input type that each one means."""
