"""One file over HTTP: resumed where an earlier try, or an earlier process, stopped."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import httpx2

from matryo.core.errors import PullFailed
from matryo.core.progress import Progress
from matryo.store.files import PART

_ATTEMPTS = 5
_TIMEOUT_S = 30.0
_PARTIAL, _RANGE_NOT_SATISFIABLE = 206, 416
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


def download(
    url: str,
    path: Path,
    *,
    n_bytes: int | None,
    progress: Progress,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Fetch `url` to `path`; what has arrived waits in `<path>.part` until it is whole.

    Args:
        url: where from; redirects are followed.
        path: where to.
        n_bytes: the file's size, if known.
        progress: shows how it goes.
        headers: to send along, for instance authorisation.

    Raises:
        PullFailed: refused, or broken again and again; run again to go on from there.
    """
    part = path.with_name(path.name + PART)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _fetch(url, part, n_bytes, progress, headers or {})
        except httpx2.HTTPStatusError as exc:
            status = exc.response.status_code
            if attempt == _ATTEMPTS or status not in _PASSING:
                raise PullFailed(f"{url}: the server answered {status}. Try again later.") from exc
        except httpx2.TransportError as exc:
            if attempt == _ATTEMPTS:
                raise PullFailed(
                    f"{url}: {exc!r} after {attempt} tries. What has arrived is kept; check the "
                    "network and run the command again to go on."
                ) from exc
        else:
            part.rename(path)
            return
        time.sleep(attempt)


def _fetch(
    url: str, part: Path, n_bytes: int | None, progress: Progress, headers: Mapping[str, str]
) -> None:
    have = part.stat().st_size if part.exists() else 0
    if n_bytes is not None and have >= n_bytes:
        if have == n_bytes:
            return
        part.unlink()  # of another file, then: more than this one has
        have = 0
    wanted = {"accept-encoding": "identity", **headers}
    if have:
        wanted["range"] = f"bytes={have}-"
    with httpx2.stream(
        "GET", url, headers=wanted, timeout=_TIMEOUT_S, follow_redirects=True
    ) as response:
        if response.status_code == _RANGE_NOT_SATISFIABLE:
            part.unlink()
        response.raise_for_status()
        if response.status_code != _PARTIAL:
            have = 0  # the server sends all of it, whatever was asked
        with (
            progress(f"fetching {part.stem}", n_bytes or 0) as advance,
            part.open("ab" if have else "wb") as file,
        ):
            advance(have)
            for piece in response.iter_raw():
                file.write(piece)
                advance(len(piece))
