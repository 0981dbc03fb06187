"""The certificates in use: replaced when their files change, counted, and warned of.

A connection keeps what it began with. Whatever the next handshake needs is in one object, which is
replaced in one step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from matryo.core.metrics import Metrics
from matryo.core.reload import Reloads
from matryo.core.settings import Settings
from matryo.core.tls import Tls, TlsFiles, day_of, files_of_grpc, files_of_http, read_tls

log = logging.getLogger("matryo")

WARNING_DAYS = 14
"""A certificate that expires in fewer days is a warning, once a day."""

_DAY_S = 86_400


class TlsKeeper:
    """What the next connections get.

    Args:
        note: called with the end of validity of each certificate that is taken into use.
    """

    def __init__(self, note: Callable[[float], None]) -> None:
        self._note = note
        self._current: Tls | None = None

    @property
    def current(self) -> Tls:
        """What is in use now; `use` comes first."""
        assert self._current is not None
        return self._current

    def use(self, tls: Tls) -> None:
        """Give what the files hold to the next connections; connections that are open stay."""
        self._current = tls
        self._note(tls.expires_at)
        self.warn_of_expiry()

    def warn_of_expiry(self) -> None:
        """Log a warning if the certificate expires within `WARNING_DAYS`."""
        tls = self.current
        left_s = tls.expires_at - time.time()
        if left_s >= WARNING_DAYS * _DAY_S:
            return
        remedy = "Replace the files: the server reads them again without a restart."
        day = day_of(tls.expires_at)
        if left_s > 0:
            days = left_s / _DAY_S
            log.warning("%s expires in %.1f days, on %s. %s", tls.name, days, day, remedy)
        else:
            log.error("%s expired on %s, and clients refuse it. %s", tls.name, day, remedy)


@dataclass(frozen=True, slots=True)
class PortTls:
    """The certificates of the ports; None for a port without TLS.

    Attributes:
        http: of the HTTP port.
        grpc: of the gRPC port; the same as of HTTP if their files are the same.
    """

    http: TlsKeeper | None
    grpc: TlsKeeper | None

    def __iter__(self) -> Iterator[TlsKeeper]:
        """Each keeper once."""
        return iter({id(one): one for one in (self.http, self.grpc) if one}.values())


def watch_tls(settings: Settings, metrics: Metrics, reloads: Reloads) -> PortTls:
    """Read the files of every port, and read them again when they change.

    Args:
        settings: of the server.
        metrics: get the end of validity of each certificate.
        reloads: watches the files.

    Raises:
        SettingsInvalid: files that cannot be used.
    """
    ports: dict[str, TlsFiles | None] = {"http": files_of_http(settings)}
    ports["grpc"] = None if settings.grpc_port is None else files_of_grpc(settings)
    keepers: dict[TlsFiles, TlsKeeper] = {}
    for files in filter(None, ports.values()):
        if files in keepers:
            continue
        named = [port for port, found in ports.items() if found == files]

        def note(expires_at: float, named: list[str] = named) -> None:
            for port in named:
                metrics.certificate_expiry.labels(port).set(expires_at)

        keeper = keepers[files] = TlsKeeper(note)
        reloads.watch("tls", files.paths, lambda files=files: read_tls(files), keeper.use)
    http, grpc = (files and keepers[files] for files in ports.values())
    return PortTls(http, grpc)
