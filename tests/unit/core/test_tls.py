"""What is in the files of TLS, and which faults of them are found at the start."""

from __future__ import annotations

import datetime as dt
import errno
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from prometheus_client import CollectorRegistry

from matryo.core import tls_keeper
from matryo.core.certificate import expiry_of
from matryo.core.environment import load_settings
from matryo.core.errors import SettingsInvalid
from matryo.core.metrics import Metrics
from matryo.core.reload import Reloads
from matryo.core.settings import Settings
from matryo.core.tls import files_of_grpc, files_of_http, read_tls
from matryo.core.tls_keeper import watch_tls
from tests.certificates import Authority, Pair, replace


@pytest.fixture(scope="module")
def authority() -> Authority:
    """An authority of all tests."""
    return Authority()


@pytest.fixture
def pair(authority: Authority) -> Pair:
    """A certificate of localhost, and its key."""
    return authority.issue()


def given(**changes: Any) -> Settings:
    """Settings from flags alone."""
    return load_settings(None, **changes)


def of_pair(cert: Path, key: Path, **changes: Any) -> Settings:
    """Settings with the pair of HTTP."""
    return given(tls_cert_file=str(cert), tls_key_file=str(key), **changes)


def read_http(settings: Settings) -> None:
    """Read the files of HTTP."""
    files = files_of_http(settings)
    assert files
    read_tls(files)


class TestExpiry:
    """When a certificate expires."""

    @pytest.mark.parametrize("days", [-3, 0.5, 90, 20_000])
    def test_dates(self, authority: Authority, days: float) -> None:
        """The end of validity is read to the second, past 2049 too, where its form is another."""
        one = authority.issue(days=days).certificate
        assert expiry_of(one.public_bytes(Encoding.PEM).decode()) == (
            one.not_valid_after_utc.timestamp()
        )

    def test_no_certificate(self) -> None:
        """Bytes that are no certificate are an error."""
        with pytest.raises(ValueError, match="no certificate"):
            expiry_of("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----")


class TestFaults:
    """Each fault names the setting, the file and the remedy."""

    @pytest.mark.parametrize(
        ("change", "setting", "says"),
        [
            pytest.param(
                lambda cert, key, pair: cert.unlink(), "CERT", "No such file", id="no cert"
            ),
            pytest.param(lambda cert, key, pair: key.unlink(), "KEY", "No such file", id="no key"),
            pytest.param(
                lambda cert, key, pair: cert.write_bytes(b" \n"), "CERT", "is empty", id="empty"
            ),
            pytest.param(
                lambda cert, key, pair: cert.write_bytes(pair.cert_der),
                "CERT",
                "openssl x509 -inform der",
                id="cert in DER",
            ),
            pytest.param(
                lambda cert, key, pair: key.write_bytes(
                    pair.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
                ),
                "KEY",
                "openssl pkey -inform der",
                id="key in DER",
            ),
            pytest.param(
                lambda cert, key, pair: cert.write_bytes(pair.key_pem),
                "CERT",
                "has no certificate, but PRIVATE KEY",
                id="cert is a key",
            ),
            pytest.param(
                lambda cert, key, pair: key.write_bytes(pair.cert_pem),
                "KEY",
                "has no private key, but CERTIFICATE",
                id="key is a cert",
            ),
            pytest.param(
                lambda cert, key, pair: key.write_bytes(pair.locked_key_pem()),
                "KEY",
                "has a password. Write the key without one",
                id="password",
            ),
            pytest.param(
                lambda cert, key, pair: key.write_bytes(
                    pair.locked_key_pem(PrivateFormat.TraditionalOpenSSL)
                ),
                "KEY",
                "has a password. Write the key without one",
                id="old password",
            ),
            pytest.param(
                lambda cert, key, pair: key.write_bytes(Authority().issue().key_pem),
                "KEY",
                "is not the key of the first certificate",
                id="another key",
            ),
            pytest.param(
                lambda cert, key, pair: cert.write_bytes(pair.cert_pem.replace(b"M", b"A")),
                "CERT",
                "cannot be used",
                id="damaged",
            ),
        ],
    )
    def test_file(
        self,
        tmp_path: Path,
        pair: Pair,
        change: Callable[[Path, Path, Pair], None],
        setting: str,
        says: str,
    ) -> None:
        """A file that TLS cannot use is refused in one sentence about that file."""
        cert, key = pair.write(tmp_path)
        change(cert, key, pair)
        with pytest.raises(SettingsInvalid, match=re.escape(says)) as error:
            read_http(of_pair(cert, key))
        name = {"CERT": cert, "KEY": key}[setting]
        assert error.value.message.startswith(f"MATRYO_TLS_{setting}_FILE={name} ")

    def test_no_permission(
        self, tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A key that another user owns is a matter of permission."""
        cert, key = pair.write(tmp_path)
        read = Path.read_bytes

        def refuse(path: Path) -> bytes:  # root, who may run this test, may read every file
            if path == key:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return read(path)

        monkeypatch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(SettingsInvalid, match=r"KEY_FILE=.* cannot be read: Permission denied"):
            read_http(of_pair(cert, key))

    def test_a_folder(self, tmp_path: Path, pair: Pair) -> None:
        """What cannot be read as a file is refused with the system's reason."""
        cert, _ = pair.write(tmp_path)
        with pytest.raises(SettingsInvalid, match=r"KEY_FILE=.* cannot be read: Is a directory"):
            read_http(of_pair(cert, tmp_path))

    def test_expired(self, tmp_path: Path, authority: Authority) -> None:
        """A certificate that has expired is refused, with the day."""
        pair = authority.issue(days=-2)
        day = dt.datetime.now(dt.UTC) - dt.timedelta(days=2)
        with pytest.raises(SettingsInvalid, match=f"expired on {day:%Y-%m-%d}.*Renew"):
            read_http(of_pair(*pair.write(tmp_path)))

    @pytest.mark.parametrize(
        ("content", "says"),
        [("cert_der", "is no PEM file"), ("key_pem", "has no certificate, but PRIVATE KEY")],
    )
    def test_client_ca(self, tmp_path: Path, pair: Pair, content: str, says: str) -> None:
        """Authorities of clients must be certificates."""
        ca = tmp_path / "ca.pem"
        ca.write_bytes(getattr(pair, content))
        settings = of_pair(*pair.write(tmp_path), tls_client_ca_file=str(ca))
        with pytest.raises(SettingsInvalid, match=re.escape(f"CLIENT_CA_FILE={ca} {says}")):
            read_http(settings)

    @pytest.mark.parametrize(
        ("names", "missing"),
        [
            (["tls_cert_file"], "without MATRYO_TLS_KEY_FILE"),
            (["tls_key_file"], "without MATRYO_TLS_CERT_FILE"),
            (["tls_client_ca_file"], "without MATRYO_TLS_CERT_FILE and MATRYO_TLS_KEY_FILE"),
            (["tls_client_ca_file", "tls_key_file"], "without MATRYO_TLS_CERT_FILE"),
        ],
    )
    def test_part(self, names: list[str], missing: str) -> None:
        """A part of the settings alone is refused: the operator meant TLS."""
        with pytest.raises(SettingsInvalid, match=missing):
            files_of_http(given(**dict.fromkeys(names, "x.pem")))


class TestFilesOfGrpc:
    """Which files the gRPC port has."""

    TLS: ClassVar = {"tls_cert_file": "/c", "tls_key_file": "/k", "tls_client_ca_file": "/a"}

    @pytest.mark.parametrize(
        ("own", "expected"),
        [
            ({}, "/c /k /a"),
            ({"grpc_cert_file": "/gc", "grpc_key_file": "/gk"}, "/gc /gk /a"),
            ({"grpc_client_ca_file": "/ga"}, "/c /k /ga"),
        ],
    )
    def test_own(self, own: dict[str, str], expected: str) -> None:
        """A pair of its own replaces that of HTTP, and authorities of its own those of HTTP."""
        files = files_of_grpc(given(**self.TLS, **own))
        assert files
        assert " ".join(map(str, files.paths)) == expected

    def test_none(self) -> None:
        """Without files there is no TLS."""
        assert files_of_grpc(given()) is None

    @pytest.mark.parametrize(
        ("name", "missing"),
        [
            ("grpc_cert_file", "without MATRYO_GRPC_KEY_FILE"),
            ("grpc_key_file", "without MATRYO_GRPC_CERT_FILE"),
            ("grpc_client_ca_file", "without MATRYO_GRPC_CERT_FILE and MATRYO_GRPC_KEY_FILE"),
        ],
    )
    def test_part(self, name: str, missing: str) -> None:
        """A part alone is refused."""
        with pytest.raises(SettingsInvalid, match=missing):
            files_of_grpc(given(**{name: "x.pem"}))


class Server:
    """The keepers of a server with TLS on both ports, and what it counts."""

    def __init__(self, settings: Settings) -> None:
        self.counted: list[tuple[str, str]] = []
        self.reloads = Reloads(lambda what, how: self.counted.append((what, how)))
        self.metrics = Metrics(CollectorRegistry())
        self.ports = watch_tls(settings, self.metrics, self.reloads)

    def reload(self) -> None:
        """Read the files as SIGHUP does."""
        for use in self.reloads.read(at_once=True):
            use()

    def expiry(self, port: str) -> float | None:
        """The metric of a port."""
        name = "matryo_tls_certificate_expiry_timestamp_seconds"
        return self.metrics.registry.get_sample_value(name, {"port": port})


class TestKeeping:
    """What is in use, and for how long."""

    def test_shared_files(self, tmp_path: Path, pair: Pair) -> None:
        """Two ports with the same files have one keeper, read the files once, and both count."""
        server = Server(of_pair(*pair.write(tmp_path), grpc_port=0))
        assert server.ports.http is server.ports.grpc
        assert len(list(server.ports)) == 1
        expected = pair.certificate.not_valid_after_utc.timestamp()
        assert server.expiry("http") == server.expiry("grpc") == expected
        server.reload()
        assert server.counted == [("tls", "ok")]

    def test_no_port(self, tmp_path: Path, pair: Pair) -> None:
        """A server without gRPC has nothing to say of that port."""
        server = Server(of_pair(*pair.write(tmp_path)))
        assert server.ports.grpc is None
        assert server.expiry("grpc") is None

    def test_half_renewed(
        self,
        tmp_path: Path,
        authority: Authority,
        pair: Pair,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A new certificate with the old key is refused in one line; with its key it is used."""
        cert, key = pair.write(tmp_path)
        server = Server(of_pair(cert, key))
        assert server.ports.http
        before = server.ports.http.current
        renewed = authority.issue(days=60)
        replace(cert, renewed.cert_pem)
        server.reload()
        assert server.ports.http.current is before
        assert server.counted == [("tls", "refused")]
        lines = [one.getMessage() for one in caplog.records]
        assert [line for line in lines if "is not the key of the first certificate" in line] == [
            lines[-1]
        ]
        replace(key, renewed.key_pem)
        server.reload()
        assert server.ports.http.current.key == renewed.key_pem
        assert server.counted[1:] == [("tls", "ok")]
        assert server.expiry("http") == renewed.certificate.not_valid_after_utc.timestamp()

    @pytest.mark.parametrize(("days", "warns"), [(13.9, True), (14.1, False)])
    def test_warning(
        self,
        tmp_path: Path,
        authority: Authority,
        caplog: pytest.LogCaptureFixture,
        days: float,
        warns: bool,
    ) -> None:
        """A certificate with less than 14 days left is a warning."""
        Server(of_pair(*authority.issue(days=days).write(tmp_path)))
        found = [one for one in caplog.records if "expires in 13.9 days" in one.getMessage()]
        assert [one.levelno for one in found] == ([logging.WARNING] if warns else [])

    def test_it_expires_in_use(
        self,
        tmp_path: Path,
        pair: Pair,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A certificate that expires while it is in use stays, and is an error in the log."""
        server = Server(of_pair(*pair.write(tmp_path)))
        assert server.ports.http
        end = server.ports.http.current.expires_at
        monkeypatch.setattr(tls_keeper.time, "time", lambda: end + 1)
        server.ports.http.warn_of_expiry()
        assert caplog.records[-1].levelno == logging.ERROR
        assert "clients refuse it" in caplog.records[-1].getMessage()
