"""Every setting, read once: flags, then the environment (`MATRYO_*`), then `.env`.

`.env.example` is written from this class (`make env-example`) and a test compares them.
Lower layers get small frozen configs made from it, never `Settings` itself.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from matryo.core.choices import PrecisionChoice, TokenInput
from matryo.core.errors import SettingsInvalid

PREFIX = "MATRYO_"

OPENAI_NAMES = ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002")
"""Aliases that every server has, because clients of OpenAI ask for them."""

# Kubernetes gives a pod these for every service of its namespace; one named "matryo" makes
# names that look like settings.
_KUBERNETES = re.compile(r"MATRYO_(SERVICE_(HOST|PORT.*)|PORT_\d+_(TCP|UDP).*)$")

_Words = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """The operator's choices; the description of each field is its documentation."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
    )

    model: _Words = Field(
        ("nomic-embed-text-v1.5",),
        description="Models to serve, separated by commas; the first is the default.",
    )
    precision: PrecisionChoice = Field(
        "fp32",
        description="Precision of every model served: fp32, int8, q8, q4, or auto, which is int8 "
        "if the model offers it, else fp32.",
    )
    home: Path = Field(
        Path("~/.cache/matryo"), description="The store of checkpoints and artefacts."
    )
    models: _Words = Field(
        (),
        description="More folders of model folders, separated by commas; later ones win.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every one.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 for any free one.")
    api_keys: _Words = Field(
        (),
        repr=False,
        description="Keys that may call, separated by commas; none = open to all.",
    )
    aliases: _Words = Field(
        (),
        description="Other names for models, as alias=model or, for the default model, alias. "
        "OpenAI's text-embedding-3-small, text-embedding-3-large and text-embedding-ada-002 always "
        "name the default model; -NAME takes one of them away.",
    )
    default_input_type: str = Field(
        "document",
        description="What a text is when the request does not say: query, document, "
        "classification, clustering or none.",
    )
    token_input: TokenInput = Field(
        "cl100k_base",
        description="What arrays of token ids mean: cl100k_base, OpenAI's vocabulary (matryo pull "
        "cl100k_base fetches it), or model, the served model's own.",
    )
    dimensions: int | None = Field(
        None,
        ge=1,
        description="Output size when the request names none; empty = the model's own.",
    )
    strict_dimensions: bool = Field(
        default=False,
        description="Refuse sizes a model was not trained for, in place of warning.",
    )
    rotary_scaling_factor: float | None = Field(
        None,
        gt=0,
        le=64,
        description="Stretch the rotary base of each text over a model's trained length (dynamic "
        "NTK), for models that have one; 2 suits 8192 tokens of nomic-embed-text-v1.5. Empty = "
        "as the model.toml says, which is off.",
    )
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Server processes on one socket, each with its part of the cores and a queue "
        "of its own; more than one only where one event loop cannot keep up.",
    )
    workers: int = Field(
        0,
        ge=0,
        le=256,
        description="Concurrent runs of the model; 0 = one for each core, eight at most.",
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="Threads of each of several runs; 0 = the cores divided among them. A run "
        "beside which no other runs always takes every core.",
    )
    batch_ms: int = Field(
        200, ge=1, le=60_000, description="Time one batch should take, in milliseconds."
    )
    queue_tokens: int = Field(
        1_000_000,
        ge=1,
        description="Tokens admitted and not yet answered; past it requests get 429. A single "
        "request is always admitted when nothing else waits.",
    )
    unknown_fields: Literal["warn", "refuse"] = Field(
        "warn",
        description="Fields of a request that nobody knows: warn ignores them and says so in "
        "x-matryo-warning, refuse answers 400. docs/fields.md lists those that are known.",
    )
    max_inputs: int = Field(
        2048,
        ge=1,
        description="Texts, or arrays of token ids, of one request; past it 400. OpenAI takes "
        "2048.",
    )
    max_request_tokens: int = Field(
        300_000,
        ge=1,
        description="Tokens of all texts of one request; past it 400. OpenAI takes 300000.",
    )
    max_body_bytes: int = Field(
        16 * 1024 * 1024,
        ge=1024,
        description="Largest request body in bytes; past it 413.",
    )
    body_timeout_s: float = Field(
        60, gt=0, description="Seconds a request body may take to arrive; past it 408."
    )
    ready_interval_s: float = Field(
        30,
        gt=0,
        description="/readyz is true if the model ran within this many seconds.",
    )
    grace_s: float = Field(25, ge=0, description="Seconds that running requests get after SIGTERM.")
    cors_origins: _Words = Field(
        (),
        description="Origins that browsers may call from, separated by commas; * for any.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="auto = text on a terminal, JSON lines elsewhere."
    )

    @field_validator("model", "models", "api_keys", "aliases", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(word.strip() for word in value.split(",") if word.strip())
        return value

    @field_validator("home")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser()

    @field_validator("model")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            msg = "names no model; give at least one id, such as nomic-embed-text-v1.5"
            raise ValueError(msg)
        return tuple(dict.fromkeys(value))

    @field_validator("api_keys")
    @classmethod
    def _ascii_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        # Named by place, never quoted: this message may end in a log.
        for place, key in enumerate(value, 1):
            if not (key.isascii() and key.isprintable()) or " " in key:
                msg = f"key number {place} has a blank or a character outside printable ASCII"
                raise ValueError(msg)
        return value

    @property
    def alias_map(self) -> dict[str, str | None]:
        """Alias to model name; None stands for the default model."""
        wanted: dict[str, str | None] = dict.fromkeys(OPENAI_NAMES)
        for alias in self.aliases:
            name, _, model = (part.strip() for part in alias.partition("="))
            if name.startswith("-"):
                wanted.pop(name[1:], None)
            else:
                wanted[name] = model or None
        return wanted


def load_settings(env_file: Path | str | None = ".env", **flags: Any) -> Settings:
    """Settings from flags (those that are not None), the environment and `env_file`.

    Raises:
        SettingsInvalid: a value that cannot be used; the message names the variable.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(_env_file=env_file, **given)  # pyright: ignore[reportCallIssue]
    except ValidationError as exc:
        raise SettingsInvalid(_explain(exc, given)) from exc


def unknown_settings(environ: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for every `MATRYO_*` variable that is no setting: most are slips of the pen."""
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    sentences: list[str] = []
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in known or _KUBERNETES.match(name):
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        sentences.append(f"{name} is no setting and is ignored{hint}")
    return sentences


def env_example() -> str:
    """The text of `.env.example`: every setting, its meaning and its default."""
    lines = [
        "# Every setting of Matryo with its default. Copy to .env and uncomment what you change.",
        "# Flags win over the environment, the environment over this file.",
        "",
    ]
    for name, field in Settings.model_fields.items():
        default: object = field.default
        match default:
            case None:
                text = ""
            case tuple():
                text = ",".join(str(word) for word in default)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            case bool():
                text = str(default).lower()
            case _:
                text = str(default)
        lines += [f"# {field.description}", f"#{PREFIX}{name.upper()}={text}", ""]
    return "\n".join(lines)


def _explain(exc: ValidationError, flags: Mapping[str, object]) -> str:
    lines: list[str] = []
    for error in exc.errors():
        field = str(error["loc"][0])
        name = f"--{field.replace('_', '-')}" if field in flags else PREFIX + field.upper()
        reason = error["msg"].removeprefix("Value error, ")
        value = "" if field == "api_keys" else f" is {error['input']!r}"
        hint = ""
        if field == "port" and str(error["input"]).startswith("tcp://"):
            hint = (
                " (Kubernetes sets it for a service named 'matryo': "
                "set enableServiceLinks: false in the pod)"
            )
        lines.append(f"{name}{value}: {reason}{hint}")
    return "\n".join(lines)
