"""Writes a model's vectors of a hundred texts, each embedded alone and again in company.

    python -m tests.alone MODEL PRECISION FILE.npz

Exits with status 1 if a text's vector in company has other bits than alone. tests/arm64.py runs
this program on two kinds of CPU and compares the files.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import numpy as np

from matryo import Embedder
from matryo.core.choices import PrecisionChoice

_N_TEXTS = 100
_MOST_CHARACTERS = 1500  # within the 256 tokens of the smallest model


def texts() -> list[str]:
    """A hundred texts of 2 to 1500 characters: paragraphs and lines of the licence."""
    licence = (Path(__file__).parents[1] / "LICENSE").read_text("utf-8")
    paragraphs = [" ".join(part.split()) for part in licence.split("\n\n")]
    lines = [line.strip() for line in licence.splitlines()]
    different = dict.fromkeys(text for text in (*paragraphs, *lines) if text)
    return [text[:_MOST_CHARACTERS] for text in different][:_N_TEXTS]


def main() -> None:
    """Embed, compare, write."""
    model, precision, file = sys.argv[1:]
    given = texts()
    assert len(given) == _N_TEXTS
    with Embedder(model, precision=cast("PrecisionChoice", precision), truncate=True) as embedder:
        alone = np.concatenate([embedder.embed([text]) for text in given])
        company = embedder.embed(given)
        fingerprint = embedder.fingerprint
    np.savez(file, alone=alone, fingerprint=np.array(fingerprint))
    differ = int((alone.view(np.uint32) != company.view(np.uint32)).any(axis=1).sum())
    if differ:
        sys.exit(f"{differ} of {_N_TEXTS} texts have other bits in company than alone")
    sys.stdout.write(f"{fingerprint}: {_N_TEXTS} texts, in company as alone bit for bit\n")


if __name__ == "__main__":
    main()
