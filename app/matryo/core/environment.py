"""Reads the settings once: flags, then the environment (`MATRYO_*`), then `.env`.

`.env.example` is written from the settings (`make env-example`) and a test compares them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, cast, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from matryo.core.errors import SettingsInvalid
from matryo.core.fixed import fixed
from matryo.core.names import check_names
from matryo.core.settings import Settings
from matryo.core.sources import (
    PREFIX,
    prefixed,
    read_env_file,
    shown,
)

log = logging.getLogger("matryo")

_NAMES = {PREFIX + name.upper(): name for name in Settings.model_fields}


def load_settings(env_file: Path | str | None = ".env", **flags: Any) -> Settings:
    """Settings from flags (those that are not None), the environment and `env_file`.

    A variable that is empty counts as one that is not set. Logs a warning for each `MATRYO_`
    variable that is no setting.

    Raises:
        SettingsInvalid: a value that cannot be used, or a name that is nearly a setting's; the
            message names the variable.
    """
    given, labels, warnings = _gather(env_file, flags)
    try:
        settings = Settings(**given)
    except ValidationError as exc:
        raise SettingsInvalid(_explain(exc, given, labels)) from exc
    _check_held(settings, labels)
    for sentence in warnings:
        log.warning(sentence)
    return settings


def peek(name: str, env_file: Path | str | None = ".env") -> str | None:
    """The text of one setting in the environment or `env_file`, whatever else is wrong there."""
    for read in (lambda: prefixed(os.environ), lambda: read_env_file(Path(env_file or os.devnull))):
        try:
            if value := read().get(PREFIX + name.upper()):
                return value
        except SettingsInvalid:
            return None
    return None


def _gather(
    env_file: Path | str | None, flags: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Values by setting, what messages call each of them, and warnings about names."""
    sources = [("", prefixed(os.environ))]
    if env_file is not None:
        sources.insert(0, (str(env_file), read_env_file(Path(env_file))))
    given: dict[str, Any] = dict(fixed().values)
    labels: dict[str, str] = {}
    warnings: list[str] = []
    for source, values in sources:  # the later one wins
        warnings += check_names(values, _NAMES.keys(), source)
        for variable, field in _NAMES.items():
            if value := values.get(variable):
                given[field] = value
                labels[field] = f"{variable} in {source}" if source else variable
    for field, value in flags.items():
        if value is not None:
            given[field] = value
            labels[field] = f"--{field.replace('_', '-')}"
    return given, labels, warnings


def _check_held(settings: Settings, labels: Mapping[str, str]) -> None:
    """Refuse other values of the settings that a bundle holds.

    Raises:
        SettingsInvalid: a flag or a variable has another value.
    """
    if not (bundle := fixed()).held:
        return
    # The default of `home` cannot be used where a user has no home folder.
    own = Settings(**cast("dict[str, Any]", {**bundle.values, "home": settings.home}))
    for name in sorted(bundle.held & labels.keys()):
        found, expected = getattr(settings, name), getattr(own, name)
        if found != expected:
            raise SettingsInvalid(
                f"{labels[name]} is {_words(found)}, but {bundle.where} was made with "
                f"{_words(expected)}. Leave it out, or make another file with matryo bundle."
            )


def _words(value: object) -> str:
    """A setting's value for a message."""
    if isinstance(value, tuple):
        return ", ".join(map(shown, cast("tuple[object, ...]", value))) or "none"
    return "none" if value is None else shown(value)


def default_text(name: str) -> str:
    """The default of a setting as the environment would hold it; empty for none."""
    default: object = Settings.model_fields[name].default
    match default:
        case None:
            return ""
        case tuple():
            return ",".join(str(word) for word in default)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case bool():
            return str(default).lower()
        case _:
            return str(default)


def env_example() -> str:
    """The text of `.env.example`: every setting, its meaning and its default."""
    lines = [
        "# Every setting of Matryo with its default. Copy to .env and uncomment what you change.",
        "# Flags win over the environment, the environment over this file.",
        "",
    ]
    for name, field in Settings.model_fields.items():
        lines += [f"# {field.description}", f"#{PREFIX}{name.upper()}={default_text(name)}", ""]
    return "\n".join(lines)


def _explain(exc: ValidationError, given: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """One line that says of each faulty setting what is wrong, and what is allowed."""
    sentences: list[str] = []
    for error in exc.errors():
        field = str(error["loc"][0])
        label = labels.get(field, PREFIX + field.upper())
        value = given.get(field, Settings.model_fields[field].default)
        if error["type"] == "value_error":
            reason = error["msg"].removeprefix("Value error, ")
            sentences.append(f"{label} {reason}.")
            continue
        allowed = takes(Settings.model_fields[field])
        sentences.append(f"{label} is {shown(value)}, but must be {allowed}.")
        if field == "port" and str(value).startswith("tcp://"):
            sentences.append(
                "Kubernetes sets MATRYO_PORT for a service named 'matryo': "
                "set enableServiceLinks: false in the pod."
            )
    return " ".join(dict.fromkeys(sentences))  # a union says the same once for each member


def takes(field: FieldInfo) -> str:
    """What a setting takes, in words."""
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind != NoneType]
    if kinds == [bool]:
        return "true or false"
    if int not in kinds and float not in kinds:
        words = [str(word) for kind in kinds for word in get_args(kind)]
        return f"one of {', '.join(words)}" if words else "text"
    text = "a whole number" if int in kinds else "a number"
    for name, words in (("ge", "of at least"), ("gt", "above"), ("le", "and at most")):
        for bound in field.metadata:
            if (limit := getattr(bound, name, None)) is not None:
                text += f" {words} {limit}"
    return text
