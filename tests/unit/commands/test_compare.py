"""`matryo embed --compare`: width, type, lengths, order and ids all count."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from matryo.commands.agreement import compare
from matryo.commands.endpoint import mounts
from matryo.engine.postprocess import FloatArray, l2_normalize
from tests.contract.conftest import Live
from tests.unit.commands.conftest import Command

TEXTS = [f"the sky is {word}" for word in ("blue", "green", "grass", "x", "y z", "the sky") * 3]
DISTINCT = [f"sky {number} {'blue ' * (number % 5)}" for number in range(14)]


def facts(done: Result) -> Any:
    """What --json prints."""
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A file of lines."""
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of rows with ids."""
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"id": f"k\u2028{n}", "text": text}) for n, text in enumerate(DISTINCT)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def kept(embed: Command, rows: Path, tmp_path: Path) -> Path:
    """Vectors of these rows."""
    path = tmp_path / "kept.jsonl"
    assert embed(rows, "--output", path).exit_code == 0
    return path


class TestVectors:
    """What a file of vectors must have in common with ours."""

    def test_lengths(self, embed: Command, rows: Path, tmp_path: Path) -> None:
        """Vectors three times as long are not identical, and not fit for one index."""
        path = tmp_path / "v.npy"
        embed(rows, "--output", path)
        np.save(path, np.load(path) * np.float32(3))
        done = embed(rows, "--compare", path, "--json")
        assert (done.exit_code, facts(done)["verdict"]) == (1, "scaled")
        assert facts(done)["norms"] == pytest.approx([1, 3], abs=1e-5)
        words = embed(rows, "--compare", path).stdout
        assert re.search(r"^mean norms +1 and 3$", words, re.MULTILINE)
        one = np.load(path)
        one[3] *= 1.01
        np.save(path, one / np.float32(3))
        assert facts(embed(rows, "--compare", path, "--json"))["verdict"] == "scaled"

    @pytest.mark.parametrize(
        ("numbers", "verdict"),
        [
            ("float32", "identical"),
            (">f4", "identical"),
            ("float64", "interchangeable"),
            ("float16", "interchangeable"),
            ("int8", "other type"),
            ("int32", "other type"),
        ],
    )
    def test_types(
        self, embed: Command, rows: Path, tmp_path: Path, numbers: str, verdict: str
    ) -> None:
        """Numbers of another type are named, and never identical."""
        path = tmp_path / "v.npy"
        embed(rows, "--output", path)
        given = np.load(path)
        scaled = np.round(given * 127 * 1.4) if "int" in numbers else given
        np.save(path, scaled.astype(numbers))
        done = embed(rows, "--compare", path, "--json")
        assert facts(done)["verdict"] == verdict
        assert facts(done)["numbers"] == ["float32", np.dtype(numbers).name]
        assert done.exit_code == (verdict == "other type")

    def test_json_integers(self, embed: Command, rows: Path, kept: Path) -> None:
        """Integers of a JSON-lines file are another type, too."""
        lines = [json.loads(line) for line in kept.read_text().split("\n")[:-1]]
        for line in lines:
            line["embedding"] = [round(127 * value * 1.4) for value in line["embedding"]]
        kept.write_text("\n".join(map(json.dumps, lines)))
        assert facts(embed(rows, "--compare", kept, "--json"))["verdict"] == "other type"

    @pytest.mark.parametrize("content", [b"", b"nope", b"PK\x03\x04", b"\x93NUMPY"])
    @pytest.mark.parametrize("name", ["v.npy", "v.jsonl"])
    def test_no_vectors(self, embed: Command, tmp_path: Path, content: bytes, name: str) -> None:
        """A broken file is named, in one sentence."""
        path = tmp_path / name
        path.write_bytes(content)
        done = embed("--compare", path)
        assert done.exit_code == 1
        assert str(path) in done.stderr
        assert done.stderr.count("\n") == 1


class TestOrder:
    """Vectors are matched by id where both sides have ids; another order is named."""

    def test_by_id(self, embed: Command, rows: Path, kept: Path) -> None:
        """Shuffled rows are matched, also behind a byte order mark."""
        lines = kept.read_bytes().split(b"\n")[:-1]
        kept.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines[::-1]) + b"\n\n")
        done = embed(rows, "--compare", kept, "--json")
        assert (done.exit_code, facts(done)["verdict"]) == (0, "identical")
        assert facts(done)["order"] == "other"
        assert "matched by id" in embed(rows, "--compare", kept).stdout

    def test_without_ids(self, embed: Command, rows: Path, tmp_path: Path) -> None:
        """Without ids the order counts, and a shuffled file is named as such."""
        path = tmp_path / "v.npy"
        embed(rows, "--output", path)
        np.save(path, np.load(path)[::-1])
        done = embed(rows, "--compare", path, "--json")
        assert (done.exit_code, facts(done)["verdict"]) == (1, "different")
        assert facts(done)["order"] == "other"
        assert "the same vectors, and not those of the same texts" in (
            embed(rows, "--compare", path).stdout
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda lines: [*lines[1:], lines[0].replace('"id":"k', '"id":"z')], "no vector for 1"),
            (lambda lines: [*lines[1:], lines[1]], "twice"),
            (lambda lines: [*lines, lines[0].replace('"id":"k', '"id":"z')], "15 vectors for 14"),
            (lambda lines: lines[1:], "no vector for 1"),
        ],
    )
    def test_other_ids(
        self, embed: Command, rows: Path, kept: Path, change: Any, message: str
    ) -> None:
        """Ids that do not fit are refused."""
        lines = change(kept.read_text("utf-8").split("\n")[:-1])
        kept.write_text("\n".join(lines) + "\n", "utf-8")
        done = embed(rows, "--compare", kept)
        assert done.exit_code == 1
        assert message in done.stderr

    def test_wide_file(self, embed: Command, rows: Path, kept: Path) -> None:
        """Vectors in UTF-16 are refused with the remedy."""
        kept.write_text(kept.read_text("utf-8"), "utf-16")
        assert "iconv" in embed(rows, "--compare", kept).stderr

    def test_endpoint(self, embed: Command, rows: Path, reversing: str) -> None:
        """Answers are read by their index."""
        done = embed(rows, "--compare", reversing, "--json")
        assert facts(done)["verdict"] == "identical", done.stderr


@pytest.fixture
def reversing(embed: Command) -> Iterator[str]:
    """An endpoint that gives the last vector first."""
    engine = embed.engine()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            ids = [e.ids for e in engine.tokenize([f"search_document: {t}" for t in body["input"]])]
            found = engine.embed(ids, [32] * len(ids)).embeddings
            data = [{"index": n, "embedding": v.tolist()} for n, v in enumerate(found)]
            answer = json.dumps({"data": data[::-1]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_request(self, code: object = "-", size: object = "-") -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


class TestTarget:
    """Which file and which host."""

    @pytest.mark.parametrize("link", [os.link, os.symlink, None])
    def test_the_input(self, embed: Command, rows: Path, tmp_path: Path, link: Any) -> None:
        """The file of texts is no file of vectors, under whatever name."""
        path = tmp_path / "other.jsonl" if link else rows
        if link:
            link(rows, path)
        done = embed(rows, "--compare", path)
        assert done.exit_code == 1
        assert "the file of texts itself" in done.stderr

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    def test_no_proxy_for_loopback(
        self, embed: Command, live: Live, monkeypatch: pytest.MonkeyPatch, host: str
    ) -> None:
        """A server of this machine is asked directly, whatever the environment says."""
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        done = embed("--compare", f"http://{host}:{live.port}/v1", "--json")
        assert facts(done)["verdict"] == "identical"

    @pytest.mark.parametrize(
        ("url", "is_local"),
        [
            ("http://127.8.8.8/v1", True),
            ("http://[::1]:80/v1", True),
            ("http://LOCALHOST/v1", True),
            ("http://a.localhost/v1", True),
            ("http://10.0.0.1/v1", False),
            ("http://localhost.example/v1", False),
        ],
    )
    def test_proxies(self, url: str, is_local: bool) -> None:
        """Proxies stay for other hosts."""
        assert bool(mounts(url)) is is_local

    @pytest.mark.parametrize("proxy", ["nope://x", "http://[::1"])
    def test_broken_proxy(
        self, embed: Command, monkeypatch: pytest.MonkeyPatch, proxy: str
    ) -> None:
        """A proxy that cannot be used is one sentence."""
        monkeypatch.setenv("http_proxy", proxy)
        done = embed("--compare", "http://192.0.2.1/v1")
        assert done.exit_code == 1
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize("flags", [("--output", "v.npy", "--compare", "int8"), ("--json",)])
    def test_flags(self, embed: Command, flags: tuple[str, ...]) -> None:
        """Flags that would do nothing are refused."""
        done = embed(*flags, text="a")
        assert done.exit_code == 1
        assert "--compare" in done.stderr


class TestCompare:
    """Whether vectors may share an index, by the vectors."""

    def test_own_server(self, embed: Command, texts: Path, live: Live) -> None:
        """The same model behind a server gives the same vectors, and the same fingerprint."""
        url = f"{live.url}/v1"
        done = embed(texts, "--compare", url, "--json")
        found = facts(done)
        assert (done.exit_code, found["verdict"]) == (0, "identical")
        assert found["fingerprints"][0] == found["fingerprints"][1]
        assert found["same_neighbours"] == 1
        blank = embed("-", "--compare", url, "--json", text="a\n\nb\n")
        assert (blank.exit_code, facts(blank)["texts"]) == (0, 2)
        words = embed("--compare", url)
        assert "identical: the same vectors" in words.stdout

    def test_password(self, embed: Command, texts: Path, live: Live) -> None:
        """A password in a URL is not shown, whether the server answers or not."""
        for port in (live.port, 1):
            done = embed(texts, "--compare", f"http://user:hidden@127.0.0.1:{port}/v1")
            assert f"http://127.0.0.1:{port}/v1" in done.output
            assert "hidden" not in done.output

    def test_other_prefix(self, embed: Command, texts: Path, live: Live) -> None:
        """A server asked for queries gives what the fingerprint says it gives."""
        flags = (texts, "--compare", f"{live.url}/v1", "--json")
        found = facts(embed("--input-type", "query", *flags))
        assert found["verdict"] == "identical"
        assert found["fingerprints"][1].split("/")[3] == "query"

    def test_other_precision(self, embed: Command, texts: Path) -> None:
        """int8 is near, and not the same."""
        found = facts(embed(texts, "--compare", "int8", "--json"))
        assert found["verdict"] != "identical"
        assert 0.98 < found["cosine_min"] < 1 - 1e-6
        assert "/int8/" in found["fingerprints"][1]

    def test_files(self, embed: Command, texts: Path, tmp_path: Path) -> None:
        """Vectors kept from before, in both formats."""
        for name in ("v.npy", "v.jsonl"):
            kept = tmp_path / name
            embed(texts, "--output", kept)
            done = embed(texts, "--compare", kept, "--json")
            assert (done.exit_code, facts(done)["verdict"]) == (0, "identical")
            done = embed(texts, "--dimensions", 16, "--compare", kept)
            assert done.exit_code == 1
            assert "16 and 32" in done.stdout
        done = embed("-", "--compare", tmp_path / "v.npy", text="a\nb")
        assert f"{len(TEXTS)} vectors for 2 texts" in done.stderr

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            ("http://127.0.0.1:1/v1", "no answer"),
            ("fp64", "neither a URL (http://...), nor a precision"),
            ("none.npy", "not a file of vectors"),
        ],
    )
    def test_faults(self, embed: Command, target: str, message: str) -> None:
        """Each says what was expected."""
        done = embed("--compare", target)
        assert done.exit_code == 1
        assert message in done.stderr

    def test_endpoint_refuses(self, embed: Command, live: Live) -> None:
        """Its own words are shown."""
        flags = ("--compare", f"{live.url}/v1", "--compare-model", "gpt-4")
        done = embed(*flags)
        assert "status 404" in done.stderr
        assert "`gpt-4` does not exist" in done.stderr

    def test_verdicts(self) -> None:
        """By the least cosine, where lengths agree."""
        rng = np.random.default_rng(0)
        one = l2_normalize(rng.standard_normal((40, 64)).astype(np.float32))

        def moved(by: float) -> FloatArray:
            other = rng.standard_normal(one.shape).astype(np.float32)
            other -= (other * one).sum(1, keepdims=True) * one
            return l2_normalize((one + l2_normalize(other) * by).astype(np.float32))

        verdicts = [compare(one, moved(by)).verdict for by in (0, 0.02, 0.1, 0.5)]
        assert verdicts == ["identical", "interchangeable", "close", "different"]
        near, far = compare(one, moved(0.02)), compare(one, moved(3))
        assert near.same_neighbours is not None
        assert far.same_neighbours is not None
        assert near.same_neighbours > far.same_neighbours + 0.3
