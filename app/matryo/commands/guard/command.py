"""`matryo guard record` and `matryo guard check`."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import click

from matryo.commands.endpoint import Endpoint, without_password
from matryo.commands.guard.facts import NONE, Asked, Facts
from matryo.commands.guard.finding import Agreement, Finding, cosine_text, examine
from matryo.commands.guard.record import (
    Origin,
    Record,
    fault_of,
    read_record,
    write_record,
)
from matryo.commands.guard.sources import Local, Server, Source
from matryo.commands.sinks.output import check_standard_output
from matryo.core.environment import load_settings
from matryo.core.errors import InvalidRequest, SettingsInvalid
from matryo.core.printable import escaped
from matryo.engine.postprocess import FloatArray
from matryo.service.canary import TEXTS


@dataclass(frozen=True, slots=True)
class Place:
    """Which model to ask.

    Attributes:
        url: base URL of a server; None for the model on this machine.
        model: its name there; None for the default.
        precision: of the model on this machine; None as the settings say.
    """

    url: str | None = None
    model: str | None = None
    precision: str | None = None

    @property
    def shown(self) -> str | None:
        """The URL as it is kept, and shown: without a password, and in one spelling."""
        return None if self.url is None else without_password(self.url).rstrip("/")


def record(path: Path, place: Place, asked: Asked, *, force: bool) -> None:
    """Write what makes the vectors of an index now, and print the fingerprint.

    Args:
        path: of the new file.
        place: the model that makes the vectors.
        asked: what the requests for the index name.
        force: replace a file that exists.

    Raises:
        InvalidRequest: the file exists, or the model cannot give what is asked for.
        SettingsInvalid: the server does not answer, or standard output is closed.
        SetupError: the model cannot be made ready.
        OSError: the file cannot be written.
    """
    check_standard_output()
    if path.exists() and not force:
        raise InvalidRequest(
            f"{path} exists, and says what made an index. Give --force to replace the file, once "
            "the index was made anew"
        )
    with _opened(place) as (source, name):
        origin = Origin(
            url=place.shown,
            model=place.model or (name if place.url else None),
            precision=place.precision,
            input_type=asked.input_type,
            dimensions=asked.dimensions,
            embedding_type=asked.embedding_type,
        )
        made = _made(source, origin, asked)
    if fault := fault_of(made):  # a server says anything
        raise SettingsInvalid(
            f"what {place.shown or 'this machine'} says of its model does not fit together: "
            f"{escaped(fault)}. Ask the server itself, without a proxy that changes its answers"
        )
    write_record(path, made)
    what = made.fingerprint or f"vectors of {name}, without a fingerprint"
    click.echo(escaped(f"{path}: {what}"))


def check(
    path: Path, place: Place | None, *, model: str | None, precision: str | None, as_json: bool
) -> Finding:
    """Compare what is made now with a record, and print the finding.

    Args:
        path: of the record.
        place: the model to ask; None for the place of the record.
        model: its name, in place of that of the record.
        precision: of the model on this machine, in place of that of the record.
        as_json: print one JSON object in place of sentences.

    Raises:
        InvalidRequest: the record cannot be read.
        SettingsInvalid: the server does not answer, or standard output is closed.
        SetupError: the model cannot be made ready.
    """
    check_standard_output()
    known = read_record(path)
    place = _place(known, place, model, precision)
    with _opened(place) as (source, _name):
        finding = examine(known, source)
    report(known, finding, place.shown or "this machine", as_json=as_json)
    return finding


def report(record: Record, finding: Finding, where: str, *, as_json: bool) -> None:
    """Print a finding: the verdict in a sentence, then causes and measurements."""
    if as_json:
        click.echo(json.dumps(_facts(record, finding), indent=1))
        return
    click.echo(finding.sentence)
    for cause in finding.causes:
        click.echo(f"  {escaped(cause.sentence())}")
    rows = [
        ("recorded", f"{record.recorded}, {record.origin.url or 'on a machine'}"),
        ("", finding.fingerprints[0] or "(no fingerprint)"),
        ("now", where),
        ("", finding.fingerprints[1] or "(no fingerprint)"),
        *((_types(one), _words(one)) for one in finding.agreements),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{escaped(name):<{width}}  {escaped(value)}")


# --- who is asked


@contextmanager
def _opened(place: Place) -> Generator[tuple[Source, str]]:
    """The model of a place, and its name there."""
    if place.url is None:
        models = (place.model,) if place.model else None
        local = Local(load_settings(model=models, precision=place.precision))
        with local:
            yield local, local.model
        return
    if not place.url.startswith(("http://", "https://")):
        raise SettingsInvalid(
            f"--url {place.shown} is no base URL. Give one like http://host:8080/v1"
        )
    with Endpoint(place.url, f"--url {place.shown}", "--model") as endpoint:
        server = Server(endpoint, place.model)
        yield server, server.model


def _place(known: Record, given: Place | None, model: str | None, precision: str | None) -> Place:
    """Where to check: the given place, else that of the record."""
    origin = known.origin
    place = given or Place(origin.url, origin.model, origin.precision)
    moved = given is not None and given.shown != origin.url
    if given is not None:
        # A name of one place may mean nothing in another one; the model's own id does.
        name = known.facts.id if known.facts and moved else origin.model
        place = Place(given.url, name, None if moved else origin.precision)
    if place.url is not None and precision is not None:
        raise SettingsInvalid("--precision is of the model on this machine; a server has its own")
    return Place(place.url, model or place.model, precision or place.precision)


# --- a record


def _made(source: Source, origin: Origin, asked: Asked) -> Record:
    """What makes the vectors of an index now."""
    facts = source.facts(canary=True)
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    # The very request of the index: a size or type that the model lacks is refused here.
    own = source.embed(TEXTS, asked, truncate=facts is not None)
    if facts is None:
        vectors = {asked.input_type or NONE: own.vectors}
        return Record(moment, origin, own.fingerprint, None, TEXTS, vectors)
    if not (own.fingerprint and own.fingerprint.startswith(f"{facts.fingerprint}/")):
        raise SettingsInvalid(
            f"the server says that its model is {facts.fingerprint}, and sends vectors of "
            f"{own.fingerprint}: several models answer by one name. Ask one of them alone"
        )
    vectors = _canary(source, facts)
    return Record(moment, origin, own.fingerprint, facts, TEXTS, vectors)


def _canary(source: Source, facts: Facts) -> dict[str, FloatArray]:
    """The vectors of the canary's texts by input type, as far as requests may ask for them."""
    native, canary = facts.dimensions.native, facts.canary
    size = native if facts.offers(native) else None
    found: dict[str, FloatArray] = {}
    for kind in canary.vectors if canary else ():
        named = kind if kind in facts.input_types else None
        if named is None and kind != facts.shaping(facts.default_input_type):
            continue
        rows = source.embed(TEXTS, Asked(named, size), truncate=True).vectors
        found[kind] = rows
        if rows.shape[1] == native and _digest(rows) != facts.digest(kind):
            click.echo(
                "warning: the vectors that were sent have other bits than the server's canary. "
                "Several machines may answer at this address; checks may say 'drifted'",
                err=True,
            )
    return found


def _digest(rows: FloatArray) -> str:
    return sha256(rows.astype("<f4").tobytes()).hexdigest()


# --- a finding


def _types(agreement: Agreement) -> str:
    if agreement.recorded == agreement.found:
        return agreement.recorded
    return f"{agreement.recorded}, now {agreement.found}"


def _words(agreement: Agreement) -> str:
    if agreement.is_equal:
        return "the same bits"
    found = agreement.measured
    if found is None:
        return "other bits; the vectors cannot be asked for"
    if found.cosine_mean is None:
        return f"{' and '.join(map(str, found.dimensions))} components"
    mean, least = cosine_text(found.cosine_mean), cosine_text(found.cosine_min or 0)
    return (
        f"cosine mean {mean}, least {least}; "
        f"components differ by at most {found.max_abs_difference:.2g}"
    )


def _facts(record: Record, finding: Finding) -> object:
    def measured(one: Agreement) -> dict[str, object]:
        found = one.measured
        return {
            "recorded": one.recorded,
            "found": one.found,
            "same_bits": one.is_equal,
            "cosine_mean": found.cosine_mean if found else None,
            "cosine_min": found.cosine_min if found else None,
            "max_abs_difference": found.max_abs_difference if found else None,
        }

    return {
        "verdict": finding.verdict,
        "sentence": finding.sentence,
        "causes": [cause.facts() for cause in finding.causes],
        "fingerprints": finding.fingerprints,
        "recorded": record.recorded,
        "vectors": [measured(one) for one in finding.agreements],
    }
