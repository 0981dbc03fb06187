"""Why vectors are others than before: every difference of two sets of facts, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from matryo.commands.guard.facts import Asked, Facts, Runtime

Kind = Literal[
    "model",
    "precision",
    "kernels",
    "weights",
    "tokenizer",
    "prompt",
    "output",
    "settings",
    "build",
    "trust",
    "native_dimensions",
    "trained_dimensions",
    "default_dimensions",
    "dimensions",
    "default_input_type",
    "input_type",
    "artifact",
    "cpu",
    "onnxruntime",
    "matryo",
    "facts",
    "unexplained",
]

BREAKING: frozenset[Kind] = frozenset(
    {
        *("precision", "weights", "tokenizer", "prompt", "output", "settings"),
        *("native_dimensions", "default_dimensions", "dimensions"),
        *("default_input_type", "input_type"),
    }
)
"""Causes that part vectors whatever a few texts show; those of the other causes are measured."""

NAMES: dict[Kind, str] = {
    "model": "another model",
    "precision": "another precision",
    "kernels": "other kernels",
    "weights": "other weights",
    "tokenizer": "another tokenizer",
    "prompt": "another prompt",
    "output": "other output steps",
    "settings": "other settings of the model",
    "build": "another build",
    "trust": "a build against the checkpoint's own files",
    "native_dimensions": "another native size",
    "trained_dimensions": "other trained sizes",
    "default_dimensions": "another default size",
    "dimensions": "another size",
    "default_input_type": "another default input type",
    "input_type": "another input type",
    "artifact": "another artefact of the same build, as another CPU makes it",
    "cpu": "another CPU",
    "onnxruntime": "another ONNX Runtime",
    "matryo": "another Matryo",
    "facts": "no facts",
    "unexplained": "a change that no fact explains",
}
"""Each cause in a few words."""

_MOVING: frozenset[Kind] = frozenset(
    {
        *("model", "precision", "kernels", "weights", "tokenizer", "output", "settings", "build"),
        *("native_dimensions", "artifact", "cpu", "onnxruntime", "matryo"),
    }
)
"""Causes that can move the bits of a text with the same prompt."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One difference.

    Attributes:
        kind: of the difference.
        what: differs, in words.
        recorded: its value when the index was made, in words; empty for a cause without values.
        found: its value now.
    """

    kind: Kind
    what: str
    recorded: str = ""
    found: str = ""

    def sentence(self, then: str = "when recorded", now: str = "now") -> str:
        """The difference in one line, with words for the two sides."""
        if not (self.recorded or self.found):
            return f"{NAMES[self.kind]}: {self.what}"
        return f"{NAMES[self.kind]}: {self.what} {self.recorded} {then}, {self.found} {now}"

    def facts(self, then: str = "when recorded", now: str = "now") -> dict[str, str]:
        """The difference as an object of JSON."""
        return {
            "kind": self.kind,
            "sentence": self.sentence(then, now),
            "recorded": self.recorded,
            "found": self.found,
        }


def find_causes(
    recorded: Facts, found: Facts, before: Asked, after: Asked, *, bits_differ: bool
) -> list[Cause]:
    """Name everything that makes vectors of two times, or two servers, differ.

    Args:
        recorded: of the model that made the index.
        found: of the model that answers now.
        before: what the requests of the index named.
        after: what requests name now; equal to `before` where the same requests are sent.
        bits_differ: whether any bit differs of vectors of the same texts with the same prompt.
            CPU and libraries are no cause where none does.

    Returns:
        One cause for each difference, the model's own first; none if nothing differs.
    """
    causes = [
        Cause(kind, what, *map(str, values))
        for kind, what, of in _FACTS
        if len(set(values := (of(recorded), of(found)))) > 1
    ]
    causes += _prompts(recorded, found)
    if recorded.key != found.key and all(cause.kind == "trust" for cause in causes):
        causes.append(Cause("build", "key", recorded.key, found.key))
    causes += _choices(recorded, found, before, after)
    if bits_differ:
        causes += _runtimes(recorded, found)
        if not any(cause.kind in _MOVING for cause in causes):
            what = "a machine that says the same of itself and of the model gives other bits"
            causes.append(Cause("unexplained", what))
    return causes


def parts_that_differ(recorded: str, found: str) -> list[Cause]:
    """The causes that two whole fingerprints show by themselves, where facts are missing."""
    kinds: tuple[tuple[Kind, str], ...] = (
        ("model", "id"),
        ("precision", "products in"),
        ("build", "key of weights, prompts, settings and kernels"),
        ("input_type", "the vectors are those of"),
        ("dimensions", "components"),
    )
    pairs = zip(kinds, recorded.split("/"), found.split("/"), strict=False)
    return [Cause(kind, what, one, other) for (kind, what), one, other in pairs if one != other]


def _kernels(facts: Facts) -> str:
    native = facts.runtime.native
    return f"matryo-native (interface {native})" if native else "ONNX Runtime"


_FACTS: tuple[tuple[Kind, str, Callable[[Facts], object]], ...] = (
    ("model", "id", lambda facts: facts.id),
    ("precision", "products in", lambda facts: facts.precision),
    ("kernels", "operators of", _kernels),
    ("weights", "sha256", lambda facts: facts.weights_sha256),
    ("tokenizer", "sha256", lambda facts: facts.tokenizer_sha256),
    ("output", "steps", lambda facts: ", ".join(facts.output_steps)),
    ("settings", "key of architecture, output and tokenizer", lambda facts: facts.settings_key),
    ("native_dimensions", "components", lambda facts: facts.dimensions.native),
    (
        "trained_dimensions",
        "the model can be cut to",
        lambda facts: ", ".join(map(str, facts.dimensions.trained)),
    ),
    (
        "trust",
        "the manifest and those files",
        lambda facts: "contradict each other" if facts.is_trusted else "agree",
    ),
)


def _prompts(recorded: Facts, found: Facts) -> Iterator[Cause]:
    """Prompts by input type; no prompt and an empty one shape vectors alike."""
    for input_type in dict.fromkeys((*recorded.prompts, *found.prompts)):
        texts = [facts.prompts.get(input_type, "") for facts in (recorded, found)]
        if texts[0] != texts[1]:
            words = [repr(text) if text else "none" for text in texts]
            yield Cause("prompt", f"of '{input_type}'", *words)


def _choices(recorded: Facts, found: Facts, before: Asked, after: Asked) -> Iterator[Cause]:
    """What requests get that name the same, or nothing."""
    named = after.input_type
    if recorded.prompts and found.prompts:
        types = (recorded.input_type(before.input_type), found.input_type(named))
        if types[0] != types[1]:
            kind: Kind = "input_type" if named else "default_input_type"
            yield Cause(kind, "texts are taken for", *types)
    is_told = recorded.prompts.get(named or "", "") != found.prompts.get(named or "", "")
    if named and named not in found.input_types and not is_told:
        yield Cause("input_type", f"requests for '{named}' are refused now")
    sizes = (recorded.size(before.dimensions), found.size(after.dimensions))
    natives = (recorded.dimensions.native, found.dimensions.native)
    if sizes[0] != sizes[1] and sizes != natives:
        kind = "dimensions" if after.dimensions else "default_dimensions"
        yield Cause(kind, "components", *map(str, sizes))
    if after.dimensions and not found.offers(after.dimensions):
        yield Cause("dimensions", f"requests for {after.dimensions} components are refused now")


def _runtimes(recorded: Facts, found: Facts) -> Iterator[Cause]:
    """What computed the vectors."""
    one, other = recorded.runtime, found.runtime
    if recorded.fingerprint == found.fingerprint and one.artifact_sha256 != other.artifact_sha256:
        yield Cause("artifact", "sha256", one.artifact_sha256, other.artifact_sha256)
    if (one.machine, set(one.cpu)) != (other.machine, set(other.cpu)):
        yield Cause("cpu", "machine", _machine(one), _machine(other))
    if one.onnxruntime != other.onnxruntime:
        yield Cause("onnxruntime", "version", one.onnxruntime, other.onnxruntime)
    if one.matryo != other.matryo:
        yield Cause("matryo", "version", one.matryo, other.matryo)


def _machine(runtime: Runtime) -> str:
    features = ", ".join(runtime.cpu) or "no vector instructions known"
    return f"{runtime.machine} ({features})"
