"""The causes of a difference: each kind of change is named, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matryo.commands.guard.causes import (
    BREAKING,
    NAMES,
    Cause,
    Kind,
    find_causes,
    parts_that_differ,
)
from matryo.commands.guard.facts import Asked, Facts
from matryo.commands.guard.finding import Agreement, Finding

PLAIN: dict[str, Any] = {
    "id": "tiny",
    "precision": "fp32",
    "weights_sha256": "a" * 64,
    "tokenizer_sha256": "b" * 64,
    "output_steps": ("mean_pool", "truncate", "l2_normalize"),
    "settings_key": "0" * 16,
    "sizes": {
        "native": 768,
        "trained": (768, 256),
        "can_be_cut": True,
        "default": 768,
        "strict": False,
    },
    "prompts": {"query": "search_query: ", "document": "search_document: "},
    "input_types": ("query", "document", "none", "passage"),
    "default_input_type": "document",
    "runtime": {
        "matryo": "0.1.0",
        "onnxruntime": "1.31.1",
        "artifact_sha256": "e" * 64,
        "native": 0,
        "machine": "x86_64",
        "cpu": ("AVX2", "FMA3"),
    },
    "builder": 6,
    "trusted": False,
}
Values = dict[str, Any]


def facts(values: Mapping[str, Any]) -> Facts:
    """Facts whose fingerprint follows from them as a server's does."""
    given = dict(values)
    native, sizes = given["runtime"]["native"], given.pop("sizes")
    in_key = {name: given[name] for name in PLAIN if name not in _NOT_IN_KEY}
    parts = (in_key, native, sizes["native"], sizes["trained"])
    key = sha256(repr(parts).encode()).hexdigest()[:16]
    marks = f"{'+native' if native else ''}{'+trusted' if given.pop('trusted') else ''}"
    del given["builder"]
    fingerprint = f"{given['id']}/{given['precision']}/{key}{marks}"
    return Facts(**given, dimensions=sizes, fingerprint=fingerprint)


_NOT_IN_KEY = ("sizes", "input_types", "default_input_type", "runtime", "trusted")


def within(name: str, **changes: object) -> Callable[[Values], Values]:
    """A change inside one of the tables."""
    return lambda values: values | {name: values[name] | changes}


CHANGES: dict[Kind, Callable[[Values], Values]] = {
    "model": lambda values: values | {"id": "other"},
    "precision": lambda values: values | {"precision": "int8"},
    "kernels": within("runtime", native=1),
    "weights": lambda values: values | {"weights_sha256": "c" * 64},
    "tokenizer": lambda values: values | {"tokenizer_sha256": "d" * 64},
    "prompt": within("prompts", document="passage: "),
    "output": lambda values: values | {"output_steps": ("cls_pool", "truncate", "l2_normalize")},
    "settings": lambda values: values | {"settings_key": "1" * 16},
    "build": lambda values: values | {"builder": 7},
    "trust": lambda values: values | {"trusted": True},
    "native_dimensions": within("sizes", native=1024),
    "trained_dimensions": within("sizes", trained=(768, 512, 256)),
    "default_dimensions": within("sizes", default=256),
    "dimensions": within("sizes", strict=True),
    "default_input_type": lambda values: values | {"default_input_type": "query"},
    "input_type": lambda values: values | {"input_types": ("document", "none")},
    "artifact": within("runtime", artifact_sha256="f" * 64),
    "cpu": within("runtime", cpu=("SSE42",)),
    "onnxruntime": within("runtime", onnxruntime="1.32.0"),
    "matryo": within("runtime", matryo="0.2.0"),
}
IN_KEY: frozenset[Kind] = frozenset(
    {
        *("model", "precision", "kernels", "weights", "tokenizer", "prompt", "output"),
        *("settings", "native_dimensions", "trained_dimensions"),
    }
)
RUNTIME: frozenset[Kind] = frozenset({"artifact", "cpu", "onnxruntime", "matryo"})
UNNAMED: frozenset[Kind] = frozenset({"default_dimensions", "default_input_type"})
NAMED: frozenset[Kind] = frozenset({"dimensions", "input_type"})
LEAVE, NAME = Asked(), Asked("query", 300)


def changed(kinds: set[Kind]) -> Facts:
    """The plain facts with these changes."""
    values = dict(PLAIN)
    for kind in kinds:
        values = CHANGES[kind](values)
    return facts(values)


def kinds_of(found: list[Cause]) -> list[Kind]:
    """The kinds of causes, sorted."""
    return sorted(cause.kind for cause in found)


def test_nothing() -> None:
    """Equal facts have no cause, whatever requests name."""
    for asked in (LEAVE, NAME):
        same = facts(PLAIN)
        assert find_causes(same, facts(PLAIN), asked, asked, bits_differ=False) == []


@pytest.mark.parametrize("kind", CHANGES)
def test_alone(kind: Kind) -> None:
    """Each change alone is named, and named alone; the sentence has both values."""
    asked = NAME if kind in NAMED else LEAVE
    bits_differ = kind not in UNNAMED | NAMED | {"prompt", "trust", "trained_dimensions"}
    found = find_causes(facts(PLAIN), changed({kind}), asked, asked, bits_differ=bits_differ)
    assert kinds_of(found) == [kind]
    assert found[0].recorded in found[0].sentence()
    assert found[0].found in found[0].sentence()
    assert found[0].sentence().startswith(NAMES[kind])


@given(
    kinds=st.sets(st.sampled_from(sorted(CHANGES))),
    names=st.booleans(),
    bits_differ=st.booleans(),
    turned=st.booleans(),
)
def test_together(kinds: set[Kind], names: bool, bits_differ: bool, turned: bool) -> None:
    """Several changes at once are all named, in both directions.

    Those of the runtime are where bits differ, those of defaults where requests name nothing, a
    build where nothing else in the fingerprint's key was changed, and an artefact where nothing in
    the fingerprint was.
    """
    asked = NAME if names else LEAVE
    one, other = facts(PLAIN), changed(kinds)
    if turned:
        one, other = other, one
    expected = set(kinds) - (UNNAMED if names else NAMED)
    if not bits_differ:
        expected -= RUNTIME
    if kinds & IN_KEY:
        expected -= {"build"}
    if kinds & (IN_KEY | {"build", "trust"}):  # other fingerprints have other artefacts
        expected -= {"artifact"}
    if turned:  # what was refused then, and is not now, keeps nobody from asking
        expected -= NAMED
    moving = expected - UNNAMED - NAMED - {"prompt", "trust", "trained_dimensions"}
    if bits_differ and not moving:
        expected.add("unexplained")
    found = find_causes(one, other, asked, asked, bits_differ=bits_differ)
    assert kinds_of(found) == sorted(expected)


def test_every_kind_has_a_change() -> None:
    """No kind is left out of these tests."""
    assert {*CHANGES, "facts", "unexplained"} == set(get_args(Kind)) == set(NAMES)


class TestPrompts:
    """Prompts by input type."""

    def found(self, prompts: dict[str, str], asked: Asked = LEAVE) -> list[Cause]:
        """The causes of other prompts."""
        other = facts(PLAIN | {"prompts": prompts})
        return find_causes(facts(PLAIN), other, asked, asked, bits_differ=False)

    def test_texts(self) -> None:
        """Both texts are shown as they are, blanks included."""
        [cause] = self.found(PLAIN["prompts"] | {"query": "query:\n"})
        assert cause.sentence() == (
            "another prompt: of 'query' 'search_query: ' when recorded, 'query:\\n' now"
        )

    def test_each(self) -> None:
        """Every prompt is named; one that went, one that came."""
        found = self.found({"document": "d: ", "clustering": "c: "})
        assert [cause.what for cause in found] == ["of 'query'", "of 'document'", "of 'clustering'"]
        assert (found[0].found, found[2].recorded) == ("none", "none")

    def test_without(self) -> None:
        """A model whose prompts went takes texts as they are; the prompts are the cause."""
        assert kinds_of(self.found({})) == ["prompt", "prompt"]

    def test_empty(self) -> None:
        """An empty prompt is none."""
        one = facts(PLAIN | {"prompts": {"query": "q: "}, "builder": 6})
        other = facts(PLAIN | {"prompts": {"query": "q: ", "document": ""}})
        assert kinds_of(find_causes(one, other, LEAVE, LEAVE, bits_differ=False)) == ["build"]


class TestChoices:
    """What requests name, and what a server makes of it."""

    def test_locked(self) -> None:
        """A server that gives one size refuses the size of the index."""
        sizes = PLAIN["sizes"] | {"can_be_cut": False, "default": 256}
        found = facts(PLAIN | {"sizes": sizes})
        asked = Asked(None, 768)
        causes = find_causes(facts(PLAIN), found, asked, asked, bits_differ=False)
        assert kinds_of(causes) == ["dimensions"]
        assert "768" in causes[0].sentence()
        assert not find_causes(
            facts(PLAIN), found, LEAVE, replace(LEAVE, dimensions=256), bits_differ=False
        )[1:]

    def test_native(self) -> None:
        """A default that is the native size on both sides is no cause beside that size."""
        sizes = PLAIN["sizes"] | {"native": 1024, "default": 1024}
        found = facts(PLAIN | {"sizes": sizes})
        causes = find_causes(facts(PLAIN), found, LEAVE, LEAVE, bits_differ=True)
        assert kinds_of(causes) == ["native_dimensions"]

    def test_other_wishes(self) -> None:
        """Requests that name something else now are a cause by themselves."""
        plain = facts(PLAIN)
        causes = find_causes(plain, plain, LEAVE, Asked("query", 256), bits_differ=False)
        assert kinds_of(causes) == ["dimensions", "input_type"]


def test_fingerprints_alone() -> None:
    """Where facts are missing, the parts of two fingerprints are told apart."""
    one = "tiny/fp32/0123456789abcdef/document/768/float"
    other = "tiny/int8/fedcba9876543210/query/256/float"
    kinds = ["precision", "build", "input_type", "dimensions"]
    assert [cause.kind for cause in parts_that_differ(one, other)] == kinds
    assert parts_that_differ(one, one) == []


@dataclass(frozen=True)
class Measured:
    """A stand-in for a comparison."""

    verdict: str
    cosine_min: float = 0.99999


class TestVerdict:
    """The verdict follows from causes, bits and measurements."""

    def of(
        self,
        kinds: tuple[Kind, ...] = (),
        measured: str | None = None,
        fingerprints: tuple[str | None, str | None] = ("a", "a"),
    ) -> Finding:
        """A finding; None for equal bits."""
        is_equal = measured is None
        one = Agreement("none", "none", is_equal, None if is_equal else Measured(measured))  # type: ignore[arg-type]
        return Finding(fingerprints, [Cause(kind, "x") for kind in kinds], [one])

    def test_words(self) -> None:
        """Each verdict, and its sentence begins with it."""
        cases = [
            (self.of(), "same"),
            (self.of(fingerprints=(None, None)), "same"),
            (self.of(("model",), fingerprints=("a", "b")), "renamed"),
            (self.of(("cpu",), "identical"), "drifted"),
            (self.of(("onnxruntime",), "interchangeable"), "drifted"),
            (self.of(("cpu",), "close"), "changed"),
            (self.of((), "different"), "changed"),
            (self.of(("kernels",), "interchangeable", ("a", "b")), "drifted"),
        ]
        for finding, verdict in cases:
            assert finding.verdict == verdict
            assert finding.sentence.startswith(f"{verdict}: ")

    @pytest.mark.parametrize("kind", sorted(BREAKING))
    def test_breaking(self, kind: Kind) -> None:
        """Some causes part vectors although those of a few texts agree."""
        assert self.of((kind,)).verdict == "changed"
        assert self.of((kind,), "interchangeable").verdict == "changed"
        assert NAMES[kind] in self.of((kind,)).sentence

    def test_unasked(self) -> None:
        """Bits that differ and cannot be measured are no drift."""
        unknown = Agreement("none", "none", is_equal=False)
        assert Finding(("a", "a"), [], [unknown]).verdict == "changed"
        near = Agreement("query", "query", False, Measured("identical"))  # type: ignore[arg-type]
        assert Finding(("a", "a"), [], [near, unknown]).verdict == "drifted"
        same = Finding(("a", "a"), [], [Agreement("query", "query", is_equal=True), unknown])
        assert same.verdict == "drifted"
        assert "cosine" not in same.sentence  # none was measured
