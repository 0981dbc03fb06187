"""`matryo embed --compare`: may vectors of two servers, settings or times share an index?

Fingerprints answer that for two of our own servers. This answers it for anything, by the
vectors themselves: an endpoint that speaks OpenAI's protocol, another precision, a file
of vectors made earlier, or the record of an index (see `matryo guard`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import click
import numpy as np

from matryo.build.texts import TEXTS
from matryo.commands.agreement import ADVICE, NUMBERS, Comparison, compare
from matryo.commands.embedding.job import Job
from matryo.commands.endpoint import Endpoint, without_password
from matryo.commands.guard.causes import Cause, find_causes
from matryo.commands.guard.command import report
from matryo.commands.guard.facts import Asked, Facts
from matryo.commands.guard.finding import examine
from matryo.commands.guard.record import read_record
from matryo.commands.guard.sources import Local, Server
from matryo.commands.others import Others, ask_endpoint, load_file
from matryo.commands.sinks.block import Block
from matryo.commands.sinks.output import check_standard_output
from matryo.commands.sources.inputs import open_inputs
from matryo.commands.sources.item import Item, Reading
from matryo.core.choices import PRECISIONS
from matryo.core.errors import InvalidRequest, SettingsInvalid
from matryo.core.printable import escaped
from matryo.core.settings import Settings
from matryo.engine.postprocess import FloatArray
from matryo.service import Options

_URLS, _FILES, _RECORD = ("http://", "https://"), (".npy", ".jsonl"), ".json"
_MOST_TEXTS = 5000


def run(
    settings: Settings,
    names: Sequence[str],
    target: str,
    options: Options,
    *,
    model: str | None,
    as_json: bool,
    reading: Reading,
) -> bool:
    """Compare what these settings give with `target`, and print the result.

    Args:
        settings: as for a server; the first model is the one.
        names: of the inputs, of which the first 5,000 texts are compared; `-` is standard input;
            none for a few built-in texts.
        target: the base URL of an endpoint, a precision, a `.npy` or `.jsonl` file, or the `.json`
            file of a record, which has its own texts.
        options: input type, dimensions and truncation.
        model: its name at the endpoint; None for the same id.
        as_json: print one JSON object in place of sentences.
        reading: how inputs are read.

    Returns:
        Whether the vectors may share an index.

    Raises:
        InvalidRequest: texts, or the file of vectors, cannot be read.
        SettingsInvalid: a target of another kind, a target that is an input, or an endpoint that
            does not answer.
        SetupError: the model cannot be made ready.
    """
    is_url, is_file = target.startswith(_URLS), target.lower().endswith(_FILES)
    if target.lower().endswith(_RECORD) and not is_url:
        return _with_record(settings, names, Path(target), options, as_json=as_json)
    if not (is_url or is_file or target in PRECISIONS):
        raise SettingsInvalid(
            f"--compare {target}: neither a URL (http://...), nor a precision "
            f"({', '.join(PRECISIONS)}), nor a .npy or .jsonl file of vectors, nor a .json record "
            "of an index"
        )
    check_standard_output()
    items, is_part = _read(names, reading, Path(target) if is_file else None)
    if is_url:  # which refuses empty texts, and blank lines are such
        items = [item for item in items if item.text]
    if not items:
        raise InvalidRequest(f"{', '.join(names)}: no texts to compare with")
    theirs: Facts | None = None
    if is_url:
        own = _own(settings, items, options)
        shown = without_password(target)
        with Endpoint(target, f"--compare {shown}", "--compare-model") as endpoint:
            name = model or settings.model[0]
            other = ask_endpoint(endpoint, items, name, options)
            theirs = _facts_of(endpoint, name) if other.fingerprint else None
    elif is_file:
        other = load_file(Path(target), items, is_part=is_part)
        own = _own(settings, items, options)
    else:
        own = _own(settings, items, options)
        changed = _own(settings.model_copy(update={"precision": target}), items, options)
        other, theirs = changed.vectors, changed.facts
    found = compare(own.vectors.vectors, other.vectors, (NUMBERS, other.numbers))
    causes: list[Cause] = []
    if theirs:
        asked = Asked(options.input_type, options.dimensions)
        is_other = found.max_abs_difference != 0
        causes = find_causes(own.facts, theirs, asked, asked, bits_differ=is_other)
    fingerprints = (own.vectors.fingerprint, other.fingerprint)
    order = "other" if other.is_reordered or found.is_shuffled else "same"
    if as_json:
        facts = _facts(found, fingerprints, order, causes)
        click.echo(json.dumps(facts, indent=1))
    else:
        _print(found, fingerprints, order, without_password(target))
        for cause in causes:
            click.echo(f"  {escaped(cause.sentence('here', 'there'))}")
    return found.verdict in ("identical", "interchangeable")


def _with_record(
    settings: Settings, names: Sequence[str], path: Path, options: Options, *, as_json: bool
) -> bool:
    """Compare with the vectors of a record, as `matryo guard check` does."""
    if names:
        raise SettingsInvalid(
            f"--compare {path}: a record of an index has its own texts; leave "
            f"{', '.join(names)} out"
        )
    check_standard_output()
    record = read_record(path)
    with Local(settings) as local:
        asked = local.meant(
            Asked(options.input_type, options.dimensions, record.origin.embedding_type)
        )
        finding = examine(record, local, asked)
    report(record, finding, "this machine", as_json=as_json)
    return finding.verdict != "changed"


def _facts_of(endpoint: Endpoint, model: str) -> Facts | None:
    """What a server says of its model; None if the server says nothing that can be read."""
    try:
        return Server(endpoint, model).facts(canary=False)
    except SettingsInvalid:
        return None


def _facts(
    found: Comparison,
    fingerprints: tuple[str | None, str | None],
    order: str,
    causes: Sequence[Cause],
) -> object:
    return {
        "fingerprints": fingerprints,
        "texts": found.n_texts,
        "order": order,
        "dimensions": found.dimensions,
        "numbers": found.numbers,
        "norms": found.norms,
        "max_abs_difference": found.max_abs_difference,
        "cosine_mean": found.cosine_mean,
        "cosine_min": found.cosine_min,
        "same_neighbours": found.same_neighbours,
        "verdict": found.verdict,
        "causes": [cause.facts("here", "there") for cause in causes],
    }


def _print(
    found: Comparison, fingerprints: tuple[str | None, str | None], order: str, target: str
) -> None:
    rows = [
        ("this", fingerprints[0] or ""),
        (target, fingerprints[1] or "(gives no fingerprint)"),
        ("texts", str(found.n_texts)),
        ("dimensions", " and ".join(map(str, dict.fromkeys(found.dimensions)))),
        ("numbers", " and ".join(dict.fromkeys(found.numbers))),
        ("mean norms", " and ".join(dict.fromkeys(f"{norm:.6g}" for norm in found.norms))),
    ]
    if found.cosine_mean is not None:
        rows.append(("cosine", f"mean {found.cosine_mean:.6f}, least {found.cosine_min:.6f}"))
    if found.same_neighbours is not None:
        rows.append(("same ten nearest", f"{found.same_neighbours:.1%}"))
    if found.is_shuffled:
        rows.append(("order", "another: the same vectors, and not those of the same texts"))
    elif order == "other":
        rows.append(("order", "another; vectors were matched by id"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")
    click.echo(f"{found.verdict}: {ADVICE[found.verdict]}")


def _read(names: Sequence[str], reading: Reading, target: Path | None) -> tuple[list[Item], bool]:
    """The texts to compare, and whether the input has more; `target` must not be an input."""
    if not names:
        return [Item(line, text) for line, text in enumerate(TEXTS, 1)], False
    inputs = open_inputs(names, reading)
    if target and inputs.is_same_file(target):
        raise SettingsInvalid(
            f"--compare {target}: this is the file of texts itself; name a file of vectors"
        )
    items = list(islice(inputs.items(), _MOST_TEXTS + 1))
    if len(items) > _MOST_TEXTS:
        click.echo(f"warning: only the first {_MOST_TEXTS} texts are compared", err=True)
    return items[:_MOST_TEXTS], len(items) > _MOST_TEXTS


@dataclass(frozen=True, slots=True)
class _Own:
    """Vectors that some settings give, and the facts of their model."""

    vectors: Others
    facts: Facts


def _own(settings: Settings, items: Sequence[Item], options: Options) -> _Own:
    """Vectors of these settings."""
    pieces: list[FloatArray] = []

    def keep(block: Block, _items: Sequence[Item]) -> None:
        pieces.append(block.vectors)

    with Local(settings) as own:
        job = Job(own.local, options)
        job.embed(iter(items), keep, lambda _rows, _tokens: None)
        vectors = Others(np.concatenate(pieces), job.choices.fingerprint)
        return _Own(vectors, own.described())
