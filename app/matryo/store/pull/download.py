"""Downloads one file over HTTP, and resumes where an earlier try or process stopped."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import httpx2

from matryo.core.errors import PullFailed
from matryo.core.progress import Reporter
from matryo.store.files import PART, publish_file, remove_file
from matryo.store.limits import DOWNLOAD_ATTEMPTS, DOWNLOAD_TIMEOUT_S

_PARTIAL, _RANGE_NOT_SATISFIABLE = 206, 416
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


def download(
    url: str,
    path: Path,
    *,
    n_bytes: int | None,
    reporter: Reporter,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Fetch `url` to `path`; bytes that arrived wait in `<path>.part` until the file is whole.

    Args:
        url: the file's address; redirects are followed.
        path: the file's path here; its folder exists.
        n_bytes: the file's size, if known.
        reporter: takes the progress.
        headers: further headers of the request, for instance authorisation.

    Raises:
        PullFailed: the server refused, or every try broke off; the next call resumes.
    """
    part = path.with_name(path.name + PART)
    for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
        try:
            _fetch(url, part, n_bytes, reporter, headers or {})
        except httpx2.HTTPStatusError as exc:
            status = exc.response.status_code
            if attempt == DOWNLOAD_ATTEMPTS or status not in _PASSING:
                raise PullFailed(f"{url}: the server answered {status}. Try again later.") from exc
        except httpx2.TransportError as exc:
            if attempt == DOWNLOAD_ATTEMPTS:
                raise PullFailed(
                    f"{url}: {exc!r} after {attempt} tries. What has arrived is kept; check the "
                    "network and run the command again to go on."
                ) from exc
        else:
            publish_file(part, path)
            return
        time.sleep(attempt)


def _fetch(
    url: str, part: Path, n_bytes: int | None, reporter: Reporter, headers: Mapping[str, str]
) -> None:
    have = part.stat().st_size if part.exists() else 0
    if n_bytes is not None and have >= n_bytes:
        if have == n_bytes:
            return
        remove_file(part)  # of another file: this one has fewer bytes
        have = 0
    wanted = {"accept-encoding": "identity", **headers}
    if have:
        wanted["range"] = f"bytes={have}-"
    with httpx2.stream(
        "GET", url, headers=wanted, timeout=DOWNLOAD_TIMEOUT_S, follow_redirects=True
    ) as response:
        if response.status_code == _RANGE_NOT_SATISFIABLE:
            remove_file(part)
        response.raise_for_status()
        if response.status_code != _PARTIAL:
            have = 0  # the server ignored the range and sends the whole file
        with (
            reporter.bar(f"fetching {part.stem}", n_bytes or 0) as advance,
            part.open("ab" if have else "wb") as file,
        ):
            advance(have)
            for piece in response.iter_raw():
                file.write(piece)
                advance(len(piece))
