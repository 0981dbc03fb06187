"""Sockets are held early, listen late, and count as ready once the server answered itself."""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest

from matryo.core.errors import SettingsInvalid
from matryo.http import listening
from matryo.http.listening import Listener, bind
from matryo.http.server import Server
from matryo.main import build_server, create_app
from tests.contract.conftest import Live, live_server, settings
from tests.fakes import FakeEngine


class Contender:
    """A server in a thread that may fail to start."""

    def __init__(self, listener: Listener) -> None:
        chosen = settings(grace_s=1)
        application = create_app(chosen, FakeEngine())
        self.decided = threading.Event()
        self.is_ready = False
        self.error: Exception | None = None
        self.server: Server = build_server(application, listener, chosen, on_ready=self._ready)
        self._listener = listener
        self.thread = threading.Thread(target=self._run)

    def _ready(self) -> None:
        self._listener.publish()
        self.is_ready = True
        self.decided.set()

    def _run(self) -> None:
        try:
            self.server.run()
        except SettingsInvalid as exc:
            self.error = exc
        self.decided.set()


@pytest.mark.parametrize("unix", [False, True])
def test_two_servers_at_once(tmp_path: Path, unix: bool) -> None:
    """Whenever two servers hold one address, one is ready, and the other raises."""
    for _ in range(10):
        path = tmp_path / "s" if unix else None
        first = bind("127.0.0.1", 0, path)
        second = bind("127.0.0.1", 0 if unix else first.port, path)
        both = [Contender(first), Contender(second)]
        for one in both:
            one.thread.start()
        for one in both:
            assert one.decided.wait(20)
        assert sorted(one.is_ready for one in both) == [False, True]
        (message,) = [str(one.error) for one in both if one.error]
        assert message.startswith("cannot listen on "), message
        for one in both:
            one.server.stop()
            one.thread.join(20)
        first.close()
        second.close()
        assert list(tmp_path.iterdir()) == []


def test_an_answer_of_another_server(live: Live) -> None:
    """An answer from a server with another token does not count."""
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        listener = Listener([connection])
        # The connection's own end stands for a socket at the other server's address.
        listener._name = lambda _: "there"  # type: ignore[method-assign]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(listening, "_reachable", lambda _: ("127.0.0.1", live.port))
            with pytest.raises(SettingsInvalid, match="another server answers on there"):
                listener.check_answered()


def test_the_own_request_is_not_counted(live: Live) -> None:
    """Neither metrics nor anybody without the token see the request to itself."""
    text = httpx2.get(f"{live.url}/metrics").text
    assert '"/livez"' not in text
    assert httpx2.get(f"{live.url}/livez", headers={"x-matryo-probe": "x"}).status_code == 200


@pytest.fixture
def live() -> Any:
    """A server that is ready."""
    with live_server(FakeEngine()) as server:
        yield server


class TestAddresses:
    """Which sockets a host stands for."""

    def test_every_address_of_a_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """All get one port; an address that the machine lacks is left out."""
        found = ["127.0.0.2", "127.0.0.1", "192.0.2.1", "127.0.0.1"]

        def resolve(_host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in found]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        listener = bind("localhost", 0)
        names = [one.getsockname() for one in listener.sockets]
        listener.close()
        assert names == [("127.0.0.2", listener_port(names)), ("127.0.0.1", listener_port(names))]
        found[:] = ["192.0.2.1"]
        with pytest.raises(SettingsInvalid, match=os.strerror(errno.EADDRNOTAVAIL)):
            bind("localhost", 0)

    @pytest.mark.parametrize("host", ["x" * 300, "ä." * 99, "[]", "a b", "1.2.3.4.5", "http://x"])
    def test_no_address(self, host: str) -> None:
        """What is no address, or not this machine's, is refused in one sentence."""
        with pytest.raises(SettingsInvalid, match=r"^cannot listen on .*MATRYO_HOST") as caught:
            bind(host, 0)
        assert "\n" not in caught.value.message

    @pytest.mark.parametrize("path", ["x" * 200, "no/such/folder"])
    def test_no_path(self, tmp_path: Path, path: str) -> None:
        """A path at which there can be no socket is refused, and nothing is left behind."""
        with pytest.raises(SettingsInvalid, match=r"^cannot listen on .*MATRYO_UDS"):
            bind("", 0, tmp_path / path).publish()
        assert list(tmp_path.iterdir()) == []


def listener_port(names: list[tuple[str, int]]) -> int:
    """The port of all of them."""
    (port,) = {port for _, port in names}
    return port
