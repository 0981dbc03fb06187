"""The streamable HTTP transport: the SDK's sessions, with protection against DNS rebinding.

A page of another site can give its own name this machine's address, and then send requests here.
Such a request has the page's name in `Host` and `Origin`, and cannot have a key.
"""

from __future__ import annotations

from collections.abc import Sequence

from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings

PATH = "/mcp"

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_MAX_SESSIONS, _IDLE_S = 1000, 1800.0


def build_sessions(
    server: Server, *, host: str, origins: Sequence[str], has_keys: bool, max_bytes: int
) -> StreamableHTTPSessionManager:
    """The sessions of all clients of a server; `run` starts them, `handle_request` is the ASGI app.

    Args:
        server: of `build_tools_server`.
        host: that the server listens on. Without keys, requests must name this host or a loopback
            address.
        origins: of browsers' pages that may call, beside those of this machine.
        has_keys: whether a key is asked of every request.
        max_bytes: of one body.
    """
    name = f"[{host}]" if ":" in host else host
    hosts = [*_LOOPBACK, name]
    here = [f"http://{host}:*" for host in hosts]
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=not has_keys,
        allowed_hosts=[*hosts, *(f"{host}:*" for host in hosts)],
        allowed_origins=[*here, *(f"http://{host}" for host in hosts), *origins],
    )
    return StreamableHTTPSessionManager(
        server,
        security_settings=security,
        max_request_body_size=max_bytes,
        session_idle_timeout=_IDLE_S,
        max_sessions=_MAX_SESSIONS,
    )
