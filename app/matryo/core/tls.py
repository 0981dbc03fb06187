"""The files of TLS: which there are for each port, and what they hold, checked.

Every fault that would fail each handshake is found when the files are read: the message names the
setting, the file and the remedy.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from matryo.core.certificate import certificates, expiry_of, labels
from matryo.core.errors import SettingsInvalid
from matryo.core.settings import Settings

# For TLS 1.2: forward secrecy and authenticated encryption alone. TLS 1.3 has no others.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True, slots=True)
class TlsFile:
    """A file, and the setting that names the file."""

    setting: str
    path: Path

    def __str__(self) -> str:
        return f"{self.setting}={self.path}"

    def read(self) -> bytes:
        """The bytes of the file.

        Raises:
            SettingsInvalid: the file is not there, or this user may not read the file.
        """
        try:
            return self.path.read_bytes()
        except OSError as exc:
            raise SettingsInvalid(
                f"{self} cannot be read: {exc.strerror or exc}. Name a file that the server's "
                "user may read."
            ) from exc


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files of one port.

    Attributes:
        cert: certificate chain, the server's own certificate first.
        key: private key of the first certificate.
        client_ca: authorities of clients' certificates; None to ask clients for none.
    """

    cert: TlsFile
    key: TlsFile
    client_ca: TlsFile | None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file."""
        files = (self.cert, self.key, self.client_ca)
        return tuple(file.path for file in files if file)


@dataclass(frozen=True, slots=True)
class Tls:
    """What the files of a port hold, checked.

    Attributes:
        context: for the connections of the HTTP server.
        chain: PEM of the certificate chain.
        key: PEM of the private key.
        client_ca: PEM of the authorities; None to ask clients for no certificate.
        expires_at: when the server's certificate expires, in seconds since 1970.
        name: the setting and the file of the certificate.
    """

    context: ssl.SSLContext
    chain: bytes
    key: bytes
    client_ca: bytes | None
    expires_at: float
    name: str


def files_of_http(settings: Settings) -> TlsFiles | None:
    """The files of the HTTP port; None for no TLS.

    Raises:
        SettingsInvalid: a certificate without a key, or another part without the rest.
    """
    return _files(
        _file("MATRYO_TLS_CERT_FILE", settings.tls_cert_file),
        _file("MATRYO_TLS_KEY_FILE", settings.tls_key_file),
        _file("MATRYO_TLS_CLIENT_CA_FILE", settings.tls_client_ca_file),
        "MATRYO_TLS",
    )


def files_of_grpc(settings: Settings) -> TlsFiles | None:
    """The files of the gRPC port: its own, or else those of the HTTP port; None for no TLS.

    Clients that must show a certificate over HTTP must show one over gRPC too.

    Raises:
        SettingsInvalid: as for `files_of_http`.
    """
    cert = _file("MATRYO_GRPC_CERT_FILE", settings.grpc_cert_file)
    key = _file("MATRYO_GRPC_KEY_FILE", settings.grpc_key_file)
    prefix = "MATRYO_GRPC"
    if not cert and not key:
        cert = _file("MATRYO_TLS_CERT_FILE", settings.tls_cert_file)
        key = _file("MATRYO_TLS_KEY_FILE", settings.tls_key_file)
        prefix = "MATRYO_TLS" if cert or key else prefix
    own_ca = _file("MATRYO_GRPC_CLIENT_CA_FILE", settings.grpc_client_ca_file)
    ca = own_ca or _file("MATRYO_TLS_CLIENT_CA_FILE", settings.tls_client_ca_file)
    return _files(cert, key, ca, prefix)


def _file(setting: str, path: Path | None) -> TlsFile | None:
    return TlsFile(setting, path) if path else None


def _files(
    cert: TlsFile | None, key: TlsFile | None, client_ca: TlsFile | None, prefix: str
) -> TlsFiles | None:
    if cert and key:
        return TlsFiles(cert, key, client_ca)
    given = cert or key or client_ca
    if given is None:
        return None
    missing = [f"{prefix}_CERT_FILE"] if not cert else []
    missing += [f"{prefix}_KEY_FILE"] if not key else []
    raise SettingsInvalid(
        f"{given} is set without {' and '.join(missing)}. TLS needs a certificate and its key: set "
        "both, or leave everything empty for no TLS."
    )


# --- reading


def read_tls(files: TlsFiles) -> Tls:
    """What the files hold.

    Raises:
        SettingsInvalid: a file cannot be read, is no PEM, or does not fit the others; the key has
            a password; or the certificate has expired.
    """
    chain, key = files.cert.read(), files.key.read()
    client_ca = files.client_ca and files.client_ca.read()
    leaf = _certificates(files.cert, chain)[0]
    _check_key(files.key, key)
    context = _context(files)
    expires_at = expiry_of(leaf)
    # Served, an expired certificate would fail each client that checks certificates. The start
    # fails instead, in sight of whoever deploys; a running server keeps the certificate of before.
    if expires_at <= time.time():
        raise SettingsInvalid(
            f"{files.cert} expired on {day_of(expires_at)}. Renew the certificate, or correct the "
            "clock of this machine."
        )
    if files.client_ca and client_ca is not None:
        _trust(context, files.client_ca, client_ca)
    return Tls(context, chain, key, client_ca, expires_at, str(files.cert))


def _certificates(file: TlsFile, pem: bytes) -> list[str]:
    _check_pem(file, pem, "openssl x509 -inform der")
    found = certificates(pem)
    if not found:
        raise SettingsInvalid(
            f"{file} has no certificate, but {', '.join(labels(pem))}. Name a PEM file with "
            "-----BEGIN CERTIFICATE-----."
        )
    return found


def _check_key(file: TlsFile, pem: bytes) -> None:
    _check_pem(file, pem, "openssl pkey -inform der")
    found = labels(pem)
    if not any(label.endswith("PRIVATE KEY") for label in found):
        raise SettingsInvalid(
            f"{file} has no private key, but {', '.join(found)}. Name a PEM file with "
            "-----BEGIN PRIVATE KEY-----."
        )
    if "ENCRYPTED PRIVATE KEY" in found or b"Proc-Type: 4,ENCRYPTED" in pem:
        raise SettingsInvalid(
            f"{file} has a password. Write the key without one, with openssl pkey -in FILE -out "
            "NEW, and let only the server's user read the new file."
        )


def _check_pem(file: TlsFile, pem: bytes, convert: str) -> None:
    if labels(pem):
        return
    found = "is empty" if not pem.strip() else "is no PEM file"
    raise SettingsInvalid(
        f"{file} {found}. Name a text file with a line -----BEGIN ...-----; {convert} -in FILE "
        "-out NEW converts a DER file."
    )


def _context(files: TlsFiles) -> ssl.SSLContext:
    """A context with the pair of files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    try:
        # With a password of its own, the library would ask for one on a terminal.
        context.load_cert_chain(files.cert.path, files.key.path, password="")
    except (OSError, ValueError) as exc:  # ssl's error is an OSError
        if getattr(exc, "reason", None) in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            raise SettingsInvalid(
                f"{files.key} is not the key of the first certificate in {files.cert}. Name the "
                "certificate and the key that were made together."
            ) from exc
        raise SettingsInvalid(
            f"{files.cert} and {files.key} cannot be used: {_reason(exc)}. Name a certificate "
            "chain and its key, as PEM files."
        ) from exc
    return context


def _trust(context: ssl.SSLContext, file: TlsFile, pem: bytes) -> None:
    """Ask each client for a certificate of these authorities."""
    found = _certificates(file, pem)
    context.verify_mode = ssl.CERT_REQUIRED
    # The authority that signs the clients' certificates may be given without its own issuer.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata="\n".join(found))
    except (OSError, ValueError) as exc:
        raise SettingsInvalid(
            f"{file} cannot be used: {_reason(exc)}. Name a PEM file with the certificates of the "
            "authorities that sign clients' certificates."
        ) from exc


def _reason(exc: Exception) -> str:
    reason: object = getattr(exc, "reason", None) or getattr(exc, "strerror", None) or exc
    return str(reason).lower().replace("_", " ")


def day_of(seconds: float) -> str:
    """A time, in seconds since 1970, for people."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
