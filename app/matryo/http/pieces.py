"""A response whose body is a list of pieces, which are sent one by one and never joined."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from matryo.core.budget import Lease


class PiecesResponse(Response):
    """A JSON body in pieces, with its Content-Length.

    Args:
        pieces: the body, at least one piece.
        lease: of the request; each piece's bytes are given back when the server has taken the
            piece, and everything when the response ends.
        headers: of the response.
    """

    media_type = "application/json"

    def __init__(
        self, pieces: Iterable[bytes], lease: Lease, headers: Mapping[str, str] | None = None
    ) -> None:
        self._pieces = deque(pieces)
        self._lease = lease
        length = {"content-length": str(sum(map(len, self._pieces)))}
        super().__init__(headers={**(headers or {}), **length})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; the next piece waits until the server has taken the last one."""
        del scope, receive
        with self._lease:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            while self._pieces:
                piece = self._pieces.popleft()
                n_bytes, more = len(piece), bool(self._pieces)
                await send({"type": "http.response.body", "body": piece, "more_body": more})
                if more:  # the end of the lease gives back the last one
                    self._lease.shrink(n_bytes)
