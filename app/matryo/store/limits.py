"""Limits on what other machines and their answers may cost the store."""

from __future__ import annotations

DOWNLOAD_ATTEMPTS = 5
"""Tries to fetch one file; the wait between two tries doubles from one second on."""

LONGEST_WAIT_S = 60.0
"""Longest wait before another try: a server that asks for more in Retry-After is given up."""

DOWNLOAD_TIMEOUT_S = 30.0
"""Longest silence of a server, while it is connected to or read from, before a try fails."""

PIP_RETRIES = 2
"""Times pip asks a package index again; pip has its own waits between them."""

PIP_TIMEOUT_S = 15
"""Longest silence of a package index before one of pip's tries fails."""
