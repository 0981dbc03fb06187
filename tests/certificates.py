"""Authorities and certificates for tests of TLS, made in a few milliseconds."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

_DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key.

    Attributes:
        certificate: of `key`.
        key: private.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def cert_pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def cert_der(self) -> bytes:
        """The certificate as DER."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def key_pem(self) -> bytes:
        """The key as PEM, without a password."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def locked_key_pem(self, style: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
        """The key as PEM, with a password."""
        return self.key.private_bytes(Encoding.PEM, style, BestAvailableEncryption(b"secret"))

    def write(self, folder: Path, name: str = "") -> tuple[Path, Path]:
        """Write both files, each in one step; their paths."""
        cert, key = folder / f"{name}cert.pem", folder / f"{name}key.pem"
        replace(cert, self.cert_pem)
        replace(key, self.key_pem)
        return cert, key


class Authority:
    """Signs certificates of localhost and 127.0.0.1.

    Args:
        name: of the authority.
    """

    def __init__(self, name: str = "authority") -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.own = Pair(self._build(self._name, key, key, 10, is_authority=True), key)

    @property
    def pem(self) -> bytes:
        """The certificate of the authority."""
        return self.own.cert_pem

    def issue(self, *, days: float = 90, name: str = "localhost") -> Pair:
        """A certificate and its key, for a server or a client.

        Args:
            days: until the certificate expires; negative for one that has expired.
            name: of whom the certificate is about.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        return Pair(self._build(subject, key, self.own.key, days, is_authority=False), key)

    def _build(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        signer: ec.EllipticCurvePrivateKey,
        days: float,
        *,
        is_authority: bool,
    ) -> x509.Certificate:
        ends = dt.datetime.now(dt.UTC) + days * _DAY
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(ends, dt.datetime.now(dt.UTC)) - _DAY)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(signer, hashes.SHA256())
        )

    def client_context(self, own: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """The context of a client that trusts this authority.

        Args:
            own: certificate and key of the client; None for a client without.
        """
        context = ssl.create_default_context(cadata=self.pem.decode())
        if own:
            context.load_cert_chain(*own)
        return context


def replace(path: Path, data: bytes) -> None:
    """Write a file in one step, as tools that renew certificates do."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)
