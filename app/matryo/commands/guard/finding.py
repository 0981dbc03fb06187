"""Do the vectors of a source belong to the index of a record, and if not, why?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from matryo.commands.agreement import NUMBERS, Comparison, compare
from matryo.commands.guard.causes import BREAKING, NAMES, Cause, find_causes, parts_that_differ
from matryo.commands.guard.facts import Asked, Facts
from matryo.commands.guard.record import Record
from matryo.commands.guard.sources import Source
from matryo.engine.postprocess import FloatArray, l2_normalize

Verdict = Literal["same", "renamed", "drifted", "changed"]

_ROUNDING = frozenset({"identical", "interchangeable"})


def cosine_text(cosine: float) -> str:
    """A cosine rounded down, so that vectors which differ never show 1."""
    return f"{min(math.floor(cosine * 1e7) / 1e7, 0.9999999):.7f}"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the vectors of the record's texts agree for one input type.

    Attributes:
        recorded: the input type of the recorded vectors.
        found: the input type of those that are made now; the same, but for requests that name no
            input type and get another one now.
        is_equal: every bit is the same.
        measured: how the vectors agree; None where they are equal, or cannot be asked for.
    """

    recorded: str
    found: str
    is_equal: bool
    measured: Comparison | None = None

    @property
    def is_rounding(self) -> bool:
        """Whether the vectors may share an index, by what they are."""
        return self.is_equal or (self.measured is not None and self.measured.verdict in _ROUNDING)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found.

    Attributes:
        fingerprints: of the index, and of the vectors that are made now; None where nobody says.
        causes: every difference by name.
        agreements: by input type, that of the index first.
    """

    fingerprints: tuple[str | None, str | None]
    causes: Sequence[Cause]
    agreements: Sequence[Agreement]

    @property
    def verdict(self) -> Verdict:
        """In one word."""
        if any(cause.kind in BREAKING for cause in self.causes):
            return "changed"
        if all(one.is_equal for one in self.agreements):
            old, new = self.fingerprints
            return "same" if old == new or None in (old, new) else "renamed"
        # What cannot be asked for says nothing, unless nothing can be.
        asked = [one for one in self.agreements if one.is_equal or one.measured]
        return "drifted" if asked and all(one.is_rounding for one in asked) else "changed"

    @property
    def least_cosine(self) -> float | None:
        """Of all vectors that were measured; None where none was, or none has the same width."""
        cosines = [one.measured.cosine_min for one in self.agreements if one.measured]
        return min((cosine for cosine in cosines if cosine is not None), default=None)

    @property
    def sentence(self) -> str:
        """The verdict, and what follows from it."""
        verdict = self.verdict
        if verdict == "same":
            return "same: these are the vectors of the index, bit for bit"
        if verdict == "renamed":
            return (
                "renamed: these are the vectors of the index, bit for bit, under another "
                "fingerprint; a caller that expects the old one is refused"
            )
        if verdict == "drifted":
            least = self.least_cosine
            measured = "" if least is None else f" (cosine at least {cosine_text(least)})"
            return (
                f"drifted: the vectors differ from those of the index by rounding alone{measured}; "
                "they may share the index"
            )
        names = ", ".join(dict.fromkeys(NAMES[cause.kind] for cause in self.causes))
        return (
            f"changed: these vectors do not belong to the index ({names}); embed the documents "
            "again, or go back to what made the index"
        )


def examine(record: Record, source: Source, after: Asked | None = None) -> Finding:
    """Compare the vectors that a source makes now with those of an index.

    Nothing is embedded where the digests of both canaries agree.

    Args:
        record: of the index.
        source: the model to ask.
        after: what requests name now; None for what the requests of the index named.

    Raises:
        MatryoError: the source does not answer, or its answer cannot be read.
    """
    found = source.facts(canary=False)
    after = after or record.asked
    if record.facts and found:
        return _by_facts(record, record.facts, source, found, after)
    return _by_vectors(record, source, found)


def _by_facts(
    record: Record, recorded: Facts, source: Source, found: Facts, after: Asked
) -> Finding:
    agreements = [
        _agreement(record, recorded, source, found, *pair) for pair in _pairs(record, found, after)
    ]
    fingerprints = (record.fingerprint, after.fingerprint(found))
    bits_differ = any(
        not one.is_equal
        for one in agreements
        if one.recorded == one.found
        and recorded.prompts.get(one.recorded) == found.prompts.get(one.recorded)
    )
    causes = find_causes(recorded, found, record.asked, after, bits_differ=bits_differ)
    return Finding(fingerprints, causes, agreements)


def _pairs(record: Record, found: Facts, after: Asked) -> list[tuple[str, str]]:
    """Input types whose vectors are compared: those of the index, then each that both have."""
    assert record.facts, "the record has facts"
    own = (
        record.facts.shaping(record.input_type),
        found.shaping(found.input_type(after.input_type)),
    )
    canary = record.facts.canary
    kinds = dict.fromkeys((*record.vectors, *(canary.vectors if canary else ())))
    both = [(kind, kind) for kind in kinds if found.shaping(kind) == kind]
    return list(dict.fromkeys((own, *both)))


def _agreement(
    record: Record, recorded: Facts, source: Source, found: Facts, kind: str, found_kind: str
) -> Agreement:
    """How the vectors of one input type agree: by the digests, else by the vectors."""
    old, new = recorded.canary, found.canary
    if (
        old
        and new
        and (old.version, old.dimensions) == (new.version, new.dimensions)
        and (digest := recorded.digest(kind)) is not None
        and digest == found.digest(found_kind)
    ):
        return Agreement(kind, found_kind, is_equal=True)
    rows = record.vectors.get(kind)
    if rows is None or not (found_kind in found.input_types or _is_default(found, found_kind)):
        return Agreement(kind, found_kind, is_equal=False)
    width = rows.shape[1]
    asked = Asked(
        found_kind if found_kind in found.input_types else None,
        width if found.offers(width) else None,
    )
    made = source.embed(record.texts, asked, truncate=True).vectors
    if made.shape[1] < width and found.dimensions.native == recorded.dimensions.native:
        rows = l2_normalize(rows[:, : made.shape[1]])  # the server gives one size
    return _measured(kind, found_kind, rows, made)


def _is_default(facts: Facts, kind: str) -> bool:
    """Whether requests that name no input type get the prompt of this one."""
    return kind == facts.shaping(facts.default_input_type)


def _measured(
    kind: str,
    found_kind: str,
    rows: FloatArray,
    made: FloatArray,
    numbers: tuple[str, str] = (NUMBERS, NUMBERS),
) -> Agreement:
    if rows.shape == made.shape and np.array_equal(rows, made):
        return Agreement(kind, found_kind, is_equal=True)
    return Agreement(kind, found_kind, is_equal=False, measured=compare(rows, made, numbers))


def _by_vectors(record: Record, source: Source, found: Facts | None) -> Finding:
    """A check without the facts of one side: by the vectors, and by what fingerprints say."""
    origin = record.origin
    kind = record.facts.shaping(record.input_type) if record.facts else record.input_type
    rows = record.vectors[kind]
    asked = Asked(origin.input_type, origin.dimensions, origin.embedding_type)
    if record.facts:  # whose vectors are float32 of native size
        asked = Asked(asked.input_type, asked.dimensions)
    others = source.embed(record.texts, asked)
    made = others.vectors
    if record.facts and made.shape[1] < rows.shape[1]:
        rows = l2_normalize(rows[:, : made.shape[1]])
    agreement = _measured(kind, kind, rows, made)
    told = others.fingerprint and others.fingerprint.rpartition("/")[0]
    fingerprints = (record.fingerprint, f"{told}/{origin.embedding_type}" if told else None)
    causes: list[Cause] = []
    if record.facts:
        causes.append(Cause("facts", "the server says nothing of its model now; vectors count"))
    elif found:
        causes.append(Cause("facts", "the record has none of the model; vectors count"))
    if record.fingerprint and fingerprints[1]:
        causes += parts_that_differ(record.fingerprint, fingerprints[1])
    if rows.shape[1] != made.shape[1]:
        sizes = (str(rows.shape[1]), str(made.shape[1]))
        causes.append(Cause("native_dimensions", "components", *sizes))
    elif not (agreement.is_equal or causes):
        what = "the vectors are others, and the server says nothing of its model"
        causes.append(Cause("unexplained", what))
    return Finding(fingerprints, causes, [agreement])
