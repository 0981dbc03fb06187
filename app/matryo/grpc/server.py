"""The gRPC server of a process: its port, TLS, bounds and end.

It runs on the event loop of the HTTP server, whose drain takes it along.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from matryo.core.errors import SettingsInvalid
from matryo.core.metrics import Metrics
from matryo.core.settings import Settings
from matryo.grpc import encoderfile, health, inference, reflection, tei
from matryo.grpc.aio import Methods, server_of
from matryo.grpc.calls import Door, Limits
from matryo.service import Service

log = logging.getLogger("matryo")

FIRST_S = 20
"""Seconds to the first bytes of a connection, TLS included."""
_MOST_METADATA_BYTES = 16 * 1024
_NO_COMPRESSION = 1  # a set of algorithms, with a bit for each


@dataclass(frozen=True, slots=True)
class GrpcConfig:
    """The operator's choices.

    Attributes:
        host: address to listen on, or a name.
        port: 0 for any that is free.
        cert_file: certificate chain; None for no TLS.
        key_file: private key of the certificate.
        max_message_bytes: of one message that is read.
        idle_s: seconds after which a connection without a call is closed.
        limits: of the calls.
        version: of the server.
        log_client: whether log lines have the address of the peer.
    """

    host: str
    port: int
    cert_file: Path | None
    key_file: Path | None
    max_message_bytes: int
    idle_s: float
    limits: Limits
    version: str
    log_client: bool


def config_of(settings: Settings, version: str) -> GrpcConfig:
    """The part of the settings that is about gRPC.

    Args:
        settings: of the server; `grpc_port` must be set.
        version: of the server.
    """
    assert settings.grpc_port is not None
    return GrpcConfig(
        host=settings.host,
        port=settings.grpc_port,
        cert_file=settings.grpc_cert_file,
        key_file=settings.grpc_key_file,
        max_message_bytes=settings.max_body_bytes,
        idle_s=settings.keep_alive_s,
        limits=Limits(
            timeout_s=settings.body_timeout_s,
            max_texts=settings.max_inputs,
            max_calls=settings.max_connections,
        ),
        version=version,
        log_client=settings.log_client,
    )


class GrpcServer:
    """The server. An asynchronous context: enter it after the service.

    Args:
        service: answers the calls.
        config: the operator's choices.
        metrics: what is counted.

    Raises:
        SettingsInvalid: the files for TLS cannot be used.

    Attributes:
        port: that the server listens on, once it is entered.
    """

    def __init__(self, service: Service, config: GrpcConfig, metrics: Metrics) -> None:
        self._service, self._config, self._metrics = service, config, metrics
        self._credentials = _credentials(config.cert_file, config.key_file)
        self._server: grpc.aio.Server | None = None
        self._draining = asyncio.Event()
        self.port = config.port

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            SettingsInvalid: the address cannot be used.
        """
        config = self._config
        door = Door(
            self._service,
            self._metrics,
            config.limits,
            config.version,
            config.log_client,
            self._draining,
            (config.host, config.port),
        )
        server = server_of(_handlers(door), _options(config), config.limits.max_calls)
        host = f"[{config.host}]" if ":" in config.host else config.host
        address = f"{host}:{config.port}"
        try:
            if self._credentials:
                self.port = server.add_secure_port(address, self._credentials)
            else:
                self.port = server.add_insecure_port(address)
        except RuntimeError as exc:
            raise SettingsInvalid(
                f"cannot listen for gRPC on {address}. Choose another port with MATRYO_GRPC_PORT, "
                "or another host with MATRYO_HOST."
            ) from exc
        await server.start()
        self._server = server
        return self

    async def drain(self, grace_s: float) -> None:
        """Take no more calls, and return once those that run have ended, or the grace is over.

        The service must drain too: it ends the calls that wait for it.
        """
        self._draining.set()
        if self._server:
            await self._server.stop(grace_s)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every call now."""
        self._draining.set()
        if self._server:
            await self._server.stop(None)


def _handlers(door: Door) -> dict[str, Methods]:
    """The handlers of every service."""
    services = (*tei.SERVICES, *encoderfile.SERVICES, *inference.SERVICES)
    return (
        tei.handlers(door)
        | encoderfile.handlers(door)
        | inference.handlers(door)
        | health.handlers(door, services)
        | reflection.handlers(door, (*services, health.SERVICE))
    )


def _options(config: GrpcConfig) -> list[tuple[str, int]]:
    """The library's own settings.

    Source: grpc, `include/grpc/impl/channel_arg_names.h`.
    """
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        # How large an answer may be is the client's choice.
        ("grpc.max_send_message_length", -1),
        # The processes of one server share the port.
        ("grpc.so_reuseport", 1),
        # Calls that arrive faster than Python takes them; past the first number some are dropped.
        ("grpc.server.max_pending_requests", config.limits.max_calls),
        ("grpc.server.max_pending_requests_hard_limit", 2 * config.limits.max_calls),
        # Twice the library's bound. Between two bounds calls would be refused at random.
        ("grpc.max_metadata_size", _MOST_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _MOST_METADATA_BYTES),
        ("grpc.max_allowed_incoming_connections", config.limits.max_calls),
        ("grpc.server_handshake_timeout_ms", int(1000 * FIRST_S)),
        ("grpc.max_connection_idle_ms", int(1000 * config.idle_s)),
        # A compressed message may be a thousand times as large as its bytes.
        ("grpc.compression_enabled_algorithms_bitset", _NO_COMPRESSION),
    ]


def _credentials(cert_file: Path | None, key_file: Path | None) -> grpc.ServerCredentials | None:
    if cert_file is None and key_file is None:
        return None
    if cert_file is None or key_file is None:
        given, missing = ("CERT", "KEY") if cert_file else ("KEY", "CERT")
        raise SettingsInvalid(
            f"MATRYO_GRPC_{given}_FILE is set without MATRYO_GRPC_{missing}_FILE. TLS needs the "
            "certificate and its key: set both, or none for no TLS."
        )
    try:
        # The library takes any bytes, and then fails each handshake.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_file, key_file, password="")
        pair = key_file.read_bytes(), cert_file.read_bytes()
    except (OSError, ValueError) as exc:  # ssl's error is an OSError
        raise SettingsInvalid(
            f"MATRYO_GRPC_CERT_FILE={cert_file} and MATRYO_GRPC_KEY_FILE={key_file} cannot be "
            f"used: {getattr(exc, 'strerror', None) or exc}. Name two PEM files that this user may "
            "read: a certificate chain, and its key without a password."
        ) from exc
    return grpc.ssl_server_credentials([pair])
