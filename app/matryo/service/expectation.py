"""Vectors that a caller expects: of one fingerprint, and of no other."""

from __future__ import annotations

from collections.abc import Sequence

from matryo.core.errors import FingerprintMismatch, InvalidRequest

EXPECT = "x-matryo-expect-fingerprint"
"""The header, and the key of gRPC's metadata, that has the expected fingerprint."""

_BUILD = "build (weights, tokenizer, prompts, output steps or kernels)"
_PARTS = ("model", "precision", _BUILD, "input type", "number of dimensions", "number type")
_OF_THE_MODEL = 3  # parts that a request chooses with its model alone


def expected_of(values: Sequence[str]) -> str | None:
    """The fingerprint that a request expects; None if it expects none.

    Args:
        values: of every header `EXPECT` that the request has.

    Raises:
        InvalidRequest: there are several.
    """
    if len(values) > 1:
        raise InvalidRequest(
            f"The header {EXPECT} came {len(values)} times, and a request expects one fingerprint. "
            "Send the header once."
        )
    return values[0].strip(" \t") if values else None


def check_expected(expected: str | None, fingerprint: str) -> None:
    """Refuse vectors that a caller does not expect.

    Args:
        expected: a fingerprint, or a leading part of one that ends where a `/` stands; one `/` may
            follow. None for a caller that takes any.
        fingerprint: of the vectors.

    Raises:
        InvalidRequest: `expected` is empty, as a variable is that was never set.
        FingerprintMismatch: `expected` is anything else.
    """
    if expected is None:
        return
    wanted = expected.removesuffix("/")
    if not wanted:
        raise InvalidRequest(
            "The expected fingerprint is empty, and would let any vectors pass. Give the "
            f"fingerprint of the index, or leave {EXPECT} (in code and on a command line: the "
            "option) out.",
            code="invalid_value",
        )
    if f"{fingerprint}/".startswith(f"{wanted}/"):
        return
    pairs = zip(_PARTS, wanted.split("/"), fingerprint.split("/"), strict=False)
    differing = [name for name, one, other in pairs if one != other]
    raise FingerprintMismatch(
        expected=expected,
        fingerprint=fingerprint,
        differing=differing,
        by_request=not set(differing).intersection(_PARTS[:_OF_THE_MODEL]),
    )
