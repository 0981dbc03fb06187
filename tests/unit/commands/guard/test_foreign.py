"""Servers that are not ours, and servers that answer anything at all."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matryo.commands import endpoint
from tests.unit.commands.guard.conftest import Built, kinds_of

WIDTH = 24


def vector(text: str, seed: int, width: int = WIDTH) -> list[float]:
    """What a stand-in's model makes of a text."""
    rng = np.random.default_rng([seed, *text.encode()])
    made = rng.standard_normal(width)
    return (made / np.linalg.norm(made)).tolist()


Respond = Callable[[str, Any], tuple[int, bytes, dict[str, str]]]


@dataclass
class Foreign:
    """A server of OpenAI's protocol without facts.

    Attributes:
        seed: of its model.
        noise: added to every component.
        width: of its vectors.
        models: ids that it lists; None for a server without a list.
        respond: answers in its place; None to answer itself.
        requests: path and body of everything asked.
        keys: the header of each request that has the key.
    """

    seed: int = 0
    noise: float = 0
    width: int = WIDTH
    models: list[str] | None = field(default_factory=lambda: ["large"])
    respond: Respond | None = None
    requests: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])
    keys: list[str] = field(default_factory=list[str])

    def answer(self, path: str, body: Any) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers."""
        self.requests.append((path, body))
        if self.respond:
            return self.respond(path, body)
        if path == "/v1/models" and self.models is not None:
            return 200, json.dumps({"data": [{"id": name} for name in self.models]}).encode(), {}
        if body is None:
            return 404, b'{"error": "no such route"}', {}
        rows = [
            np.array(vector(text, self.seed, self.width)) + self.noise for text in body["input"]
        ]
        data = [{"index": at, "embedding": row.tolist()} for at, row in enumerate(rows)]
        return 200, json.dumps({"data": data}).encode(), {}


@contextmanager
def serving(foreign: Foreign) -> Generator[str]:
    """Run a server on a free port; gives its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(None)

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def reply(self, body: Any) -> None:
            foreign.keys.append(self.headers["authorization"])
            status, content, headers = foreign.answer(self.path, body)
            self.send_response(status)
            for name, value in {"content-length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_request(self, code: object = "-", size: object = "-") -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def recorded(plain: Built, tmp_path: Path) -> Path:
    """A record of a foreign server."""
    path = tmp_path / "foreign.json"
    with serving(Foreign()) as url:
        done = plain.guard("record", path, "--url", url, "--dimensions", 24)
    assert done.exit_code == 0, done.stderr
    assert "vectors of large, without a fingerprint" in done.stdout
    return path


class TestForeign:
    """By the vectors alone."""

    def test_requests(self, plain: Built, tmp_path: Path) -> None:
        """A foreign server is asked in OpenAI's words, and for nothing that the user left out."""
        foreign = Foreign()
        with serving(foreign) as url:
            assert plain.guard("record", tmp_path / "a.json", "--url", url).exit_code == 0
        assert [path for path, _ in foreign.requests] == [
            *("/v1/models", "/v1/models/large", "/v1/embeddings")
        ]
        body = foreign.requests[-1][1]
        assert body.keys() == {"model", "input", "encoding_format"}
        assert len(body["input"]) > 5

    def test_same(self, plain: Built, recorded: Path) -> None:
        """Vectors that come back bit for bit."""
        with serving(Foreign()) as url:
            assert plain.check(recorded, "--url", url) == (
                0,
                {
                    "verdict": "same",
                    "sentence": "same: these are the vectors of the index, bit for bit",
                    "causes": [],
                    "fingerprints": [None, None],
                    "recorded": json.loads(recorded.read_text())["recorded"],
                    "vectors": [
                        {
                            "recorded": "none",
                            "found": "none",
                            "same_bits": True,
                            "cosine_mean": None,
                            "cosine_min": None,
                            "max_abs_difference": None,
                        }
                    ],
                },
            )

    @pytest.mark.parametrize(
        ("foreign", "status", "verdict", "kinds"),
        [
            (Foreign(noise=1e-5), 0, "drifted", ["unexplained"]),
            (Foreign(seed=1), 1, "changed", ["unexplained"]),
            (Foreign(noise=0.1), 1, "changed", ["unexplained"]),
            (Foreign(width=32), 1, "changed", ["native_dimensions"]),
        ],
    )
    def test_other(
        self,
        plain: Built,
        recorded: Path,
        foreign: Foreign,
        status: int,
        verdict: str,
        kinds: list[str],
    ) -> None:
        """Other vectors are told from a drift by their cosines."""
        with serving(foreign) as url:
            code, found = plain.check(recorded, "--url", url)
        assert (code, found["verdict"], kinds_of(found)) == (status, verdict, kinds)

    def test_from_ours(self, plain: Built, record: Path) -> None:
        """An index of ours, and a server that is not: vectors count, and the lack is named."""
        with serving(Foreign(width=32)) as url:
            code, found = plain.check(record, "--url", url, "--model", "large")
        assert (code, found["verdict"]) == (1, "changed")
        assert kinds_of(found) == ["facts"]

    def test_to_ours(self, plain: Built, recorded: Path) -> None:
        """An index of another server, and one of ours."""
        with plain.serve() as live:
            flags = ("--url", f"{live.url}/v1", "--model", "tiny")
            code, found = plain.check(recorded, *flags)
        assert (code, found["verdict"], kinds_of(found)) == (1, "changed", ["facts"])

    @pytest.mark.parametrize("models", [[], ["a", "b"], None])
    def test_no_default(self, plain: Built, tmp_path: Path, models: list[str] | None) -> None:
        """A server of several models, or without a list, needs a name."""
        with serving(Foreign(models=models)) as url:
            words = ("record", tmp_path / "a.json", "--url", url)
            done = plain.guard(*words)
            assert done.exit_code == 2
            assert "--model" in done.stderr
            assert all(name in done.stderr for name in models or ())
            assert plain.guard(*words, "--model", "large").exit_code == 0

    def test_password(self, plain: Built, tmp_path: Path) -> None:
        """A password in a URL is not kept, and not shown."""
        path = tmp_path / "a.json"
        with serving(Foreign()) as url:
            own = url.replace("//", "//user:hidden@")
            assert plain.guard("record", path, "--url", own).exit_code == 0
            assert "hidden" not in path.read_text()
            assert json.loads(path.read_text())["asked"]["url"] == url
            done = plain.guard("check", path, "--url", own)
            assert (done.exit_code, "hidden" in done.output) == (0, False)
            assert url in done.stdout
        for respond in (None, lambda *_: HOSTILE["ragged"], lambda *_: HOSTILE["own redirect"]):
            with serving(Foreign(respond=respond)) as other:
                gone = other if respond else url
                own = gone.replace("//", "//user:hidden@")
                done = plain.guard("check", path, "--url", own, "--model", "large")
            assert done.exit_code == 2
            assert "hidden" not in done.output

    def test_odd_url(self, plain: Built, recorded: Path) -> None:
        """A URL that is none, in one line and without its password."""
        for url in ("http://[user:hidden@::1", "ftp://user:hidden@host", "http://user:hidden@"):
            done = plain.guard("check", recorded, "--url", url, "--model", "large")
            assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
            assert "hidden" not in done.stderr

    def test_redirect(self, plain: Built, recorded: Path) -> None:
        """A redirect is not followed, and its target is named."""
        answer = HOSTILE["redirect"]
        with serving(Foreign(respond=lambda *_: answer)) as url:
            done = plain.guard("check", recorded, "--url", url)
        assert done.exit_code == 2
        assert "redirect to http://192.0.2.1/," in done.stderr

    @pytest.mark.parametrize(
        ("key", "sent"), [("", "none"), (" \n", "none"), ("a-key\n", "a-key"), ("a b", "a b")]
    )
    def test_key(self, plain: Built, recorded: Path, key: str, sent: str) -> None:
        """A key that was not set, and one that came out of a file."""
        foreign = Foreign()
        with serving(foreign) as url:
            done = plain.guard("check", recorded, "--url", url, OPENAI_API_KEY=key)
        assert done.exit_code == 0, done.stderr
        assert set(foreign.keys) == {f"Bearer {sent}"}

    @pytest.mark.parametrize("key", ["secret\nkey", "secret\x01key", "sécret-key"])
    def test_unusable_key(self, plain: Built, recorded: Path, key: str) -> None:
        """A key that no header can have is not sent, and not shown."""
        foreign = Foreign()
        with serving(foreign) as url:
            done = plain.guard("check", recorded, "--url", url, OPENAI_API_KEY=key)
        assert (done.exit_code, foreign.requests) == (2, [])
        assert "OPENAI_API_KEY has characters" in done.stderr
        assert "cret" not in done.stderr

    def test_odd_model(self, plain: Built, recorded: Path) -> None:
        """A name that is no text ends in one line."""
        with serving(Foreign()) as url:
            done = plain.guard("check", recorded, "--url", url, "--model", "a\udcff")
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)


def facts_of(record: Path) -> dict[str, Any]:
    """The facts in a record, as a server gives them."""
    return json.loads(record.read_text("utf-8"))["model"]


HOSTILE: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "empty": (200, b"", {}),
    "deep": (200, b"[" * 100_000, {}),
    "not JSON": (200, b"<html>", {}),
    "a number": (200, b"1e999", {}),
    "a list": (200, b"[]", {}),
    "data of numbers": (200, b'{"data": [1, 2]}', {}),
    "index of lists": (200, b'{"data": [{"index": [], "embedding": [1]}]}', {}),
    "texts": (200, json.dumps({"data": [{"embedding": "AAAA"}] * 8}).encode(), {}),
    "ragged": (200, b'{"data": [{"embedding": [1, 2]}, {"embedding": [1]}]}', {}),
    "nulls": (200, json.dumps({"data": [{"embedding": [None]}] * 8}).encode(), {}),
    "zeros": (200, json.dumps({"data": [{"embedding": [0.0]}] * 8}).encode(), {}),
    "error": (500, b"\x1b[31m\xff\xfe", {}),
    "redirect": (302, b"", {"location": "http://192.0.2.1/"}),
    "own redirect": (308, b"", {"location": "http://user:hidden@192.0.2.1/"}),
    "short": (200, b"abc", {"content-length": "10"}),
    "not gzip": (200, b"abc", {"content-encoding": "gzip"}),
}


class TestUntrusted:
    """Whatever a server answers: status 2, one line, and no character that moves a cursor."""

    @pytest.mark.parametrize("name", HOSTILE)
    def test_anything(self, plain: Built, recorded: Path, record: Path, name: str) -> None:
        """To every question, or to that for vectors alone."""
        for respond in (
            lambda _path, _body: HOSTILE[name],
            lambda _path, body: HOSTILE[name] if body else (404, b"", {}),
        ):
            with serving(Foreign(respond=respond)) as url:
                for path in (recorded, record):
                    done = plain.guard("check", path, "--url", url, "--model", "large")
                    assert (done.exit_code, done.stdout) == (2, "")
                    assert done.stderr.count("\n") == 1
                    assert done.stderr.strip().isprintable()

    def test_mutated_facts(self, plain: Built, record: Path) -> None:
        """Facts without a field, or of another type, are refused; the answer names the field."""
        given = facts_of(record)
        answers = [
            given | {name: value} for name in given for value in (None, {"a": []}, "x" * 10_000, -1)
        ]
        foreign = Foreign()
        with serving(foreign) as url:
            for facts in answers:
                content = json.dumps(facts).encode()
                foreign.respond = lambda _, body, content=content: (
                    (500, b"", {}) if body else (200, content, {})
                )
                done = plain.guard("check", record, "--url", url, "--model", "tiny")
                assert done.exit_code in (0, 1, 2)
                assert "Traceback" not in done.stderr
                assert done.stderr.count("\n") == (done.exit_code == 2)

    def test_escapes(self, plain: Built, record: Path) -> None:
        """What a server says of itself moves no cursor."""
        facts = facts_of(record) | {"id": "\x1b[2J\nsame: all is well"}
        with serving(Foreign(respond=lambda *_: (200, json.dumps(facts).encode(), {}))) as url:
            done = plain.guard("check", record, "--url", url, "--model", "tiny")
        assert done.exit_code == 0  # the bits are those of the index
        assert "\x1b" not in done.stdout
        assert "\nsame" not in done.stdout

    @pytest.mark.parametrize(
        "change", [{"fingerprint": "tiny"}, {"canary": {"version": 1, "dimensions": 32}}]
    )
    def test_contradiction(
        self, plain: Built, record: Path, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        """Facts that no record can be made of: nothing is written that cannot be read."""
        facts = facts_of(record) | change
        if "canary" in change:
            facts["canary"]["vectors"] = {}
        content, shown = json.dumps(facts).encode(), f"{facts['fingerprint']}/document/32/float"
        foreign = Foreign(width=32)

        def respond(_path: str, body: Any) -> tuple[int, bytes, dict[str, str]]:
            if body is None:
                return 200, content, {}
            data = [{"embedding": vector(text, 0, 32)} for text in body["input"]]
            return 200, json.dumps({"data": data}).encode(), {"x-matryo-fingerprint": shown}

        foreign.respond = respond
        path = tmp_path / "x.json"
        with serving(foreign) as url:
            done = plain.guard("record", path, "--url", url, "--model", "tiny")
        assert (done.exit_code, done.stdout, path.exists()) == (2, "", False)
        assert "does not fit together" in done.stderr

    def test_large(self, plain: Built, recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An answer without an end is not read to its end, packed or not."""
        monkeypatch.setattr(endpoint, "_MAX_BYTES", 1 << 20)
        plainly = (200, b"[" + b" " * (2 << 20), {})
        packed = (200, gzip.compress(plainly[1]), {"content-encoding": "gzip"})
        for answer in (plainly, packed):
            with serving(Foreign(respond=lambda *_, answer=answer: answer)) as url:
                done = plain.guard("check", recorded, "--url", url, "--model", "a")
            assert done.exit_code == 2
            assert "1,048,576 bytes" in done.stderr

    def test_slow(self, plain: Built, recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An answer that comes drop by drop ends, too."""
        monkeypatch.setattr(endpoint, "_WHOLE_S", -1)
        with serving(Foreign()) as url:
            done = plain.guard("check", recorded, "--url", url)
        assert done.exit_code == 2
        assert "not complete" in done.stderr

    def test_busy(
        self, plain: Built, record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A server that is too busy for its canary is asked again, and recorded by nobody."""
        monkeypatch.setattr("matryo.commands.guard.sources._PAUSE_S", 0)
        busy = Foreign(
            respond=lambda *_: (200, json.dumps(facts_of(record) | {"canary": None}).encode(), {})
        )
        with serving(busy) as url:
            done = plain.guard("record", tmp_path / "x.json", "--url", url, "--model", "tiny")
        assert (done.exit_code, len(busy.requests)) == (2, 5)
        assert "no room" in done.stderr
