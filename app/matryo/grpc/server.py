"""The gRPC server of a process: its port, TLS, bounds and end.

It runs on the event loop of the HTTP server, whose drain takes it along.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc

from matryo.core.errors import SettingsInvalid
from matryo.core.metrics import Metrics
from matryo.core.settings import Settings
from matryo.core.tls import Tls
from matryo.core.tls_keeper import TlsKeeper
from matryo.grpc import encoderfile, health, inference, reflection, tei
from matryo.grpc.aio import Methods, server_of
from matryo.grpc.calls import Door, Limits
from matryo.service import Service

log = logging.getLogger("matryo")

_MOST_METADATA_BYTES = 16 * 1024
_NO_COMPRESSION = 1  # a set of algorithms, with a bit for each


@dataclass(frozen=True, slots=True)
class GrpcConfig:
    """The operator's choices.

    Attributes:
        host: address to listen on, or a name.
        port: 0 for any that is free.
        max_message_bytes: of one message that is read.
        first_s: seconds to the first bytes of a connection, TLS included.
        idle_s: seconds after which a connection without a call is closed.
        limits: of the calls.
        version: of the server.
        log_client: whether log lines have the address of the peer.
    """

    host: str
    port: int
    max_message_bytes: int
    first_s: float
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
        max_message_bytes=settings.max_body_bytes,
        first_s=settings.head_timeout_s,
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
        tls: of the connections; None for no TLS.

    Attributes:
        port: that the server listens on, once it is entered.
    """

    def __init__(
        self, service: Service, config: GrpcConfig, metrics: Metrics, tls: TlsKeeper | None = None
    ) -> None:
        self._service, self._config, self._metrics = service, config, metrics
        self._tls = tls
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
            if self._tls:
                self.port = server.add_secure_port(address, _credentials(self._tls))
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
        ("grpc.server_handshake_timeout_ms", int(1000 * config.first_s)),
        ("grpc.max_connection_idle_ms", int(1000 * config.idle_s)),
        # A compressed message may be a thousand times as large as its bytes.
        ("grpc.compression_enabled_algorithms_bitset", _NO_COMPRESSION),
    ]


def _credentials(tls: TlsKeeper) -> grpc.ServerCredentials:
    """Credentials that each handshake asks for a newer certificate."""
    used = tls.current

    def newer() -> grpc.ServerCertificateConfiguration | None:
        """What has come since the last handshake, if anything has; called on any thread."""
        nonlocal used
        if (now := tls.current) is used:
            return None
        used = now
        return _configuration(now)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(used),
        newer,  # pyright: ignore[reportArgumentType] - None, for no change, is missing in the types
        require_client_authentication=used.client_ca is not None,
    )


def _configuration(tls: Tls) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(tls.key, tls.chain)], tls.client_ca)
