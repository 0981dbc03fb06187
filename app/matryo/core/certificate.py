"""What is in a PEM file: certificates, keys, and the end of a certificate's validity.

The standard library shows the dates of a certificate only after a peer has sent that certificate.
The few bytes of DER that have the dates are therefore read here.

Source: RFC 7468 for PEM, RFC 5280, section 4.1, for certificates, X.690 for DER.
"""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_LABEL = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")

_SEQUENCE, _VERSION, _UTC_TIME = 0x30, 0xA0, 0x17
_LONG = 0x80  # a length of more bytes than this one
# RFC 5280, section 4.1.2.5.1: years of two digits below 50 are of this century.
_CENTURY_ENDS = 50


def labels(pem: bytes) -> list[str]:
    """What the blocks of a PEM file are, such as `CERTIFICATE`; empty if the file is no PEM."""
    return [label.decode() for label in _LABEL.findall(pem)]


def certificates(pem: bytes) -> list[str]:
    """Each certificate of a PEM file, as PEM without the text around it."""
    return [block.decode("ascii", "replace") for block in _CERTIFICATE.findall(pem)]


def expiry_of(certificate: str) -> float:
    """When a certificate expires, in seconds since 1970.

    Args:
        certificate: PEM of one certificate.

    Raises:
        ValueError: this is no certificate.
    """
    try:
        return _not_after(ssl.PEM_cert_to_DER_cert(certificate))
    except (IndexError, UnicodeDecodeError) as exc:
        raise ValueError("no certificate") from exc


def _not_after(der: bytes) -> float:
    _, body, _ = _element(der)
    _, fields, _ = _element(body)
    tag, _, rest = _element(fields)
    if tag == _VERSION:
        _, _, rest = _element(rest)
    _, _, rest = _element(rest)  # behind the serial number: the signature's algorithm
    _, _, rest = _element(rest)  # the issuer
    tag, validity, _ = _element(rest)
    if tag != _SEQUENCE:
        raise ValueError("no certificate")
    _, _, rest = _element(validity)  # not before
    tag, value, _ = _element(rest)
    text = value.decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if int(text[:2]) < _CENTURY_ENDS else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """Tag and content of the first element of DER, and the bytes behind the element."""
    tag, length, start = der[0], der[1], 2
    if length >= _LONG:
        start += length - _LONG
        length = int.from_bytes(der[2:start], "big")
    return tag, der[start : start + length], der[start + length :]
