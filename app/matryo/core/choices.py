"""Values that settings, manifests and artefacts have in common."""

from __future__ import annotations

from typing import Literal, get_args

Precision = Literal["fp32", "int8", "q8", "q4"]
"""Number format of a model's matrix products; docs/precision.md compares the formats."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

PrecisionChoice = Precision | Literal["auto"]
"""What an operator may choose: `auto` means int8 if the model offers int8, else fp32."""

Kernels = Literal["onnxruntime", "native"]
"""Whose operators compute the layers: ONNX Runtime's alone, or also those of matryo-native."""

KernelsChoice = Kernels | Literal["auto"]
"""What an operator may choose: `auto` means native if matryo-native is there, and fast here."""

NATIVE_PRECISIONS: frozenset[Precision] = frozenset(("fp32", "int8"))
"""Precisions that matryo-native has operators for; the others always use ONNX Runtime's."""

TokenInput = Literal["cl100k_base", "model"]
"""Vocabulary of token ids that callers send as input: OpenAI's, or the served model's own."""
