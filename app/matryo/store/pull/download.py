"""Downloads one file over HTTP, and resumes where an earlier try or process stopped."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import httpx2

from matryo.core.errors import PullFailed
from matryo.core.progress import Reporter
from matryo.store.files import PART, publish_file, remove_file
from matryo.store.limits import (
    DOWNLOAD_ATTEMPTS,
    DOWNLOAD_TIMEOUT_S,
    LONGEST_WAIT_S,
    UNKNOWN_FILE_BYTES,
)

_PARTIAL, _RANGE_NOT_SATISFIABLE = 206, 416
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_REFUSALS = frozenset({401, 403, 407})


class DownloadFailed(PullFailed):
    """A file that did not come.

    Attributes:
        status: of the server's answer; None if there was none.
        code: the hub's own word for the fault, empty if it gave none.
        refused: the server wants a credential, or the very first connection failed; another
            client with other settings may succeed.
    """

    def __init__(
        self, message: str, *, status: int | None = None, code: str = "", refused: bool = False
    ) -> None:
        super().__init__(without_credentials(message))
        self.status = status
        self.code = code
        self.refused = refused


def without_credentials(text: str) -> str:
    """The text without the `user:password@` of any URL in it."""
    return re.sub(r"//[^/@\s'\"]*@", "//", text)


def download(
    url: str,
    path: Path,
    *,
    n_bytes: int | None,
    reporter: Reporter,
    headers: Mapping[str, str] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Fetch `url` to `path`; bytes that arrived wait in `<path>.part` until the file is whole.

    Faults that pass (429, 5xx, a connection that breaks) are tried again after 1, 2, 4, ...
    seconds, or as many as the server says in Retry-After.

    Args:
        url: the file's address; redirects are followed.
        path: the file's path here; its folder exists.
        n_bytes: the file's size, if known. A server that sends more is not read on.
        reporter: takes the progress, and a sentence before a wait.
        headers: further headers of the request, for instance authorisation.
        sleep: waits for a number of seconds.

    Raises:
        DownloadFailed: the server refused, or every try broke off; the next call resumes.
    """
    part = path.with_name(path.name + PART)
    for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
        wait_s = 2.0 ** (attempt - 1)
        try:
            _fetch(url, part, n_bytes, reporter, headers or {})
        except httpx2.HTTPStatusError as exc:
            status = exc.response.status_code
            wait_s = max(wait_s, _retry_after(exc.response.headers.get("retry-after", "")))
            found = f"the server answered {status} for {url}"
            last = attempt == DOWNLOAD_ATTEMPTS or wait_s > LONGEST_WAIT_S
            if last or status not in _PASSING | {_RANGE_NOT_SATISFIABLE}:
                if status in _PASSING and wait_s > LONGEST_WAIT_S:
                    found += f", and asks to wait {wait_s:,.0f} s"
                code = exc.response.headers.get("x-error-code", "")
                raise DownloadFailed(
                    found, status=status, code=code, refused=status in _REFUSALS
                ) from exc
        except httpx2.TransportError as exc:
            never = attempt == 1 and isinstance(
                exc, (httpx2.ConnectError, httpx2.ProxyError, httpx2.UnsupportedProtocol)
            )
            found = f"{url} does not answer ({exc or type(exc).__name__})"
            if never or attempt == DOWNLOAD_ATTEMPTS:
                raise DownloadFailed(found, refused=never) from exc
        else:
            publish_file(part, path)
            return
        reporter.say(without_credentials(f"{found}; trying again in {wait_s:g} s"))
        sleep(wait_s)


def _retry_after(value: str) -> float:
    """Seconds to wait that a header gives as a number or as a date; 0 if it gives neither."""
    if value.strip().isdecimal():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (when.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def _fetch(
    url: str, part: Path, n_bytes: int | None, reporter: Reporter, headers: Mapping[str, str]
) -> None:
    """One try: ask for what is missing of the file, and add it to `part`."""
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
            if response.headers.get("content-range") == f"bytes */{have}":
                return  # a process was killed once it had everything
            remove_file(part)
        response.raise_for_status()
        if response.status_code != _PARTIAL:
            have = 0  # the server ignored the range and sends the whole file
        length = response.headers.get("content-length", "")
        rest = int(length) if re.fullmatch(r"\d{1,18}", length, re.ASCII) else 0
        with (
            reporter.bar(f"fetching {part.stem}", n_bytes or have + rest, done=have) as advance,
            part.open("ab" if have else "wb") as file,
        ):
            most = UNKNOWN_FILE_BYTES if n_bytes is None else n_bytes
            for piece in response.iter_raw():
                have += len(piece)
                if have > most:
                    raise DownloadFailed(f"the server sends more than the {most:,} bytes of {url}")
                file.write(piece)
                advance(len(piece))
