"""What a server shows to whom: TLS, and the warning of one that is open to the world."""

from __future__ import annotations

import logging

from matryo.core.settings import Settings
from matryo.core.tls import files_of_grpc, files_of_http, read_tls
from matryo.http.listening import Listener

log = logging.getLogger("matryo")


def scheme_of(settings: Settings) -> str:
    """The scheme of the server's URL."""
    return "https" if settings.tls_cert_file else "http"


def check_tls(settings: Settings) -> None:
    """Return if the files of TLS can be used: a fault should not be found out after a download.

    Raises:
        SettingsInvalid: they cannot.
    """
    ports = [files_of_http(settings)]
    ports += [files_of_grpc(settings)] if settings.grpc_port is not None else []
    for files in filter(None, ports):
        read_tls(files)


def warn_of_exposure(settings: Settings, listener: Listener) -> None:
    """Log a warning if other machines can call without a key, and a line if keys travel openly.

    Neither is logged for a server that asks for clients' certificates, nor for loopback and Unix
    sockets.
    """
    address = listener.open_address()
    if address is None or settings.tls_client_ca_file:
        return
    if not settings.has_keys:
        log.warning(
            "OPEN TO ALL: no key is asked on %s, so whoever reaches this address can embed texts "
            "and fill the queue. Set MATRYO_API_KEYS or MATRYO_KEYS_FILE, ask for clients' "
            "certificates (MATRYO_TLS_CLIENT_CA_FILE), or listen on 127.0.0.1 (--host).",
            address,
        )
    elif not settings.tls_cert_file:
        # Not a warning: in most clusters a proxy ends TLS.
        log.info(
            "no TLS on %s: keys and texts travel as they are, unless a proxy in front speaks TLS "
            "(or MATRYO_TLS_CERT_FILE is set)",
            address,
        )
