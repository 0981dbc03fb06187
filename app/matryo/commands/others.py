"""Vectors that others made of the same texts: from an endpoint, or from a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson

from matryo.commands.agreement import DECIMALS, INTEGERS, NUMBERS
from matryo.commands.endpoint import Endpoint, Reply
from matryo.commands.sources.item import Item
from matryo.commands.sources.lines import read_lines
from matryo.commands.sources.rows import KEYS, raw_fields
from matryo.core.errors import InvalidRequest, SettingsInvalid
from matryo.engine.postprocess import FloatArray
from matryo.service import Options

TEXTS_OF_REQUEST = 32
"""Texts that an endpoint is sent at a time, if its limits are not known."""


@dataclass(frozen=True, slots=True)
class Others:
    """Vectors that are not ours.

    Attributes:
        vectors: `(n, D)` float32, in the order of the texts.
        fingerprint: None if the source gives none.
        numbers: their type at the source.
        is_reordered: the source has them in another order; they were matched by id.
    """

    vectors: FloatArray
    fingerprint: str | None = None
    numbers: str = NUMBERS
    is_reordered: bool = False


# --- an endpoint


def ask_endpoint(
    endpoint: Endpoint,
    items: Sequence[Item],
    model: str,
    options: Options,
    n_texts: int = TEXTS_OF_REQUEST,
) -> Others:
    """Vectors of an endpoint of OpenAI's shape, and its fingerprint if it is one of ours.

    Args:
        endpoint: an entered one.
        items: the texts, none of them empty.
        model: its name there.
        options: of items that ask for nothing.
        n_texts: of one request at most.

    Raises:
        InvalidRequest: the answers are no vectors of the texts.
        SettingsInvalid: no answer, or another status than 200.
    """
    vectors: list[Any] = []
    fingerprint: str | None = None
    for body in _bodies(items, model, options, n_texts):
        answer = endpoint.post("embeddings", body)
        fingerprint = answer.headers.get("x-matryo-fingerprint", fingerprint)
        vectors += _in_order(answer, endpoint, len(body["input"]))
    return Others(_matrix(vectors, endpoint.called, len(items)), fingerprint, _numbers(vectors))


def _bodies(
    items: Sequence[Item], model: str, options: Options, n_texts: int
) -> Iterator[dict[str, Any]]:
    """Requests of neighbours that ask for the same, in order."""
    start = 0
    for index in range(1, len(items) + 1):
        is_end = index == len(items) or index - start == n_texts
        if not (is_end or items[index].asked != items[start].asked):
            continue
        asked = items[start].asked
        truncate = options.truncate if asked.truncate is None else asked.truncate
        # Only what was asked for: a server that is not ours may refuse what it does not know.
        fields: dict[str, Any] = {
            "input_type": asked.input_type or options.input_type,
            "dimensions": asked.dimensions or options.dimensions,
            "truncate": truncate or None,
            "embedding_type": None if options.embedding_type == "float" else options.embedding_type,
        }
        body: dict[str, Any] = {"model": asked.model or model, "encoding_format": "float"}
        body |= {name: value for name, value in fields.items() if value is not None}
        yield body | {"input": [item.text for item in items[start:index]]}
        start = index


def _in_order(answer: Reply, endpoint: Endpoint, n_texts: int) -> list[Any]:
    """The vectors of one answer by their `index`, which need not be their order."""
    try:
        data = cast("list[dict[str, Any]]", answer.json()["data"])
        found = {item.get("index", place): item["embedding"] for place, item in enumerate(data)}
        vectors = [found[index] for index in range(n_texts)]
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise SettingsInvalid(f"{endpoint.called}: not OpenAI's embeddings") from exc
    if len(data) != n_texts:
        raise SettingsInvalid(f"{endpoint.called}: {len(data)} vectors for {n_texts} texts")
    return vectors


# --- a file


def load_file(path: Path, items: Sequence[Item], *, is_part: bool) -> Others:
    """Vectors of a file, such as `matryo embed --output` writes.

    Vectors are matched by id where every text and every vector has one, else by order.

    Args:
        path: a `.npy` or `.jsonl` file.
        items: the texts.
        is_part: whether the file may have vectors of more texts.

    Raises:
        InvalidRequest: not a file of vectors, or not those of these texts.
    """
    keys: list[str | None] = []
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                rows: Any = np.lib.format.read_array(file, allow_pickle=False)
            numbers = rows.dtype.name
        else:
            rows, keys = _read_rows(path)
            numbers = _numbers(rows)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        reason = f"no field {exc}" if isinstance(exc, KeyError) else str(exc)
        raise InvalidRequest(f"{path}: not a file of vectors: {reason}") from exc
    ours = [item.key.json if item.key else None for item in items]
    wanted = _match(ours, keys, path, is_part=is_part)
    if wanted is not None:
        rows = [rows[index] for index in wanted]
    is_reordered = wanted is not None and wanted != sorted(wanted)
    vectors = _matrix(rows[: len(items)] if is_part else rows, str(path), len(items))
    return Others(vectors, None, numbers, is_reordered)


def _read_rows(path: Path) -> tuple[list[Any], list[str | None]]:
    """The vectors of a JSON-lines file, and the JSON of their ids."""
    rows: list[Any] = []
    keys: list[str | None] = []
    with path.open("rb") as file:
        for _, line in read_lines(file, str(path)):
            if not line.strip():
                continue
            rows.append(orjson.loads(line)["embedding"])
            fields = dict(raw_fields(line))
            keys.append(next((fields[name] for name in KEYS if name in fields), None))
    return rows, keys


def _match(
    ours: Sequence[str | None], theirs: Sequence[str | None], path: Path, *, is_part: bool
) -> list[int] | None:
    """The row of each text in the file by the ids; None to go by order."""
    if None in ours or None in theirs or not theirs:
        return None
    if list(ours) == list(theirs[: len(ours)]) and (is_part or len(ours) == len(theirs)):
        return None
    rows = {_plain(key): index for index, key in enumerate(theirs)}
    wanted = [_plain(key) for key in ours]
    if len(rows) < len(theirs) or len(set(wanted)) < len(wanted):
        raise InvalidRequest(f"{path}: an id stands twice, and the order is another")
    missing = [key for key in wanted if key not in rows]
    if missing:
        raise InvalidRequest(
            f"{path}: no vector for {len(missing)} of {len(wanted)} ids, such as {missing[0]}"
        )
    if len(rows) > len(wanted) and not is_part:
        extra = next(key for key in rows if key not in set(wanted))
        raise InvalidRequest(
            f"{path}: {len(rows)} vectors for {len(wanted)} texts; the texts lack the id {extra}"
        )
    return [rows[key] for key in wanted]


def _plain(key: str | None) -> str:
    """One spelling of the JSON of an id."""
    text = key or "null"
    return json.dumps(json.loads(text)) if text.startswith('"') else text


# --- both


def _numbers(rows: Sequence[Any]) -> str:
    """The type of JSON numbers: integers if none has a decimal point."""
    lists = [cast("list[object]", row) for row in rows if isinstance(row, list)]
    are_integers = all(type(value) is int for row in lists for value in row)
    return INTEGERS if lists and are_integers else DECIMALS


def _matrix(rows: object, source: str, n_texts: int) -> FloatArray:
    """Rows as `(n_texts, D)` float32."""
    try:
        given = np.asarray(rows)
    except (ValueError, TypeError) as exc:
        raise InvalidRequest(f"{source}: vectors of several widths") from exc
    if given.dtype.kind not in "fiu":
        raise InvalidRequest(f"{source}: not vectors of numbers, but of {given.dtype.name}")
    with np.errstate(over="ignore"):
        matrix = given.astype(np.float32)
    if matrix.ndim != 2 or len(matrix) != n_texts:  # noqa: PLR2004
        raise InvalidRequest(
            f"{source}: {len(matrix) if matrix.ndim else 0} vectors for {n_texts} texts; both "
            "must be of the same texts, in order"
        )
    if not (np.isfinite(matrix).all() and matrix.any(axis=1).all()):
        raise InvalidRequest(f"{source}: vectors of zeros, or not finite")
    return matrix
