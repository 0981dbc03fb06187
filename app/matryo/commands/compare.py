"""`matryo embed --compare`: may vectors of two servers, settings or times share an index?

Fingerprints answer that for two of our own servers. This answers it for anything, by the
vectors themselves: an endpoint that speaks OpenAI's protocol, another precision, or a file
of vectors made earlier.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import click
import numpy as np

from matryo.build.texts import TEXTS
from matryo.commands.agreement import ADVICE, NUMBERS, Comparison, compare
from matryo.commands.embedding.job import embed_items
from matryo.commands.endpoint import Endpoint
from matryo.commands.others import Others, ask_endpoint, load_file
from matryo.commands.sinks.block import Block
from matryo.commands.sinks.output import check_standard_output
from matryo.commands.sources.inputs import open_inputs
from matryo.commands.sources.item import Item, Reading
from matryo.core.choices import PRECISIONS
from matryo.core.errors import InvalidRequest, SettingsInvalid
from matryo.core.settings import Settings
from matryo.engine.postprocess import FloatArray
from matryo.service import Options

_URLS, _FILES = ("http://", "https://"), (".npy", ".jsonl")
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
        target: the base URL of an endpoint, a precision, or a `.npy` or `.jsonl` file.
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
    if not (is_url or is_file or target in PRECISIONS):
        raise SettingsInvalid(
            f"--compare {target}: neither a URL (http://...), nor a precision "
            f"({', '.join(PRECISIONS)}), nor a .npy or .jsonl file of vectors"
        )
    check_standard_output()
    items, is_part = _read(names, reading, Path(target) if is_file else None)
    if is_url:  # which refuses empty texts, and blank lines are such
        items = [item for item in items if item.text]
    if not items:
        raise InvalidRequest(f"{', '.join(names)}: no texts to compare with")
    other: Others
    if is_url:
        one, fingerprint = _own(settings, items, options)
        with Endpoint(target, f"--compare {target}", "--compare-model") as endpoint:
            other = ask_endpoint(endpoint, items, model or settings.model[0], options)
    elif is_file:
        other = load_file(Path(target), items, is_part=is_part)
        one, fingerprint = _own(settings, items, options)
    else:
        one, fingerprint = _own(settings, items, options)
        changed = settings.model_copy(update={"precision": target})
        other = Others(*_own(changed, items, options))
    found = compare(one, other.vectors, (NUMBERS, other.numbers))
    fingerprints = (fingerprint, other.fingerprint)
    order = "other" if other.is_reordered or found.is_shuffled else "same"
    if as_json:
        click.echo(json.dumps(_facts(found, fingerprints, order), indent=1))
    else:
        _print(found, fingerprints, order, target)
    return found.verdict in ("identical", "interchangeable")


def _facts(found: Comparison, fingerprints: tuple[str, str | None], order: str) -> object:
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
    }


def _print(
    found: Comparison, fingerprints: tuple[str, str | None], order: str, target: str
) -> None:
    rows = [
        ("this", fingerprints[0]),
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


def _own(settings: Settings, items: Sequence[Item], options: Options) -> tuple[FloatArray, str]:
    """Vectors of these settings, and their fingerprint."""
    pieces: list[FloatArray] = []

    def keep(block: Block, _items: Sequence[Item]) -> None:
        pieces.append(block.vectors)

    fingerprint = embed_items(settings, items, keep, options)
    return np.concatenate(pieces), fingerprint
