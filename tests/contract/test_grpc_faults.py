"""The gRPC door when something goes wrong: each call ends with a status that tells the caller why."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import requests

from matryo.core.errors import SettingsInvalid
from matryo.engine import TokenIds
from matryo.grpc import stream as streams
from matryo.grpc.listening import check_installed, held_port
from matryo.main import create_app
from tests.certificates import Authority, Pair, replace
from tests.checkpoints import make_model
from tests.contract.conftest import Live, is_refused, live_server, settings, wait_until
from tests.contract.test_grpc import (
    CHECK,
    EMBED,
    INFER,
    PREDICT,
    REFLECT,
    STREAM,
    WATCH,
    tensor,
)
from tests.contract.wire import Client, answers, field, fields_of, floats, message, strings
from tests.fakes import FakeEngine

Code = grpc.StatusCode
READY = "/inference.GRPCInferenceService/ServerReady"


@pytest.fixture
def live(engine: FakeEngine) -> Iterator[Live]:
    """A server with a port for gRPC and one worker."""
    with live_server(engine, grpc_port=0, workers=1) as server:
        yield server


@pytest.fixture
def client(live: Live) -> Iterator[Client]:
    """A client of the server."""
    with Client(live) as client:
        yield client


def scheduler_of(live: Live) -> Any:
    """The scheduler of a server."""
    return live.application.state.context.service._scheduler


def held(live: Live) -> int:
    """Bytes that requests hold."""
    return live.application.state.context.service.budget.held


def count(live: Live, method: str, code: str) -> float:
    """Calls of a method that ended with a code."""
    registry = live.application.state.context.metrics.registry
    door = "operations" if "grpc.health" in method else "grpc"
    name, wanted = "matryo_requests_total", {"door": door, "route": method, "status": code}
    return sum(
        sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name and wanted.items() <= sample.labels.items()
    )


class TestKeys:
    """Keys as over HTTP."""

    @pytest.fixture
    def locked(self, engine: FakeEngine) -> Iterator[Live]:
        """A server with a key."""
        with live_server(engine, grpc_port=0, api_keys="sk-right") as live:
            yield live

    @pytest.mark.parametrize("metadata", [{}, {"authorization": "Bearer sk-wrong-and-long"}])
    def test_refused(self, locked: Live, metadata: dict[str, str]) -> None:
        """Without the right key, calls and streams are UNAUTHENTICATED, and no key is quoted."""
        with Client(locked, **metadata) as client:
            for path in (EMBED, PREDICT, INFER, "/tei.v1.Info/Info", "/tei.v1.Tokenize/Decode"):
                error = client.refused(path, field(1, "a"))
                assert error.code() is Code.UNAUTHENTICATED
                assert "wrong-and" not in error.details()
            with pytest.raises(grpc.RpcError) as refused:
                list(client.stream(STREAM, [field(1, "a")]))
            assert refused.value.code() is Code.UNAUTHENTICATED

    @pytest.mark.parametrize(
        "metadata", [{"authorization": "Bearer sk-right"}, {"api_key": "sk-right"}]
    )
    def test_right(self, locked: Live, metadata: dict[str, str]) -> None:
        """With the right key there is an answer."""
        with Client(locked, **metadata) as client:
            assert client.ask(EMBED, field(1, "a"))[1]

    def test_keyless(self, locked: Live) -> None:
        """Health and reflection ask for no key."""
        with Client(locked) as client:
            assert client.ask(CHECK) == {1: [1]}
            assert client.ask(READY) == {1: [1]}
            assert answers(client.stream(REFLECT.format(""), [field(7, "")]))


class TestPatience:
    """Deadlines and cancelled calls free what they held."""

    @pytest.mark.parametrize("path", [EMBED, PREDICT, INFER])
    def test_cancel(self, live: Live, client: Client, engine: FakeEngine, path: str) -> None:
        """A cancelled call leaves the queue at once, and gives its memory back."""
        engine.gate.clear()
        first = client.start(EMBED, field(1, "first"))
        wait_until(lambda: scheduler_of(live).n_requests == 1)
        raw = field(1, "a")
        if path == INFER:
            raw = message((5, tensor("text", 1)), (7, strings("a")))
        second = client.start(path, raw)
        wait_until(lambda: scheduler_of(live).n_requests == 2)
        second.cancel()
        wait_until(lambda: scheduler_of(live).n_requests == 1)
        wait_until(lambda: count(live, path, "CANCELLED") == 1)
        first.cancel()
        wait_until(lambda: scheduler_of(live).n_requests == 0)
        wait_until(lambda: held(live) == 0)
        engine.gate.set()
        assert client.ask(EMBED, field(1, "b"))[1]

    def test_cancelled_stream(self, live: Live, client: Client, engine: FakeEngine) -> None:
        """A cancelled stream drops all that it sent and was not answered."""
        engine.gate.clear()
        stream = client.stream(STREAM, (field(1, f"text {n}") for n in range(1000)))
        wait_until(lambda: scheduler_of(live).n_requests == streams.GROUPS)
        stream.cancel()
        wait_until(lambda: scheduler_of(live).n_requests == 0)
        wait_until(lambda: held(live) == 0)
        engine.gate.set()

    def test_a_fault_in_a_group(self, live: Live, client: Client, engine: FakeEngine) -> None:
        """Messages that are answered together end as they would alone: the fault is its own."""
        engine.gate.clear()
        texts = [f"text {n}" for n in range(streams.GROUPS + 5)]
        raws = [field(1, text) for text in [*texts, "", "after"]]
        stream = client.stream(STREAM, raws)
        wait_until(lambda: scheduler_of(live).n_requests == streams.GROUPS)
        engine.gate.set()
        found: list[bytes] = []
        with pytest.raises(grpc.RpcError) as error:
            found.extend(stream)
        vectors = [floats(fields_of(raw)[1][0]) for raw in found]
        expected = [engine.expected(f"search_document: {text}") for text in texts]
        assert np.array_equal(vectors, expected)
        assert error.value.code() is Code.INVALID_ARGUMENT

    def test_groups_of_other_options(self, live: Live, client: Client, engine: FakeEngine) -> None:
        """Messages that come together may ask for different things, and cost few requests."""
        engine.gate.clear()
        sizes = [64 if n % 3 else 128 for n in range(streams.GROUPS + streams.MOST_MESSAGES)]
        stream = client.stream(STREAM, [message((1, "a"), (6, size)) for size in sizes])
        wait_until(lambda: scheduler_of(live).n_requests == streams.GROUPS)
        engine.gate.set()
        assert [len(fields_of(raw)[1][0]) // 4 for raw in stream] == sizes

    def test_deadline(self, live: Live, client: Client, engine: FakeEngine) -> None:
        """A call that is not done at its deadline ends, and leaves the queue."""
        engine.gate.clear()
        assert client.refused(EMBED, field(1, "a"), timeout=0.2).code() is Code.DEADLINE_EXCEEDED
        wait_until(lambda: scheduler_of(live).n_requests == 0)
        engine.gate.set()

    def test_hopeless_deadline(self, live: Live, client: Client, engine: FakeEngine) -> None:
        """A call whose answer would come after its deadline is refused at once."""
        rates = scheduler_of(live)._workers._rates
        rates.of(engine).seconds = lambda work: 100.0 * sum(work.values())
        engine.gate.clear()
        running = client.start(EMBED, field(1, "a"))
        wait_until(lambda: scheduler_of(live).n_requests == 1)
        error = client.refused(EMBED, field(1, "b"), timeout=20)
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert "gRPC deadline" in error.details()
        engine.gate.set()
        running.result()

    def test_silent_caller(self, engine: FakeEngine) -> None:
        """A call or a stream that sends nothing ends with DEADLINE_EXCEEDED."""
        quiet = threading.Event()

        def nothing() -> Iterator[bytes]:
            yield from ()
            quiet.wait(20)

        with (
            live_server(engine, grpc_port=0, body_timeout_s=0.2) as live,
            Client(live) as client,
        ):
            for path in (EMBED, STREAM):
                with pytest.raises(grpc.RpcError) as error:
                    list(client.stream(path, nothing()))
                assert error.value.code() is Code.DEADLINE_EXCEEDED
            quiet.set()

    def test_slow_answers_are_no_silence(self, engine: FakeEngine) -> None:
        """A stream that waits for its answers may be silent as long as they take."""
        with (
            live_server(engine, grpc_port=0, body_timeout_s=0.2) as live,
            Client(live) as client,
        ):
            engine.delay_s = 0.5

            def texts() -> Iterator[bytes]:
                yield field(1, "a")
                wait_until(lambda: len(engine.batches) > n_runs)

            n_runs = len(engine.batches)
            assert len(answers(client.stream(STREAM, texts()))) == 1


class TestOverload:
    """A full server refuses calls with a hint when to try again; streams wait."""

    def test_hint(self, engine: FakeEngine) -> None:
        """RESOURCE_EXHAUSTED says when to try again: as text, for gRPC's retries, and typed."""
        with (
            live_server(engine, grpc_port=0, max_waiting_requests=1) as live,
            Client(live) as client,
        ):
            engine.gate.clear()
            running = client.start(EMBED, field(1, "a"))
            wait_until(lambda: scheduler_of(live).n_requests == 1)
            error = client.refused(EMBED, field(1, "b"))
            assert error.code() is Code.RESOURCE_EXHAUSTED
            trailers = dict(error.trailing_metadata())
            seconds = int(trailers["retry-after"])
            assert seconds >= 1
            assert trailers["grpc-retry-pushback-ms"] == str(1000 * seconds)
            status = fields_of(trailers["grpc-status-details-bin"])
            assert status[1] == [8]
            assert status[2] == [error.details().encode()]
            packed = fields_of(status[3][0])
            assert packed[1] == [b"type.googleapis.com/google.rpc.RetryInfo"]
            assert fields_of(fields_of(packed[2][0])[1][0]) == {1: [seconds]}
            engine.gate.set()
            assert running.result()

    def test_a_burst(self, live: Live, client: Client) -> None:
        """Two thousand calls at once on one connection are all answered."""
        calls = [client.start(EMBED, field(1, f"text {n % 7}")) for n in range(2000)]
        assert all(fields_of(call.result())[1] for call in calls)
        assert count(live, EMBED, "OK") == 2000

    def test_streams_wait(self, engine: FakeEngine) -> None:
        """A stream waits for room where a call is refused, and gets all of its answers in order."""
        with (
            live_server(engine, grpc_port=0, workers=1, max_waiting_requests=2) as live,
            Client(live) as client,
        ):
            texts = [f"text {n}" for n in range(20)]
            found = answers(client.stream(STREAM, (field(1, text) for text in texts)))
            expected = [engine.expected(f"search_document: {text}") for text in texts]
            assert np.array_equal([floats(one[1][0]) for one in found], expected)
            assert count(live, STREAM, "OK") == 1

    def test_memory(self, engine: FakeEngine) -> None:
        """What all calls hold together stays within the memory budget."""
        limits: dict[str, Any] = {"max_body_bytes": 1 << 20, "memory_budget_bytes": 4 << 20}
        with live_server(engine, grpc_port=0, **limits) as live, Client(live) as client:
            engine.gate.clear()
            text = "a " * (1 << 18)
            running = client.start(PREDICT, field(1, text))
            wait_until(lambda: held(live) > 1 << 20)
            error = client.refused(PREDICT, field(1, text + text[:-100]))
            assert error.code() is Code.RESOURCE_EXHAUSTED
            assert "MATRYO_MEMORY_BUDGET_BYTES" in error.details()
            engine.gate.set()
            running.result()
            wait_until(lambda: held(live) == 0)

    def test_unread_answers(self, live: Live, client: Client, engine: FakeEngine) -> None:
        """An answer that its caller does not read is held against the memory budget until then."""
        texts = (field(1, f"text {n}") for n in range(1300))
        # Without the probe, a client takes 64 KiB that nobody has read, however quick the line is.
        options = [("grpc.http2.bdp_probe", 0)]
        n_bytes = 1300 * 4 * 768
        with grpc.insecure_channel(f"127.0.0.1:{client.port}", options) as channel:
            call: Any = channel.stream_stream(PREDICT)
            stream = call(iter([b"".join(texts)]), timeout=30)
            wait_until(lambda: held(live) > 2 * n_bytes)  # vectors and answer
            wait_until(lambda: scheduler_of(live).n_requests == 0)
            assert count(live, PREDICT, "OK") == 0
            assert len(next(stream)) > n_bytes
            wait_until(lambda: count(live, PREDICT, "OK") == 1)
        wait_until(lambda: held(live) == 0)


class TestMessages:
    """Bounds of messages, and bytes that are none."""

    def test_too_large(self, engine: FakeEngine) -> None:
        """A message over `MATRYO_MAX_BODY_BYTES` is refused; one within is read."""
        with (
            live_server(engine, grpc_port=0, max_body_bytes=100_000) as live,
            Client(live) as client,
        ):
            error = client.refused(EMBED, field(1, "a" * 100_000))
            assert error.code() is Code.RESOURCE_EXHAUSTED
            assert client.ask(EMBED, message((1, "a" * 99_000), (2, 1)))[1]

    def test_compressed(self, client: Client) -> None:
        """A compressed message, which may be a thousand times its bytes, is refused."""
        call: Any = client.channel.unary_unary(EMBED)
        with pytest.raises(grpc.RpcError) as error:
            call(field(1, "a" * 1000), compression=grpc.Compression.Gzip)
        assert error.value.code() is Code.UNIMPLEMENTED

    @pytest.mark.parametrize(
        ("path", "piece"),
        [(PREDICT, b"\x0a\0"), (PREDICT, b"\x1a\0"), (INFER, b"\x2a\0"), (INFER, b"\x98\x06\0")],
    )
    def test_many_fields(self, live: Live, client: Client, path: str, piece: bytes) -> None:
        """Megabytes of tiny fields, known or unknown, are refused before they are parsed."""
        error = client.refused(path, piece * (1 << 20))
        assert error.code() is Code.INVALID_ARGUMENT
        assert "fields" in error.details()
        nested = field(5, message((5, piece * (1 << 20))))
        assert client.refused(INFER, nested).code() is Code.INVALID_ARGUMENT

    @pytest.mark.parametrize(
        "raw", [field(3, b"\1" * (1 << 20)), field(5, field(3, b"\1" * (1 << 20)))]
    )
    def test_many_packed_numbers(self, client: Client, raw: bytes) -> None:
        """Numbers of a byte that take eight once they are parsed count as fields."""
        error = client.refused(INFER, field(5, raw))
        assert error.code() is Code.INVALID_ARGUMENT
        assert "fields" in error.details()

    def test_too_many_texts(self, engine: FakeEngine) -> None:
        """More texts than `MATRYO_MAX_INPUTS` are refused, whatever the tensor says."""
        with live_server(engine, grpc_port=0, max_inputs=3) as live, Client(live) as client:
            error = client.refused(PREDICT, field(1, "a") * 4)
            assert error.code() is Code.INVALID_ARGUMENT
            assert "maximum length 3" in error.details()
            raw = message((5, tensor("text", 4)), (7, strings(*"abcd")))
            assert "maximum length 3" in client.refused(INFER, raw).details()
            assert len(client.ask(PREDICT, field(1, "a") * 3)[1]) == 3

    def test_no_message(self, client: Client) -> None:
        """A call without a message is INVALID_ARGUMENT."""
        with pytest.raises(grpc.RpcError) as error:
            list(client.stream(EMBED, []))
        assert error.value.code() is Code.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as error:
            list(client.stream(WATCH, []))
        assert error.value.code() is Code.INVALID_ARGUMENT

    @pytest.mark.parametrize(
        ("raw", "says"),
        [
            (field(1, b"\xff"), "UTF-8"),
            (b"\x0a\x05ab", "do not follow"),
            (message((1, "a"), (5, "nonsense")), "input_type"),
            (message((1, "a"), (6, 100_000)), "dimensions"),
            (message((1, "a"), (6, 0)), "dimensions"),
            (field(1, "w " * 9000), "maximum input length"),
            (field(1, ""), "empty"),
        ],
    )
    def test_invalid(self, client: Client, raw: bytes, says: str) -> None:
        """What can never succeed is INVALID_ARGUMENT, in the words of the HTTP routes."""
        error = client.refused(EMBED, raw)
        assert error.code() is Code.INVALID_ARGUMENT
        assert says in error.details()

    def test_long_details(self, client: Client) -> None:
        """A message that quotes a caller's text of any script stays within a client's metadata."""
        error = client.refused(INFER, field(1, "𝄞" * 5000))
        assert error.code() is Code.NOT_FOUND
        assert len(error.details().encode()) <= 1024


class TestFaults:
    """Faults of the server, and what operators see of calls."""

    def test_a_run_that_fails(
        self, client: Client, engine: FakeEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A fault of the server is INTERNAL with the call's id; the cause is in the log alone."""

        def fail(_: Sequence[TokenIds]) -> None:
            raise ValueError("a secret")

        engine.before = fail
        error = client.refused(EMBED, field(1, "a"))
        assert error.code() is Code.INTERNAL
        assert "secret" not in error.details()
        request_id = dict(error.trailing_metadata())["x-request-id"]
        assert request_id in error.details()
        assert any(getattr(line, "request_id", "") == request_id for line in caplog.records)

    def test_metadata(self, live: Live) -> None:
        """An answer has the caller's request id, the fingerprint, cuts and warnings."""
        with Client(live, x_request_id="trace-7") as client:
            raw = message((1, "w " * 9000), (2, 1), (6, 63))
            call = client.start(EMBED, raw)
            call.result()
            trailers = dict(call.trailing_metadata())
            assert trailers["x-request-id"] == "trace-7"
            print_ = "nomic-embed-text-v1.5/fp32/fake/document/63/float"
            assert trailers["x-matryo-fingerprint"] == print_
            assert trailers["x-matryo-truncated"] == "1"
            assert "not trained for 63" in trailers["x-matryo-warning"]
            assert "x-matryo-unknown" not in trailers
            stream = client.stream(STREAM, [field(1, "a"), message((1, "b"), (6, 64))])
            assert len(list(stream)) == 2
            assert dict(stream.trailing_metadata())["x-matryo-fingerprint"] == "mixed"
        with Client(live, x_request_id="no good id") as client:
            call = client.start(EMBED, field(1, "a"))
            call.result()
            assert dict(call.trailing_metadata())["x-request-id"].startswith("req_")

    def test_log_and_metrics(
        self, live: Live, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A call is one log line and one count; no line has the text."""
        caplog.set_level(logging.INFO)
        client.ask(PREDICT, message((1, "private"), (1, "words")))
        client.refused(EMBED, field(1, ""))
        wait_until(lambda: count(live, EMBED, "INVALID_ARGUMENT") == 1)
        assert count(live, PREDICT, "OK") == 1
        lines = [line for line in caplog.records if line.name == "matryo.request"]
        first = next(line for line in lines if "Predict" in line.getMessage())
        facts = vars(first)
        assert first.getMessage() == f"gRPC {PREDICT} OK"
        assert (facts["texts"], facts["model"], facts["code"]) == (2, "nomic-embed-text-v1.5", "OK")
        assert not any("private" in str(vars(line)) for line in lines)
        page = requests.get(f"{live.url}/metrics", timeout=30).text
        labels = 'door="grpc",input_type="document",model="nomic-embed-text-v1.5",status="OK"'
        assert f"matryo_request_seconds_count{{{labels}}} 1.0" in page


class TestStopping:
    """A server that stops drains gRPC as HTTP."""

    def test_drain(self, live: Live, client: Client, engine: FakeEngine) -> None:
        """Running calls are answered, new ones and waiting streams are refused, watches end."""
        watch = client.channel.unary_stream(WATCH)(b"", timeout=30)
        assert fields_of(next(watch)) == {1: [1]}
        engine.gate.clear()
        running = client.start(EMBED, field(1, "a"))
        wait_until(lambda: scheduler_of(live).n_requests == 1)
        more = threading.Event()

        def texts() -> Iterator[bytes]:
            yield field(1, "b")
            more.wait(20)

        stream = client.stream(STREAM, texts())
        wait_until(lambda: scheduler_of(live).n_requests == 2)
        live.server.stop()
        assert fields_of(next(watch)) == {1: [2]}
        assert list(watch) == []
        wait_until(lambda: is_refused(client.port))
        with Client(live) as late:
            assert late.refused(EMBED, field(1, "c")).code() is Code.UNAVAILABLE
        engine.gate.set()
        expected = engine.expected("search_document: a")
        assert np.array_equal(floats(fields_of(running.result())[1][0]), expected)
        assert len(fields_of(next(stream))[1][0]) == 4 * 768
        with pytest.raises(grpc.RpcError) as error:
            next(stream)
        more.set()
        assert error.value.code() is Code.UNAVAILABLE

    def test_grace_ends(self, engine: FakeEngine) -> None:
        """A call that still runs at the end of the grace is UNAVAILABLE."""
        with live_server(engine, grpc_port=0, grace_s=0.1) as live, Client(live) as client:
            engine.gate.clear()
            call = client.start(EMBED, field(1, "a"))
            wait_until(lambda: scheduler_of(live).n_requests == 1)
            live.server.stop()
            assert call.exception().code() is Code.UNAVAILABLE
            engine.gate.set()

    def test_hurry(self, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        """A second signal ends the server without waiting for what runs."""
        monkeypatch.setattr("matryo.http.server.AGAIN_S", 0)
        with live_server(engine, grpc_port=0, grace_s=60) as live, Client(live) as client:
            engine.gate.clear()
            call = client.start(EMBED, field(1, "a"))
            wait_until(lambda: scheduler_of(live).n_requests == 1)
            live.server.stop()
            wait_until(lambda: is_refused(client.port))
            live.server.stop()
            assert call.exception().code() in {Code.UNAVAILABLE, Code.CANCELLED}
            engine.gate.set()


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A certificate of localhost, its key, and another key."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("makes certificates with openssl")
    folder = tmp_path_factory.mktemp("tls")
    files = {name: folder / f"{name}.pem" for name in ("cert", "key", "other")}
    make = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    names = ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names += ["-addext", "subjectAltName=DNS:localhost"]
    for key, cert in (("key", "cert"), ("other", "unused")):
        out = ["-keyout", files[key], "-out", folder / f"{cert}.pem"]
        subprocess.run([*make, *names, *out], check=True, capture_output=True)
    return files


class TestTls:
    """TLS by two files."""

    def test_call(self, engine: FakeEngine, pem: dict[str, Path]) -> None:
        """A client that trusts the certificate is answered; a plain one is not."""
        files: dict[str, Any] = {"grpc_cert_file": pem["cert"], "grpc_key_file": pem["key"]}
        with live_server(engine, grpc_port=0, **files) as live:
            port = live.application.state.grpc_server.port
            trust = grpc.ssl_channel_credentials(pem["cert"].read_bytes())
            with grpc.secure_channel(f"localhost:{port}", trust) as channel:
                call: Any = channel.unary_unary(EMBED)
                assert fields_of(call(field(1, "a"), timeout=30))[1]
            with Client(live) as plain:
                assert plain.refused(EMBED, field(1, "a"), timeout=5).code() in {
                    Code.UNAVAILABLE,
                    Code.DEADLINE_EXCEEDED,
                }

    def test_another_authority(self, engine: FakeEngine, pem: dict[str, Path]) -> None:
        """A client that trusts another certificate sends nothing; others are answered as before."""
        files: dict[str, Any] = {"grpc_cert_file": pem["cert"], "grpc_key_file": pem["key"]}
        with live_server(engine, grpc_port=0, **files) as live:
            target = f"localhost:{live.application.state.grpc_server.port}"
            wrong = grpc.ssl_channel_credentials((pem["key"].parent / "unused.pem").read_bytes())
            right = grpc.ssl_channel_credentials(pem["cert"].read_bytes())
            with (
                grpc.secure_channel(target, wrong) as stranger,
                grpc.secure_channel(target, right) as channel,
            ):
                refused: Any = stranger.unary_unary(EMBED)
                with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
                    refused(field(1, "a"), timeout=30)
                call: Any = channel.unary_unary(EMBED)
                assert fields_of(call(field(1, "a"), timeout=30))[1]
            assert count(live, EMBED, "OK") == 1

    @pytest.mark.parametrize(
        ("cert", "key", "says"),
        [
            ("cert", None, "MATRYO_GRPC_KEY_FILE"),
            (None, "key", "MATRYO_GRPC_CERT_FILE"),
            ("cert", "other", "is not the key of the first certificate"),
            ("cert", "absent", "No such file"),
            ("key", "cert", "has no certificate"),
        ],
    )
    def test_files_that_do_not_fit(
        self,
        engine: FakeEngine,
        pem: dict[str, Path],
        cert: str | None,
        key: str | None,
        says: str,
    ) -> None:
        """Files that TLS cannot use are found at the start, in words."""
        absent = {"absent": pem["key"].parent / "absent.pem"}
        files = {
            f"grpc_{name}_file": str((pem | absent)[file])
            for name, file in (("cert", cert), ("key", key))
            if file
        }
        with pytest.raises(SettingsInvalid, match=re.escape(says)):
            create_app(settings(grpc_port=0, **files), engine)


class TestRenewal:
    """Certificates of clients, and files that change."""

    def test_client_certificates(self, engine: FakeEngine, tmp_path: Path) -> None:
        """Only a client with a certificate of the authority is answered, here by files of HTTP."""
        authority = Authority()
        cert, key = authority.issue().write(tmp_path)
        own = authority.issue(name="client")
        (tmp_path / "ca.pem").write_bytes(authority.pem)
        files: dict[str, Any] = {
            "tls_cert_file": str(cert),
            "tls_key_file": str(key),
            "grpc_client_ca_file": str(tmp_path / "ca.pem"),
        }
        with live_server(engine, grpc_port=0, **files) as live:
            with secure_channel(live, authority, own) as channel:
                call: Any = channel.unary_unary(EMBED)
                assert fields_of(call(field(1, "a"), timeout=30))[1]
            stranger = Authority("stranger").issue()
            for wrong in (None, stranger):
                with secure_channel(live, authority, wrong) as channel:
                    call = channel.unary_unary(EMBED)
                    with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
                        call(field(1, "a"), timeout=30)
            assert count(live, EMBED, "OK") == 1

    def test_renewal(self, engine: FakeEngine, tmp_path: Path) -> None:
        """New channels see a renewed certificate; an open channel still calls; halves are refused."""
        authority, renewed = Authority(), Authority("renewed")
        cert, key = authority.issue().write(tmp_path)
        files: dict[str, Any] = {"grpc_cert_file": str(cert), "grpc_key_file": str(key)}
        registry: Any = None

        def reloads(outcome: str) -> float:
            labels = {"what": "tls", "outcome": outcome}
            return registry.get_sample_value("matryo_reloads_total", labels) or 0

        def ask(channel: grpc.Channel) -> None:
            call: Any = channel.unary_unary(EMBED)
            assert fields_of(call(field(1, "a"), timeout=30))[1]

        with (
            live_server(engine, grpc_port=0, **files) as live,
            secure_channel(live, authority) as old,
        ):
            registry = live.application.state.context.metrics.registry
            ask(old)
            pair = renewed.issue()
            replace(cert, pair.cert_pem)
            wait_until(lambda: reloads("refused") == 1)
            with secure_channel(live, authority) as channel:
                ask(channel)
            replace(key, pair.key_pem)
            wait_until(lambda: reloads("ok") == 1)
            for _ in range(2):  # the second handshake asks again, and gets the same
                with secure_channel(live, renewed) as channel:
                    ask(channel)
            ask(old)


def secure_channel(live: Live, authority: Authority, own: Pair | None = None) -> grpc.Channel:
    """A channel of its own connection, with a client's certificate if given."""
    pair = (own.key_pem, own.cert_pem) if own else (None, None)
    target = f"localhost:{live.application.state.grpc_server.port}"
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(authority.pem, *pair), options)


class TestPorts:
    """The port is found out before anything is loaded."""

    def test_taken(self) -> None:
        """A port that another process listens on is refused, even by one that would share it."""
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            with (
                pytest.raises(SettingsInvalid, match=f"gRPC on 127.0.0.1:{port}"),
                held_port("127.0.0.1", port),
            ):
                pass

    def test_held(self) -> None:
        """A port that is held cannot be taken by another program."""
        with (
            held_port("localhost", 0) as port,
            socket.socket() as other,
            pytest.raises(OSError, match="in use"),
        ):
            other.bind(("127.0.0.1", port))

    def test_without_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A port for gRPC without grpcio is refused in words."""
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(SettingsInvalid, match=r"Install matryo\[grpc\]"):
            check_installed()

    def test_an_old_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A grpcio that is too old is refused in words; any newer one is taken."""
        for found in ("1.84.0", "1.100.0rc1", "2.0.0"):
            monkeypatch.setattr("matryo.grpc.listening.version", lambda _, found=found: found)
            check_installed()
        monkeypatch.setattr("matryo.grpc.listening.version", lambda _: "1.83.2")
        with pytest.raises(SettingsInvalid, match=r"1\.83\.2 is too old"):
            check_installed()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("processes", [1, 2])
def test_serve(tmp_path: Path, processes: int) -> None:
    """`matryo serve` answers over gRPC, in one process or several, and drains on SIGTERM."""
    model = make_model(tmp_path, "bert")
    env = os.environ | {"MATRYO_HOME": str(tmp_path / "home"), "MATRYO_MODELS": str(model.models)}
    matryo = [sys.executable, "-m", "matryo"]
    build = [*matryo, "build", "tiny", "--checkpoint", str(model.checkpoint)]
    subprocess.run(build, env=env, check=True)
    serve = [*matryo, "serve", "--model", "tiny", "--port", "0", "--grpc-port", "0"]
    serve += ["--processes", str(processes), "--log-format", "json"]
    process = subprocess.Popen(serve, env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    lines: list[str] = []
    while not (lines and "gRPC on" in lines[-1]):
        lines.append(json.loads(process.stderr.readline())["message"])
    port = int(lines[-1].rpartition(" ")[2])
    url = next(found[0] for line in lines if (found := re.search(r"http://\S+", line)))
    body = {"input": ["the sky is blue"]}
    answer = requests.post(f"{url}/v1/embeddings", json=body, timeout=30)
    expected = np.array(answer.json()["data"][0]["embedding"], np.float32)
    for _ in range(4):  # a new connection each, which may go to another process
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_unary(EMBED)
            raw = call(field(1, "the sky is blue"), timeout=30)
            assert np.array_equal(floats(fields_of(raw)[1][0]), expected)
    process.terminate()
    _, rest = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in rest
