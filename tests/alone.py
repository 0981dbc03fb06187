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

_N_TEXTS, _N_LONG = 100, 3
_MOST_WORDS, _LONG_WORDS = 24, 120  # an emulated CPU computes twenty tokens a second


def texts() -> list[str]:
    """A hundred texts of 1 to 120 words, from the licence."""
    words = (Path(__file__).parents[1] / "LICENSE").read_text("utf-8").split()
    counts = [1 + index % _MOST_WORDS for index in range(_N_TEXTS - _N_LONG)]
    made: list[str] = []
    at = 0
    for count in (*counts, *[_LONG_WORDS] * _N_LONG):
        made.append(" ".join(words[at : at + count]))
        at += count
    return made


def main() -> None:
    """Embed, compare, write."""
    model, precision, file = sys.argv[1:]
    given = texts()
    assert len(given) == _N_TEXTS
    assert all(given)
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
