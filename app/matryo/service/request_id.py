"""Ids of requests, which answers and log lines show."""

from __future__ import annotations

import os
import re

_PLAIN = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def new_request_id() -> str:
    """An id for a request that came without one."""
    return f"req_{os.urandom(16).hex()}"


def request_id_of(given: str | None) -> str:
    """The id that a gateway gave, if it is short and has plain characters only; else a new id."""
    return given if given and _PLAIN.fullmatch(given) else new_request_id()
