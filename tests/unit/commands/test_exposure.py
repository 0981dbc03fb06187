"""Which servers are open to the world, and say so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from matryo.commands.exposure import scheme_of, warn_of_exposure
from matryo.core.environment import load_settings
from matryo.http.listening import bind


def lines(caplog: pytest.LogCaptureFixture, host: str, **changes: Any) -> list[tuple[int, str]]:
    """Level and first words of each line about a server on this address."""
    caplog.set_level(logging.INFO)
    uds = changes.pop("uds", None)
    listener = bind(host, 0, uds)
    try:
        warn_of_exposure(load_settings(None, **changes), listener)
    finally:
        listener.close()
    return [(one.levelno, one.getMessage().partition(" on ")[0]) for one in caplog.records]


OPEN = [(logging.WARNING, "OPEN TO ALL: no key is asked")]
UNCOVERED = [(logging.INFO, "no TLS")]


@pytest.mark.parametrize(
    ("host", "changes", "expected"),
    [
        ("0.0.0.0", {}, OPEN),  # noqa: S104 - what the warning is about
        ("0.0.0.0", {"tls_cert_file": "c", "tls_key_file": "k"}, OPEN),  # noqa: S104 - as above
        ("0.0.0.0", {"api_keys": "k"}, UNCOVERED),  # noqa: S104 - as above
        ("0.0.0.0", {"api_keys": "k", "tls_cert_file": "c"}, []),  # noqa: S104 - as above
        ("0.0.0.0", {"tls_client_ca_file": "ca"}, []),  # noqa: S104 - as above
        ("127.0.0.1", {}, []),
        ("localhost", {}, []),
        ("127.0.0.1", {"api_keys": "k"}, []),
    ],
)
def test_addresses(
    caplog: pytest.LogCaptureFixture,
    host: str,
    changes: dict[str, Any],
    expected: list[tuple[int, str]],
) -> None:
    """A server that strangers can call without a key warns; one that only this machine can, not."""
    assert lines(caplog, host, **changes) == expected


def test_unix_socket(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A Unix socket is open to nobody else."""
    assert lines(caplog, "0.0.0.0", uds=tmp_path / "s") == []  # noqa: S104 - no address is bound


def test_scheme() -> None:
    """The URL of a server with a certificate is one of HTTPS."""
    assert scheme_of(load_settings(None)) == "http"
    assert scheme_of(load_settings(None, tls_cert_file="c")) == "https"
