"""Every setting: meaning, default and bounds. `matryo.core.environment` reads the settings.

Lower layers get small frozen configs made from them, never `Settings` itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from matryo.core.choices import KernelsChoice, PrecisionChoice, TokenInput
from matryo.core.networks import Networks
from matryo.core.sources import (
    check_quotes,
    existing,
    expanded,
    plain,
    shown,
)

OPENAI_NAMES = ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002")
"""Aliases that every server has, because clients of OpenAI ask for them."""

_Words = tuple[str, ...]
_Seconds = Annotated[float, Field(le=86_400, allow_inf_nan=False)]

_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_S3_URL = re.compile(r"s3://[A-Za-z0-9][A-Za-z0-9._-]+(/[^?#]*)?")
_MOST = 10**15  # far above any machine, and exact in the floats of metrics


class Settings(BaseModel):
    """The operator's choices; the description of each field is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    model: _Words = Field(
        ("nomic-embed-text-v1.5",),
        description="Models to serve, separated by commas; the first is the default.",
    )
    precision: PrecisionChoice = Field(
        "fp32",
        description="Precision of every model served: fp32, int8, q8, q4, or auto, which is int8 "
        "if the model offers it, else fp32.",
    )
    kernels: KernelsChoice = Field(
        "auto",
        description="Operators of fp32 and int8: onnxruntime's own, native for those of the "
        "package matryo-native, or auto, which is native if the package is installed and fast on "
        "this CPU. The fingerprint of native vectors ends in +native.",
    )
    home: Path = Field(
        Path("~/.cache/matryo"), description="The store of checkpoints and artefacts."
    )
    trust_manifest: bool = Field(
        default=False,
        description="Build a model although its checkpoint's own files contradict its model.toml; "
        "the fingerprint then ends in +trusted.",
    )
    models: _Words = Field(
        (),
        description="More folders of model folders, separated by commas; later ones win.",
    )
    host: str = Field(
        "127.0.0.1",
        description="Address to listen on; 0.0.0.0 for every one. A name stands for each of its "
        "addresses.",
    )
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 for any free one.")
    uds: Path | None = Field(
        None,
        description="Path of a Unix socket to listen on, in place of host and port; its owner and "
        "its group may connect.",
    )
    grpc_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of the gRPC services, on the same host; 0 for any free one, empty = no "
        "gRPC. Needs matryo[grpc].",
    )
    tls_cert_file: Path | None = Field(
        None,
        description="Certificate chain of the server, a PEM file with the server's own certificate "
        "first; empty = no TLS. Read again when it changes, like the two files below.",
    )
    tls_key_file: Path | None = Field(
        None, description="Private key of the certificate, a PEM file without a password."
    )
    tls_client_ca_file: Path | None = Field(
        None,
        description="Authorities whose certificates every client must show one of, a PEM file; "
        "empty = clients show none.",
    )
    grpc_cert_file: Path | None = Field(
        None,
        description="Certificate chain of the gRPC port, a PEM file; empty = MATRYO_TLS_CERT_FILE.",
    )
    grpc_key_file: Path | None = Field(
        None,
        description="Private key of that certificate, a PEM file without a password.",
    )
    grpc_client_ca_file: Path | None = Field(
        None,
        description="Authorities of the clients of the gRPC port, a PEM file; empty = "
        "MATRYO_TLS_CLIENT_CA_FILE.",
    )
    forwarded_allow_ips: _Words = Field(
        ("127.0.0.1",),
        description="Proxies whose headers Forwarded, X-Forwarded-For and X-Forwarded-Proto say "
        "who calls: addresses and networks, separated by commas; * for every peer, none for "
        "nobody. Peers over a Unix socket count as proxies, except with none.",
    )
    root_path: str | None = Field(
        None,
        description="Prefix of every path behind a proxy, such as /embeddings-service. Requests "
        "are answered with the prefix and without it.",
    )
    backlog: int = Field(
        2048,
        ge=1,
        le=65_535,
        description="Connections that wait until the server accepts them. The kernel cuts the "
        "number to net.core.somaxconn.",
    )
    head_timeout_s: _Seconds = Field(
        20,
        gt=0,
        description="Seconds to the first byte of a connection, a TLS handshake included, and for "
        "all headers of a request; past it the connection is closed, or the request gets 408.",
    )
    write_timeout_s: _Seconds = Field(
        30,
        gt=0,
        description="Seconds without progress after which a caller that does not read its answer "
        "is disconnected.",
    )
    min_read_rate: int = Field(
        65_536,
        ge=1,
        le=_MOST,
        description="Bytes a second at which a caller must read an answer on average, past the "
        "first MATRYO_WRITE_TIMEOUT_S; slower ones are disconnected. An upload to the Batch API "
        "must come as fast, past the first MATRYO_BODY_TIMEOUT_S.",
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of /metrics, /livez, /readyz and /health alone, on the same host; 0 for "
        "any free one, empty = the service's own port. With a port of its own, /metrics is no "
        "longer on the service's port.",
    )
    metrics_key: str | None = Field(
        None,
        repr=False,
        description="Key that a scrape of /metrics shows, as Authorization: Bearer KEY or as the "
        "password of Basic; empty = open to all.",
    )
    api_keys: _Words = Field(
        (),
        repr=False,
        description="Keys that may call, separated by commas; none = open to all.",
    )
    keys_file: Path | None = Field(
        None,
        description="File of keys with names and limits, TOML (docs/keys.md); read again when it "
        "changes and after SIGHUP. Empty = no file.",
    )
    keys: str | None = Field(
        None,
        repr=False,
        description="The same lines as in the file of keys; empty = none.",
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
        le=1_000_000,
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
        allow_inf_nan=False,
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
    pin_processes: bool = Field(
        default=True,
        description="Run each of several processes on the cores of one NUMA node, if the machine "
        "has several nodes and each can get equally many processes.",
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
        le=_MOST,
        description="Tokens admitted and not yet answered; past it requests get 429. A single "
        "request is always admitted when nothing else waits.",
    )
    max_wait_s: _Seconds = Field(
        60,
        gt=0,
        description="Seconds that a request may have to wait for its answer, by the measured speed "
        "of the model; past it requests get 429. A client that announces a shorter patience "
        "(x-stainless-read-timeout) is held to that.",
    )
    max_waiting_requests: int = Field(
        4096,
        ge=1,
        le=_MOST,
        description="Requests admitted and not yet answered; past it requests get 429.",
    )
    memory_budget_bytes: int = Field(
        0,
        ge=0,
        le=_MOST,
        description="Bytes that all requests of the server may hold at once: bodies, tokens, "
        "results and answers; past it requests get 429. 0 = a quarter of the memory that the "
        "container or the machine has.",
    )
    unknown_fields: Literal["warn", "refuse"] = Field(
        "warn",
        description="Fields of a request that nobody knows: warn ignores them and says so in "
        "x-matryo-warning, refuse answers 400. docs/fields.md lists those that are known.",
    )
    max_inputs: int = Field(
        2048,
        ge=1,
        le=_MOST,
        description="Texts, or arrays of token ids, of one request; past it 400. OpenAI takes "
        "2048.",
    )
    max_request_tokens: int = Field(
        300_000,
        ge=1,
        le=_MOST,
        description="Tokens of all texts of one request; past it 400. OpenAI takes 300000.",
    )
    max_body_bytes: int = Field(
        16 * 1024 * 1024,
        ge=1024,
        le=_MOST,
        description="Largest request body in bytes; past it 413.",
    )
    body_timeout_s: _Seconds = Field(
        60,
        gt=0,
        description="Seconds a request body may take to arrive; past it 408. Of an upload to the "
        "Batch API, seconds without a byte.",
    )
    ready_interval_s: _Seconds = Field(
        30,
        gt=0,
        description="/readyz is true if the model ran within this many seconds.",
    )
    grace_s: _Seconds = Field(
        25, ge=0, description="Seconds that running requests get after SIGTERM."
    )
    drain_delay_s: _Seconds = Field(
        0,
        ge=0,
        description="Seconds after SIGTERM in which new requests are still taken while /readyz "
        "already answers 503, for load balancers that learn late. The grace begins after them.",
    )
    keep_alive_s: _Seconds = Field(
        75,
        gt=0,
        description="Seconds that a connection may stay open without a request. Above the idle "
        "timeout of a proxy in front, so that the proxy is the first to close.",
    )
    max_connections: int = Field(
        4096,
        ge=1,
        le=1_000_000,
        description="Open connections of a server process, within its limit of open files. Past "
        "it the connection that was idle longest, or else one with a part of a request, is closed; "
        "if every one has a whole request, the new one gets 503.",
    )
    cors_origins: _Words = Field(
        (),
        description="Origins that browsers may call from, separated by commas; * for any.",
    )
    page: bool = Field(
        default=True,
        description="Serve a page for people at / (docs/page.md); false takes the page away. The "
        "page asks for a key where the API does.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="auto = text on a terminal, JSON lines elsewhere."
    )
    log_client: bool = Field(
        default=False, description="Write the address of each request's peer to its log line."
    )
    batch: bool = Field(
        default=False,
        description="Serve OpenAI's Batch API: /v1/files and /v1/batches (docs/batch.md). Needs "
        "matryo[batch].",
    )
    batch_dir: Path | None = Field(
        None,
        description="Folder of the Batch API's files and of its SQLite database; empty = batches "
        "in MATRYO_HOME.",
    )
    batch_database: str | None = Field(
        None,
        repr=False,
        description="Database that replicas share, as postgresql://USER:PASSWORD@HOST/NAME; empty "
        "= SQLite in MATRYO_BATCH_DIR.",
    )
    batch_store: str | None = Field(
        None,
        description="Object store of the bytes of files, as s3://BUCKET/PREFIX; AWS's own "
        "variables hold credentials, region and endpoint. Empty = MATRYO_BATCH_DIR.",
    )
    batch_max_file_bytes: int = Field(
        209_715_200,
        ge=1024,
        le=_MOST,
        description="Largest file that can be uploaded, in bytes; past it 413. OpenAI takes "
        "209715200.",
    )
    batch_max_lines: int = Field(
        50_000,
        ge=1,
        le=_MOST,
        description="Lines of a batch's input file, and texts of all its lines together; past it "
        "the batch fails. OpenAI takes 50000.",
    )
    batch_key_bytes: int = Field(
        10 * 1024**3,
        ge=1024,
        le=_MOST,
        description="Bytes of all files of one API key, results included; past it uploads and new "
        "batches get 429.",
    )
    batch_key_files: int = Field(
        1000,
        ge=1,
        le=_MOST,
        description="Files of one API key, results included; past it uploads get 429.",
    )
    batch_key_batches: int = Field(
        100,
        ge=1,
        le=_MOST,
        description="Batches of one API key that have not ended; past it new ones get 429.",
    )
    batch_retention_days: float = Field(
        30,
        gt=0,
        le=36_500,
        allow_inf_nan=False,
        description="Days after which a file of the Batch API expires, unless its request says "
        "otherwise, and days that an ended batch is kept.",
    )
    batch_lease_s: _Seconds = Field(
        60,
        ge=1,
        description="Seconds without a sign of life after which another process takes over a "
        "batch.",
    )
    tracing: bool = Field(
        default=False,
        description="Send a trace of each request to an OpenTelemetry collector; OTEL_* variables "
        "of the environment say where, and how many (docs/traces.md). Needs matryo[otel].",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _clean(cls, value: object, info: ValidationInfo) -> object:
        """A text without blanks and quotes around it; a list as its words."""
        name = info.field_name or ""
        is_list = cls.model_fields[name].annotation == _Words
        if not is_list:
            if not isinstance(value, str):
                return value
            if name == "keys":  # TOML, where a quote may well stand at one end
                return plain(value)
            value = check_quotes(plain(value))
            return value.lower() if name in _ANY_CASE else value
        if isinstance(value, str):
            value = tuple(plain(value).split(","))
        if not isinstance(value, (tuple, list)):
            return value
        return cls._words(name, [str(word) for word in value])  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]

    @staticmethod
    def _words(name: str, words: list[str]) -> tuple[str, ...]:
        cleaned: list[str] = []
        for number, word in enumerate(words, 1):
            if not word.strip():
                if name == "api_keys":  # a key was meant, and the server must not be open
                    raise ValueError(
                        f"has a blank key, number {number} of {len(words)}. Give every key, or "
                        "leave it empty to let everybody call"
                    )
                continue
            try:
                cleaned.append(check_quotes(plain(word)))
            except ValueError as exc:
                # Named by number, never quoted: a word may be a key, and this may end in a log.
                raise ValueError(f"has word number {number} of {len(words)}, which {exc}") from exc
        return tuple(cleaned)

    @field_validator("home")
    @classmethod
    def _home(cls, value: Path) -> Path:
        return existing(expanded(value), "the store")

    @field_validator("models")
    @classmethod
    def _folders(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(existing(expanded(word), "model folders")) for word in value)

    @field_validator("batch_dir")
    @classmethod
    def _batch_dir(cls, value: Path | None) -> Path | None:
        return value and existing(expanded(value).absolute(), "the files of batches")

    @field_validator("batch_database")
    @classmethod
    def _batch_database(cls, value: str | None) -> str | None:
        # The value may hold a password, and this message may end in a log.
        if value and not value.startswith(("postgresql://", "postgresql+psycopg://")):
            raise ValueError(
                "is no URL of a PostgreSQL database. Write postgresql://USER:PASSWORD@HOST/NAME, "
                "or leave it empty to have SQLite in MATRYO_BATCH_DIR"
            )
        return value

    @field_validator("batch_store")
    @classmethod
    def _batch_store(cls, value: str | None) -> str | None:
        if value and not _S3_URL.fullmatch(value):
            raise ValueError(
                f"is {shown(value)}, which is no URL of an S3 bucket. Write s3://BUCKET/PREFIX, or "
                "leave it empty to have files in MATRYO_BATCH_DIR"
            )
        return value

    @field_validator("uds")
    @classmethod
    def _socket(cls, value: Path | None) -> Path | None:
        return value and expanded(value).absolute()

    @field_validator(
        "tls_cert_file",
        "tls_key_file",
        "tls_client_ca_file",
        "grpc_cert_file",
        "grpc_key_file",
        "grpc_client_ca_file",
    )
    @classmethod
    def _pem(cls, value: Path | None) -> Path | None:
        return value and expanded(value).absolute()

    @field_validator("keys_file")
    @classmethod
    def _keys_file(cls, value: Path | None) -> Path | None:
        return value and expanded(value).absolute()

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        Networks(value)
        return value

    @field_validator("root_path")
    @classmethod
    def _prefix(cls, value: str | None) -> str | None:
        path = (value or "").rstrip("/")
        if path and not _ROOT_PATH.fullmatch(path):
            raise ValueError(
                f"is {shown(value)}, which is no prefix of a path. Write a slash, then letters, "
                "digits and . _ ~ -, such as /embeddings-service"
            )
        return path or None

    @field_validator("host")
    @classmethod
    def _address(cls, value: str) -> str:
        # A URL writes an IPv6 address in brackets.
        return value[1:-1] if value.startswith("[") and value.endswith("]") else value

    @field_validator("metrics_port")
    @classmethod
    def _own_port(cls, value: int | None, info: ValidationInfo) -> int | None:
        for name in ("port", "grpc_port"):
            if value and value == info.data.get(name):
                raise ValueError(
                    f"is {value}, as MATRYO_{name.upper()} is. Choose another port, or leave it "
                    "empty to have /metrics on the service's own port"
                )
        return value

    @field_validator("metrics_key")
    @classmethod
    def _metrics_key(cls, value: str | None) -> str | None:
        if value is not None and (
            not value or not value.isascii() or not value.isprintable() or " " in value
        ):
            raise ValueError(
                "is empty, or has a blank or a character outside printable ASCII. Choose another "
                "key, or leave it out to have /metrics open to all"
            )
        return value

    @field_validator("model")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("names no model. Give at least one id, such as nomic-embed-text-v1.5")
        return tuple(dict.fromkeys(value))

    @field_validator("api_keys")
    @classmethod
    def _ascii_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, key in enumerate(value, 1):
            if not (key.isascii() and key.isprintable()) or " " in key:
                raise ValueError(
                    f"has key number {number} of {len(value)}, which has a blank or a character "
                    "outside printable ASCII. Choose another key"
                )
        return value

    @property
    def batch_folder(self) -> Path:
        """The folder of the Batch API's files and of its SQLite database."""
        return self.batch_dir or self.home / "batches"

    @property
    def has_keys(self) -> bool:
        """Whether callers must show a key."""
        return bool(self.api_keys or self.keys or self.keys_file)

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


_ANY_CASE = frozenset(("log_level", "log_format", "precision"))
