"""`matryo verify`: do we serve the published model, and does the model agree with itself?

Published values show whether weights, tokenizer, prompts and output steps are right. Each value
comes with its source and tolerance in `golden.json`. Self-consistency needs no published value:
the vector of a text alone equals its vector in a batch, bit for bit; the graph computes what the
plain numpy forward computes; vectors have unit length at every trained number of dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import click
import numpy as np

import matryo
from matryo.assembly.models import resolve_models
from matryo.assembly.service import build_local_service
from matryo.build.texts import TEXTS
from matryo.catalog.catalog import open_catalog
from matryo.catalog.golden import (
    Check,
    CosineCheck,
    HiddenCheck,
    PooledCheck,
    VectorCheck,
    read_golden,
)
from matryo.commands.sinks.output import check_standard_output
from matryo.commands.table import Column, draw_table, draws_tables
from matryo.core.errors import ManifestInvalid
from matryo.core.progress import TerminalReporter
from matryo.core.settings import Settings
from matryo.core.untrusted import refusing
from matryo.engine import Engine, TokenIds
from matryo.engine.postprocess import FloatArray, pool
from matryo.service import LocalService, Options, Texts
from matryo.store.artifact import VERIFIED_FILE, Artifact, find_artifact
from matryo.store.files import write_atomically
from matryo.store.layout import open_store

# Published values were computed in fp32 or bf16. A coarser precision changes a cosine by at most
# about this much.
_QUANTISED_SLACK = 0.02
_UNIT_SLACK = 1e-5


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one check.

    Attributes:
        name: what was checked.
        source: who published the expected value, or `self-consistency`.
        found: the value found, in words and numbers.
        allowed: the values allowed.
        passed: None if the check could not be made; `found` then says why.
    """

    name: str
    source: str
    found: str
    allowed: str
    passed: bool | None


def run(settings: Settings, *, as_json: bool) -> bool:
    """Check the first model of `settings`, print the results, and record a success.

    Returns:
        Whether no check failed.

    Raises:
        SettingsInvalid: standard output is closed.
        SetupError: the model cannot be made ready.
    """
    check_standard_output()
    settings = resolve_models(settings)
    model_id = settings.model[0]
    golden = read_golden(open_catalog(settings).folder(model_id))
    reporter = TerminalReporter()
    with LocalService(lambda: build_local_service(settings, reporter=reporter)) as local:
        engine = local.service.directory.engines[0]
        artifact = find_artifact(open_store(settings), engine.manifest, engine.precision)
        with (
            reporter.step("comparing with published values"),
            refusing(partial(_odd_golden, model_id)),
        ):
            published = [_published(local, engine, check) for check in golden.checks]
        with reporter.step("comparing the model with itself"):
            results = [*published, *_consistency(local, engine, artifact)]
    passed = all(result.passed is not False for result in results)

    if as_json:
        facts = {
            "model": model_id,
            "precision": engine.precision,
            "fingerprint": engine.fingerprint,
            "checkpoint_verified": artifact.record.verified,
            "passed": passed,
            "checks": [asdict(result) for result in results],
        }
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        _print(engine, artifact, results, passed=passed)
    note = artifact.folder / VERIFIED_FILE
    if passed and published:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        write_atomically(note, json.dumps({"date": when, "version": matryo.__version__}))
    else:
        note.unlink(missing_ok=True)
    return passed


def _odd_golden(model_id: str, reason: str) -> ManifestInvalid:
    return ManifestInvalid(
        f"golden.json of {model_id} has a check that does not fit the model: {reason}. Correct the "
        "numbers of rows and of components there."
    )


def _print(engine: Engine, artifact: Artifact, results: Sequence[Result], *, passed: bool) -> None:
    words = {True: "ok", False: "FAILED", None: "not run"}
    click.echo(f"{engine.fingerprint}")
    if not artifact.record.verified:
        click.echo("built from files that model.toml does not pin")
    if artifact.record.lacks:
        click.echo(f"the checkpoint lacked {', '.join(artifact.record.lacks)}")
    sources = list(dict.fromkeys(result.source for result in results))
    head = ("RESULT", "CHECK", "FOUND", "ALLOWED", "SOURCE")
    rows = [
        (words[r.passed], r.name, r.found, r.allowed, f"[{1 + sources.index(r.source)}]")
        for r in results
    ]
    if draws_tables():
        columns = [Column(name.lower(), is_whole=name in {"RESULT", "SOURCE"}) for name in head]
        styles = {"ok": "green", "FAILED": "bold red", "not run": "yellow"}
        draw_table(columns, [((row[0], styles[row[0]]), *row[1:]) for row in rows])
    else:
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        for row in (head, *rows):
            cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
            click.echo("  ".join(cells).rstrip())
    for number, source in enumerate(sources, 1):
        click.echo(f"[{number}] {source}")
    if sources == [_OURS]:
        click.echo("no published values are known for this model: only consistency was checked")
    n_failed = sum(result.passed is False for result in results)
    click.echo("passed" if passed else f"{n_failed} of {len(results)} checks failed")


# --- published values


def _published(local: LocalService, engine: Engine, check: Check) -> Result:
    if engine.precision != "fp32" and not isinstance(check, CosineCheck):
        name = f"{check.kind} of {_short(check.text)}"
        return Result(name, check.source, "published for fp32", "-", None)
    match check:
        case CosineCheck():
            return _cosines(local, engine, check)
        case VectorCheck():
            vector = _vectors(local, (check.text,), "none", None)[0]
            return _components(check, vector, check.values)
        case PooledCheck():
            ids = _ids(engine, check.text)
            hidden = engine.hidden_states(ids)[None]
            mask = np.ones((1, len(ids)), np.int64)
            return _pooled(check, pool(hidden, mask, engine.manifest.output)[0])
        case HiddenCheck():
            hidden = engine.hidden_states(_ids(engine, check.text))
            if engine.manifest.output.given:
                name = f"{check.kind} of {_short(check.text)}"
                return Result(name, check.source, "the graph pools itself", "-", None)
            expected = np.array(check.values)
            rows = slice(check.first_token, check.first_token + expected.shape[0])
            columns = slice(check.first_column, check.first_column + expected.shape[1])
            return _components(check, hidden[rows, columns].ravel(), expected.ravel())


def _cosines(local: LocalService, engine: Engine, check: CosineCheck) -> Result:
    rows = _vectors(local, check.rows, check.row_type, check.dimensions)
    columns = _vectors(local, check.columns, check.column_type, check.dimensions)
    found, expected = rows @ columns.T, np.array(check.expected)
    allowed = np.maximum(check.abs_tolerance, check.rel_tolerance * np.abs(expected))
    if engine.precision != "fp32":
        allowed = allowed + _QUANTISED_SLACK
    off = np.abs(found - expected)
    worst = np.unravel_index(np.argmax(off - allowed), off.shape)
    return Result(
        f"cosine of {_short(check.rows[worst[0]])} and {_short(check.columns[worst[1]])}"
        + (f" at {check.dimensions}" if check.dimensions else ""),
        check.source,
        f"{found[worst]:.5f}",
        f"{expected[worst]:.5f} ± {allowed[worst]:.2g}",
        bool((off <= allowed).all()),
    )


def _components(
    check: VectorCheck | HiddenCheck,
    found: FloatArray,
    expected: Sequence[float] | np.ndarray[Any, Any],
) -> Result:
    name = f"{check.kind} of {_short(check.text)}, {len(expected)} components"
    ours, theirs = found[: len(expected)].astype(np.float64), np.asarray(expected)
    off = float(np.abs(ours - theirs).max())
    found_text = f"max abs difference {off:.2g}"
    return Result(name, check.source, found_text, f"{check.max_abs:g}", off <= check.max_abs)


def _pooled(check: PooledCheck, found: FloatArray) -> Result:
    name = f"pooled states of {_short(check.text)}, {len(check.values)} components"
    ours, theirs = found[: len(check.values)].astype(np.float64), np.array(check.values)
    cosine = float(ours @ theirs / np.sqrt((ours @ ours) * (theirs @ theirs)))
    off = float(np.abs(ours - theirs).max())
    close = check.max_abs is None or off <= check.max_abs
    allowed = f"at least {check.min_cosine:g}"
    if check.max_abs is not None:
        allowed += f", {check.max_abs:g}"
    found_text = f"cosine {cosine:.6f}, max abs difference {off:.2g}"
    return Result(name, check.source, found_text, allowed, cosine >= check.min_cosine and close)


# --- self-consistency

_OURS = "self-consistency"


def _consistency(local: LocalService, engine: Engine, artifact: Artifact) -> Iterator[Result]:
    sizes = engine.manifest.output.dimensions
    alone = [_vectors(local, (text,), "none", None)[0] for text in TEXTS]
    together = _vectors(local, TEXTS, "none", None)
    off = max(float(np.abs(a - b).max()) for a, b in zip(alone, together, strict=True))
    yield Result("alone = in a batch", _OURS, f"max abs difference {off:g}", "0", off == 0)

    # A text may have no token in the vocabulary; its vector is zeros.
    known = [text for text in TEXTS if len(_ids(engine, text))]
    for size in sizes.trained:
        vectors = _vectors(local, known, "none", size).astype(np.float64)
        norms = np.sqrt(np.square(vectors).sum(-1))
        off = float(np.abs(norms - 1).max())
        found = f"largest deviation {off:.2g}"
        yield Result(f"unit norm at {size}", _OURS, found, f"{_UNIT_SLACK:g}", off <= _UNIT_SLACK)
    yield _numpy_forward(engine, artifact, [_ids(engine, text) for text in known])


def _numpy_forward(engine: Engine, artifact: Artifact, texts: Sequence[TokenIds]) -> Result:
    name = "graph = numpy forward"
    if artifact.weights:
        return Result(name, _OURS, "a bundle has no checkpoint", "-", None)
    # The libraries that read checkpoints load slowly, and are not in a bundle.
    from matryo.commands.forward import compare_with_forward

    found, allowed, passed = compare_with_forward(engine, artifact, texts)
    return Result(name, _OURS, found, allowed, passed)


# --- texts


def _vectors(
    local: LocalService, texts: Sequence[str], input_type: str, dimensions: int | None
) -> FloatArray:
    """Vectors of texts under the model's own prompt; `(len(texts), dimensions)`."""
    options = Options(input_type=input_type, dimensions=dimensions, truncate=True)
    return local.embed(options, Texts(texts)).vectors


def _ids(engine: Engine, text: str) -> TokenIds:
    return engine.cut(engine.tokenize([text])[0].ids)


def _short(text: str, most: int = 32) -> str:
    return f"'{text}'" if len(text) <= most else f"'{text[: most - 3]}...'"
