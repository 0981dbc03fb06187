"""Words that settings, manifests and artefacts share."""

from __future__ import annotations

from typing import Literal, get_args

Precision = Literal["fp32", "int8", "q8", "q4"]
"""Numbers that a model computes with; docs/precision.md says what each costs and gains."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

PrecisionChoice = Precision | Literal["auto"]
"""What an operator may ask for: `auto` is int8 where the model offers int8, else fp32."""

TokenInput = Literal["cl100k_base", "model"]
"""Whose ids callers send in place of text: OpenAI's, or the served model's own."""
