"""`matryo embed --compare`: may vectors of two servers, settings or times share an index?

Fingerprints answer that for two of our own servers. This answers it for anything, by the
vectors themselves: an endpoint that speaks OpenAI's protocol, another precision, or a file
of vectors made earlier.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import click
import httpx2
import numpy as np

from matryo.build.check import TEXTS
from matryo.commands.embed import embed_items
from matryo.commands.texts import Item, open_source
from matryo.core.choices import PRECISIONS
from matryo.core.errors import InvalidRequest, SettingsInvalid
from matryo.core.settings import Settings
from matryo.engine.postprocess import FloatArray, l2_normalize
from matryo.service import Options

Verdict = Literal["identical", "interchangeable", "close", "different"]

_URLS, _FILES = ("http://", "https://"), (".npy", ".jsonl")
_TEXTS_OF_REQUEST = 32
_MOST_TEXTS = 5000
_TIMEOUT_S = 120
_IDENTICAL = 1e-6
_INTERCHANGEABLE, _CLOSE = 0.999, 0.98
_NEIGHBOURS = 10

_ADVICE: dict[Verdict, str] = {
    "identical": "the same vectors: one may take the other's place",
    "interchangeable": "they differ by less than can be seen in retrieval: they may share an index",
    "close": "the same model, rounded otherwise: queries of one find documents of the other, but "
    "one index should hold vectors of one kind; embed the documents again when you can",
    "different": "another model, prefix, or processing: never in one index; embed the documents "
    "again",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two sets of vectors of the same texts agree.

    Attributes:
        n_texts: how many.
        dimensions: of one, and of the other.
        cosine_mean: of each text's two vectors; None for vectors of two sizes.
        cosine_min: the least of them.
        same_neighbours: mean share of the ten nearest texts that both find, 0 to 1, when the
            other's vectors ask among the first's; None for fewer than twelve texts.
    """

    n_texts: int
    dimensions: tuple[int, int]
    max_abs_difference: float | None = None
    cosine_mean: float | None = None
    cosine_min: float | None = None
    same_neighbours: float | None = None

    @property
    def verdict(self) -> Verdict:
        """In one word."""
        if self.cosine_min is None or self.max_abs_difference is None:
            return "different"
        if self.max_abs_difference <= _IDENTICAL:
            return "identical"
        if self.cosine_min >= _INTERCHANGEABLE:
            return "interchangeable"
        return "close" if self.cosine_min >= _CLOSE else "different"


def compare(one: FloatArray, other: FloatArray) -> Comparison:
    """Vectors `(n, D)` of the same texts, of any length, compared by direction."""
    sizes = (one.shape[1], other.shape[1])
    if sizes[0] != sizes[1]:
        return Comparison(len(one), sizes)
    a, b = l2_normalize(one), l2_normalize(other)
    cosines = (a * b).sum(1)
    shared: float | None = None
    if len(a) > _NEIGHBOURS + 1:
        shared = float(np.mean(_shared_neighbours(a, b)))
    return Comparison(
        len(a),
        sizes,
        float(np.abs(a - b).max()),
        float(cosines.mean()),
        float(cosines.min()),
        shared,
    )


def _shared_neighbours(a: FloatArray, b: FloatArray) -> list[float]:
    """For each text, the share of its nearest in `a` that its vector in `b` finds there, too."""
    shares: list[float] = []
    for place in range(len(a)):
        found: list[set[int]] = []
        for query in (a[place], b[place]):
            scores = a @ query
            scores[place] = -np.inf
            found.append(set(np.argpartition(-scores, _NEIGHBOURS)[:_NEIGHBOURS].tolist()))
        shares.append(len(found[0] & found[1]) / _NEIGHBOURS)
    return shares


def run(
    settings: Settings,
    file: Path | None,
    target: str,
    options: Options,
    *,
    model: str | None,
    as_json: bool,
) -> bool:
    """Compare what these settings give with `target`, and say so.

    Args:
        settings: as for a server; the first model is the one.
        file: lines or JSONL, at most 5,000 texts; `-` is standard input; None for a few
            built-in texts.
        target: the base URL of an endpoint, a precision, or a `.npy` or `.jsonl` file.
        options: input type, dimensions and truncation.
        model: its name at the endpoint; None for the same id.
        as_json: print one JSON object in place of sentences.

    Returns:
        Whether the vectors may share an index.

    Raises:
        InvalidRequest: texts, or the file of vectors, cannot be read.
        SettingsInvalid: a target of another kind, or an endpoint that does not answer.
        SetupError: the model cannot be made ready.
    """
    is_url, is_file = target.startswith(_URLS), target.endswith(_FILES)
    if not (is_url or is_file or target in PRECISIONS):
        raise SettingsInvalid(
            f"--compare {target}: neither a URL (http://...), nor a precision "
            f"({', '.join(PRECISIONS)}), nor a .npy or .jsonl file of vectors"
        )
    items = _read(file)
    if is_url:  # which refuses empty texts, and blank lines are such
        items = [item for item in items if item.text]
    if not items:
        raise InvalidRequest(f"{file}: no texts to compare with")
    texts = [item.text for item in items]
    one, fingerprint = _own(settings, items, options)
    if is_url:
        name = model or settings.model[0]
        other, its_fingerprint = _ask(target, texts, name, options)
    elif is_file:
        other, its_fingerprint = _load(Path(target), len(texts)), None
    else:
        changed = settings.model_copy(update={"precision": target})
        other, its_fingerprint = _own(changed, items, options)
    found = compare(one, other)
    verdict = found.verdict
    if as_json:
        facts = {
            "fingerprints": [fingerprint, its_fingerprint],
            "texts": found.n_texts,
            "dimensions": found.dimensions,
            "max_abs_difference": found.max_abs_difference,
            "cosine_mean": found.cosine_mean,
            "cosine_min": found.cosine_min,
            "same_neighbours": found.same_neighbours,
            "verdict": verdict,
        }
        click.echo(json.dumps(facts, indent=1))
    else:
        _print(found, fingerprint, its_fingerprint, target)
    return verdict in ("identical", "interchangeable")


def _print(found: Comparison, fingerprint: str, other: str | None, target: str) -> None:
    rows = [
        ("this", fingerprint),
        (target, other or "(gives no fingerprint)"),
        ("texts", str(found.n_texts)),
        ("dimensions", " and ".join(map(str, dict.fromkeys(found.dimensions)))),
    ]
    if found.cosine_mean is not None:
        rows.append(("cosine", f"mean {found.cosine_mean:.6f}, least {found.cosine_min:.6f}"))
    if found.same_neighbours is not None:
        rows.append(("same ten nearest", f"{found.same_neighbours:.1%}"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")
    click.echo(f"{found.verdict}: {_ADVICE[found.verdict]}")


def _read(file: Path | None) -> list[Item]:
    if file is None:
        return [Item(line, text) for line, text in enumerate(TEXTS, 1)]
    with open_lines(file) as lines:
        return list(islice(read_items(lines, str(file)), _MOST_TEXTS))


class _Collected:
    """A writer that keeps vectors in memory."""

    def __init__(self) -> None:
        self.pieces: list[FloatArray] = []

    def write(self, items: Sequence[Item], vectors: FloatArray) -> None:
        del items
        self.pieces.append(vectors)

    def finish(self) -> None:
        pass


def _own(settings: Settings, items: Sequence[Item], options: Options) -> tuple[FloatArray, str]:
    """Vectors of these settings, and their fingerprint."""
    kept = _Collected()
    fingerprint = embed_items(settings, items, kept, options)
    return np.concatenate(kept.pieces), fingerprint


def _ask(
    url: str, texts: Sequence[str], model: str, options: Options
) -> tuple[FloatArray, str | None]:
    """Vectors of an endpoint, and its fingerprint if it is one of ours."""
    body: dict[str, Any] = {"model": model, "encoding_format": "float"}
    # Only what was asked for: a server that is not ours may refuse what it does not know.
    asked: dict[str, Any] = {
        "input_type": options.input_type,
        "dimensions": options.dimensions,
        "truncate": options.truncate or None,
    }
    body |= {name: value for name, value in asked.items() if value is not None}
    headers = {"authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"}
    vectors: list[Any] = []
    fingerprint: str | None = None
    with httpx2.Client(timeout=_TIMEOUT_S, headers=headers) as client:
        for start in range(0, len(texts), _TEXTS_OF_REQUEST):
            part = texts[start : start + _TEXTS_OF_REQUEST]
            try:
                answer = client.post(f"{url.rstrip('/')}/embeddings", json=body | {"input": part})
            except httpx2.HTTPError as exc:
                raise SettingsInvalid(f"--compare {url}: no answer ({exc})") from exc
            if answer.status_code != 200:  # noqa: PLR2004 - OK
                raise SettingsInvalid(
                    f"--compare {url}: status {answer.status_code}: {answer.text[:300]} "
                    "(--compare-model names its model, OPENAI_API_KEY its key)"
                )
            fingerprint = answer.headers.get("x-matryo-fingerprint", fingerprint)
            try:
                vectors += [item["embedding"] for item in answer.json()["data"]]
            except (ValueError, KeyError, TypeError) as exc:
                raise SettingsInvalid(f"--compare {url}: not OpenAI's embeddings") from exc
    return _matrix(vectors, url, len(texts)), fingerprint


def _load(path: Path, n_texts: int) -> FloatArray:
    """Vectors of a file that `matryo embed --output` wrote, of the same texts in order."""
    try:
        if path.suffix == ".npy":
            rows: Any = np.load(path, allow_pickle=False)
        else:
            lines = path.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line)["embedding"] for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise InvalidRequest(f"{path}: not a file of vectors: {exc}") from exc
    return _matrix(rows[:n_texts] if len(rows) > _MOST_TEXTS else rows, str(path), n_texts)


def _matrix(rows: object, source: str, n_texts: int) -> FloatArray:
    try:
        matrix = np.asarray(rows, np.float32)
    except (ValueError, TypeError) as exc:
        raise InvalidRequest(f"{source}: vectors of several sizes, or not numbers") from exc
    if matrix.ndim != 2 or len(matrix) != n_texts:  # noqa: PLR2004
        raise InvalidRequest(
            f"{source}: {len(matrix) if matrix.ndim else 0} vectors for {n_texts} texts; both "
            "must be of the same texts, in order"
        )
    if not (np.isfinite(matrix).all() and matrix.any(axis=1).all()):
        raise InvalidRequest(f"{source}: vectors of zeros, or not finite")
    return matrix
