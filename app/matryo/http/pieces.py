"""A response that is made piece by piece, as its caller reads it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Piece = bytes | memoryview


class PiecesResponse(Response):
    """A body in pieces, sent in chunks where its length is not known before the last is made.

    The server takes a piece when the caller has read the one before, so that no more than one piece
    is held. Starlette's StreamingResponse would end without an error when the caller is gone.

    Args:
        pieces: the body; closed at the end, whether all of the body was sent or not.
        status: of the response.
        headers: of the response, its Content-Type among them.
        n_bytes: of the body; None if unknown.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[Piece, None],
        headers: Mapping[str, str],
        n_bytes: int | None = None,
        status: int = 200,
    ) -> None:
        super().__init__(status_code=status, headers=headers)
        del self.headers["content-length"]  # that of an empty body
        if n_bytes is not None:
            self.headers["content-length"] = str(n_bytes)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        del scope, receive
        start = {"status": self.status_code, "headers": self.raw_headers}
        async with aclosing(self._pieces) as pieces:
            await send({"type": "http.response.start", **start})
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
