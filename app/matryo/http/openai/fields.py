"""Fields of other servers in a request's body: taken, ignored or refused, by one table.

A field that means what one of ours means is taken as ours. A field that changes nothing is ignored,
with a warning. A field that would change the vectors in a way that is not offered here is refused.
A name that nobody knows is ignored or refused, as the operator chose; a name near one of ours is
always refused, because a slip of the pen would give other vectors than its author means.

docs/fields.md is written from the table (`make fields`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from matryo.core.errors import InvalidRequest
from matryo.http.openai.field_rules import (
    IGNORED_PREFIXES,
    RULES,
    Ignored,
    Outcome,
    Refused,
    Taken,
    weighty,
)

UnknownFields = Literal["warn", "refuse"]

_MAX_FOREIGN = 64  # fields beside ours; real clients send a handful
_SHOWN_NAME = 64
_NEAR = 0.85

_BY_NAME = {name: rule for rule in RULES for name in rule.names}
# Names whose misspelling would change vectors.
_WEIGHTY = (
    "input",
    "model",
    "dimensions",
    "encoding_format",
    "input_type",
    "truncate",
    "embedding_type",
    *weighty(),
)


def settle(
    fields: Mapping[str, Any], own: Sequence[str], unknown: UnknownFields
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Fields in our words, and the names of those that were ignored.

    Args:
        fields: of a body, or of a row of a file.
        own: names of our fields.
        unknown: what becomes of a name that nobody knows.

    Raises:
        InvalidRequest: some fields are refused; the message names all of them.
    """
    settled = {name: value for name, value in fields.items() if name in own}
    if len(settled) == len(fields):
        return _in_our_words(settled), ()
    foreign = [name for name in fields if name not in own and fields[name] is not None]
    ignored: list[str] = []
    refused: list[str] = []
    for name in foreign:
        outcome = _judge(name, fields[name], unknown)
        match outcome:
            case Ignored():
                ignored.append(name)
            case Refused():
                refused.append(f"'{_shown(name)}' ({outcome.reason})")
            case Taken():
                for field, value in outcome.fields.items():
                    if settled.get(field) is not None and settled[field] != value:
                        refused.append(f"'{_shown(name)}' (it contradicts '{field}')")
                    settled[field] = value
    if refused:
        raise InvalidRequest(
            f"Unrecognized request argument supplied: {', '.join(refused)}. "
            f"Leave it out. Known are: {', '.join(own)}.",
            code="unsupported_parameter",
        )
    return _in_our_words(settled), tuple(ignored)


def check_count(fields: Mapping[str, Any], own: Sequence[str]) -> None:
    """Refuse a body with more fields than any client sends, before each of them is looked at.

    Raises:
        InvalidRequest: too many fields.
    """
    if len(fields) <= _MAX_FOREIGN:
        return
    n_foreign = len(fields) - sum(name in fields for name in own)
    if n_foreign > _MAX_FOREIGN:
        raise InvalidRequest(
            f"The body has {n_foreign} fields that are not OpenAI's or ours; at most "
            f"{_MAX_FOREIGN} are read. Known are: {', '.join(own)}.",
            code="unsupported_parameter",
        )


def warning_of(ignored: Sequence[str]) -> tuple[str, ...]:
    """The warning about ignored fields, if there are any; printable ASCII."""
    return (f"ignored: {', '.join(map(_shown, ignored))}",) if ignored else ()


def _judge(name: str, value: object, unknown: UnknownFields) -> Outcome:
    if rule := _BY_NAME.get(name):
        return rule.judge(value)
    if name.startswith(IGNORED_PREFIXES):
        return Ignored()
    plain = name[:_SHOWN_NAME].lower().replace("-", "_")
    squeezed = {known.replace("_", ""): known for known in _WEIGHTY}
    near = squeezed.get(plain.replace("_", "")) or next(
        iter(difflib.get_close_matches(plain, _WEIGHTY, n=1, cutoff=_NEAR)), None
    )
    if near:
        return Refused(f"did you mean '{near}'?")
    return Ignored() if unknown == "warn" else Refused("nothing here knows it")


def _in_our_words(fields: dict[str, Any]) -> dict[str, Any]:
    """Values of our own fields that other servers write in another way."""
    truncate = fields.get("truncate")
    if isinstance(truncate, str) and truncate.upper() in ("END", "NONE", "RIGHT"):
        fields["truncate"] = "NONE" if truncate.upper() == "NONE" else "END"
    kind = fields.get("embedding_type")
    if kind == "base64" and fields.get("encoding_format") in (None, "base64"):  # Jina
        fields |= {"embedding_type": None, "encoding_format": "base64"}
    return fields


def _shown(name: str) -> str:
    """A field's name for a header or a message: short, and printable ASCII."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in ",;'" else "?" for c in name)
    return plain if len(plain) <= _SHOWN_NAME else f"{plain[:_SHOWN_NAME]}..."


def page() -> str:
    """The text of docs/fields.md."""
    lines = [
        "# Fields of other servers",
        "",
        "Clients of other servers send fields that OpenAI's API does not have. A field whose value",
        "is `null` counts as absent. This page is written from the code by `make fields`.",
        "",
        "| field | who sends it | what becomes of it |",
        "|---|---|---|",
    ]
    for rule in RULES:
        names = ", ".join(f"`{name}`" for name in rule.names)
        lines.append(f"| {names} | {rule.senders} | {rule.meaning} |")
    prefixes = ", ".join(f"`{prefix}...`" for prefix in IGNORED_PREFIXES)
    warned = "ignored, with `x-matryo-warning`"
    lines += [
        f"| {prefixes} | gateways | {warned} |",
        "| a name near one that matters, such as `input_typ` | | refused; names the one meant |",
        f"| any other name | | `MATRYO_UNKNOWN_FIELDS=warn`: {warned}; `refuse`: 400 |",
        "",
        f"A body may have {_MAX_FOREIGN} such fields at most. A 400 names all refused fields at",
        "once.",
        "",
    ]
    return "\n".join(lines)
