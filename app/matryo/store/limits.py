"""Limits on what other machines, their answers and their files may cost the store."""

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

RECORD_MAX_BYTES = 1 << 20
"""Most bytes of a file of the store that says what an artefact is; a real one has about 2 kB."""

TOKENIZER_MAX_BYTES = 1 << 26
"""Most bytes of a `tokenizer.json` or of another vocabulary: the largest public one has 33 MB."""

WHEEL_DIRECTORY_BYTES = 1 << 24
"""Most bytes that are read of a wheel at once, such as its list of files. A real list has about 100
bytes for each file."""

UNKNOWN_FILE_BYTES = 1 << 35
"""Most bytes of a file whose size the manifest does not say: 32 GiB."""
