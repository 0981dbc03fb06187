"""Who takes the connections that come together to one socket."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Generator

import pytest

from matryo.http.accepting import Acceptor


class Noting(asyncio.Protocol):
    """A protocol that notes the name of its acceptor."""

    def __init__(self, taken: list[str], name: str, all_taken: asyncio.Semaphore) -> None:
        self._taken, self._name, self._all = taken, name, all_taken

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._taken.append(self._name)
        self._all.release()
        transport.close()


@pytest.fixture
def listening() -> Generator[socket.socket, None, None]:
    """A socket that listens."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        yield one


async def take(listening: socket.socket, shared: dict[str, bool], count: int) -> list[str]:
    """The names of the acceptors that took `count` connections which came at once.

    Args:
        listening: the socket.
        shared: `is_shared` of each acceptor, by its name.
        count: of the connections.
    """
    loop, taken, all_taken = asyncio.get_running_loop(), list[str](), asyncio.Semaphore(0)
    callers = [socket.create_connection(listening.getsockname()) for _ in range(count)]
    acceptors = [
        Acceptor(
            loop,
            listening.dup(),
            lambda name=name: Noting(taken, name, all_taken),
            is_shared=is_shared,
        )
        for name, is_shared in shared.items()
    ]
    for _ in range(count):
        await all_taken.acquire()
    for one in acceptors:
        one.close()
        one.close()
    for caller in callers:
        caller.close()
    return taken


async def test_a_turn(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """An acceptor of several takes one connection, and leaves the next to the others for a while."""
    monkeypatch.setattr("matryo.http.accepting._TURN_S", 3600.0)
    taken = await take(listening, {"a": True, "b": False}, 16)
    assert taken.count("a") == 1


async def test_the_next_turn(listening: socket.socket) -> None:
    """An acceptor whose fellows take nothing takes all connections, one after the other."""
    assert await take(listening, {"a": True}, 4) == ["a"] * 4


async def test_one_alone(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """An acceptor that shares its socket with nobody never waits for others."""
    monkeypatch.setattr("matryo.http.accepting._TURN_S", 3600.0)
    assert await take(listening, {"a": False}, 16) == ["a"] * 16


async def test_a_lack_of_files(
    listening: socket.socket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that cannot be accepted is logged, and taken once it can be."""
    monkeypatch.setattr("matryo.http.accepting._AFTER_FAILURE_S", 0.0)
    failures = [OSError(errno.EMFILE, "Too many open files")]

    class Scarce(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            if failures:
                raise failures.pop()
            return super().accept()

        def dup(self) -> Scarce:
            return self

    with Scarce(fileno=listening.detach()) as scarce:
        assert await take(scarce, {"a": False}, 1) == ["a"]
    assert "Too many open files" in caplog.text


async def test_a_closing_acceptor_takes_the_connections_that_wait(
    listening: socket.socket,
) -> None:
    """Peers whose connections wait in the kernel are taken, and not reset, when the socket closes."""
    loop, taken, all_taken = asyncio.get_running_loop(), list[str](), asyncio.Semaphore(0)
    acceptor = Acceptor(
        loop, listening.dup(), lambda: Noting(taken, "only", all_taken), is_shared=True
    )
    callers = [socket.create_connection(listening.getsockname()) for _ in range(5)]
    acceptor.close()
    for _ in callers:
        await asyncio.wait_for(all_taken.acquire(), 10)
    for caller in callers:
        assert caller.recv(1) == b""  # closed by `Noting`, in order
        caller.close()
