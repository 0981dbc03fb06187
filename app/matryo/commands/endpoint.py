"""A server that speaks OpenAI's protocol, ours or another: asked with a key, read with bounds."""

from __future__ import annotations

import ipaddress
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Self

import httpx2
import orjson

from matryo.core.errors import SettingsInvalid

_TIMEOUT_S = 120
_WHOLE_S = 600  # of one answer, which may come drop by drop
_MAX_BYTES = 64 << 20  # 32 vectors of 4,096 numbers are 3 MB of JSON
_SHOWN_CHARS = 300
_OK, _REDIRECTS, _SERVER_FAULTS = 200, range(300, 400), 500


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered.

    Attributes:
        status: of HTTP.
        headers: names in any case.
        content: the body, at most 64 MiB.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_ok(self) -> bool:
        """Whether the status is 200."""
        return self.status == _OK

    @property
    def text(self) -> str:
        """The first characters of the body, for a message."""
        return self.content[: 4 * _SHOWN_CHARS].decode("utf-8", "replace")[:_SHOWN_CHARS]

    def json(self) -> Any:  # noqa: ANN401 - any JSON
        """The value of the body.

        Raises:
            ValueError: the body is no JSON.
        """
        return orjson.loads(self.content)


class Endpoint:
    """A server's base URL. Enter it to ask; the key is OPENAI_API_KEY, without blanks around it.

    A server on this machine is asked without a proxy, others as the environment says.

    Args:
        url: such as `http://host:8080/v1`.
        called: what errors call the server.
        model_option: the option that names its model.
    """

    def __init__(self, url: str, called: str, model_option: str) -> None:
        self.url = url.rstrip("/")
        self.called = called
        self._model_option = model_option
        self._client: httpx2.Client | None = None

    def __enter__(self) -> Self:
        """Open the connections.

        Raises:
            SettingsInvalid: the URL, the key, or a proxy of the environment cannot be used.
        """
        # A secret that is not set comes as an empty variable, and a file ends with a line feed.
        key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
        if not (key.isascii() and key.isprintable()):  # the library's own words show the key
            raise SettingsInvalid(
                f"{self.called}: OPENAI_API_KEY has characters that a header cannot have. Set the "
                "variable to the key alone"
            )
        headers = {"authorization": f"Bearer {key}", "accept-encoding": "identity"}
        try:
            self._client = httpx2.Client(
                timeout=_TIMEOUT_S, headers=headers, mounts=mounts(self.url)
            )
        except (httpx2.InvalidURL, ValueError) as exc:
            raise self._silent(exc) from exc
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        if self._client:
            self._client.close()

    def get(self, path: str) -> Reply:
        """The answer of a GET below the base URL, whatever its status.

        Raises:
            SettingsInvalid: there is none, or it is too large or too slow.
        """
        return self._ask("GET", path, None)

    def post(self, path: str, body: object) -> Reply:
        """The answer of a POST of JSON below the base URL.

        Raises:
            SettingsInvalid: there is none, it is too large or too slow, or its status is not 200.
        """
        reply = self._ask("POST", path, body)
        if not reply.is_ok:
            self.refuse(reply)
        return reply

    def refuse(self, reply: Reply) -> NoReturn:
        """Raise what an answer of another status than 200 says.

        Raises:
            SettingsInvalid: always.
        """
        said = ": ".join(filter(None, (f"{self.called}: status {reply.status}", reply.text)))
        if reply.status in _REDIRECTS:
            target = without_password(reply.headers.get("location", "nowhere"))
            raise SettingsInvalid(
                f"{said}. That is a redirect to {target[:_SHOWN_CHARS]}, and no redirect is "
                "followed with a key; give the URL of the server itself"
            )
        if reply.status >= _SERVER_FAULTS:
            raise SettingsInvalid(said)
        raise SettingsInvalid(
            f"{said} ({self._model_option} names its model, OPENAI_API_KEY its key)"
        )

    def _ask(self, method: str, path: str, body: object) -> Reply:
        assert self._client, "the endpoint is entered"
        end = time.monotonic() + _WHOLE_S
        content = bytearray()
        try:
            with self._client.stream(method, f"{self.url}/{path}", json=body) as answer:
                for piece in answer.iter_bytes():
                    content += piece
                    if len(content) > _MAX_BYTES:
                        raise SettingsInvalid(
                            f"{self.called}: the answer has more than {_MAX_BYTES:,} bytes, which "
                            "no answer of this request needs"
                        )
                    if time.monotonic() > end:
                        raise SettingsInvalid(
                            f"{self.called}: the answer is not complete after {_WHOLE_S} seconds"
                        )
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as exc:
            # A ValueError is a proxy of the environment, or a key, that cannot be used.
            raise self._silent(exc) from exc
        return Reply(answer.status_code, answer.headers, bytes(content))

    def _silent(self, exc: Exception) -> SettingsInvalid:
        return SettingsInvalid(f"{self.called}: no answer ({exc})")


def without_password(url: str) -> str:
    """A URL as it may be kept, and shown: without the user and the password before the host."""
    return re.sub(r"(?<=://)[^/?#]*@", "", url, count=1)


def mounts(url: str) -> dict[str, httpx2.BaseTransport | None]:
    """No proxy for hosts of this machine."""
    host = httpx2.URL(url).host
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost" or host.endswith(".localhost")
    if not is_local:
        return {}
    return {f"all://{f'[{host}]' if ':' in host else host}": None}
