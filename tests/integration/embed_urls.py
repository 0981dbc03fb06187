"""`matryo embed` from and to an S3 store and a web server, which run here.

    .venv/bin/python -m pytest -n 0 tests/integration/embed_urls.py

Needs matryo[files] and moto[server].
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from matryo.commands.embedding import command
from matryo.commands.remote import Remote
from matryo.commands.sources.inputs import open_inputs
from matryo.commands.sources.item import Reading
from matryo.core.errors import InvalidRequest, SettingsInvalid
from tests.crashes import Crash, count_steps, crash_at
from tests.unit.commands.faked import embed

PARQUET: Any = pq
BUCKET = "s3://corpus"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of an S3 store."""
    server: Any = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket, and boto3's client of it."""
    import boto3

    for name, value in {
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server.replace("0.0.0.0", "127.0.0.1"),  # noqa: S104 - moto's name of itself
    }.items():
        monkeypatch.setenv(name, value)
    s3: Any = boto3.client("s3", region_name="us-east-1")
    s3.create_bucket(Bucket="corpus")
    yield s3
    for found in s3.list_objects_v2(Bucket="corpus").get("Contents", []):
        s3.delete_object(Bucket="corpus", Key=found["Key"])
    s3.delete_bucket(Bucket="corpus")


def put(s3: Any, key: str, content: bytes) -> None:
    """Put one object."""
    s3.put_object(Bucket="corpus", Key=key, Body=content)


def keys(s3: Any) -> list[str]:
    """The names of all objects."""
    return [one["Key"] for one in s3.list_objects_v2(Bucket="corpus").get("Contents", [])]


def parquet(texts: list[str]) -> bytes:
    """A Parquet file in many row groups."""
    sink = pa.BufferOutputStream()
    PARQUET.write_table(pa.table({"text": texts}), sink, row_group_size=100)
    return sink.getvalue().to_pybytes()


def texts(*names: str, **reading: Any) -> list[str]:
    """The texts of inputs."""
    items = open_inputs(names, Reading(**reading)).read_ahead().items
    return [item.text for item in items]


def test_inputs(bucket: Any, tmp_path: Path) -> None:
    """Objects, folders and globs of every format, beside files of this machine."""
    put(bucket, "in/a.txt", b"one\n" * 700)
    put(bucket, "in/b.jsonl", b'{"text": "two"}\n')
    put(bucket, "in/x/c.csv.gz", gzip.compress(b"id,text\n1,three\n"))
    put(bucket, "in/x/d.parquet", parquet(["four"] * 1500))
    put(bucket, "in/x/e.pdf", b"no text")
    (tmp_path / "f.txt").write_text("five\n")
    assert texts(f"{BUCKET}/in/b.jsonl", str(tmp_path / "f.txt")) == ["two", "five"]
    assert texts(f"{BUCKET}/in") == ["one"] * 700 + ["two", "three"] + ["four"] * 1500
    assert texts(f"{BUCKET}/in/**/*.parquet") == ["four"] * 1500
    assert texts(f"{BUCKET}/in/*.txt") == ["one"] * 700


@pytest.mark.parametrize("suffix", ["jsonl", "npy", "parquet"])
def test_output(bucket: Any, tmp_path: Path, suffix: str) -> None:
    """An object in every format equals the file that this machine would have got."""
    put(bucket, "in/a.parquet", parquet([f"sky {n % 7}" for n in range(1000)]))
    embed([f"{BUCKET}/in/a.parquet"], f"{BUCKET}/out/v.{suffix}", home=tmp_path / "home")
    embed([f"{BUCKET}/in/a.parquet"], tmp_path / f"v.{suffix}")
    body = bucket.get_object(Bucket="corpus", Key=f"out/v.{suffix}")["Body"].read()
    assert body == (tmp_path / f"v.{suffix}").read_bytes()
    assert list((tmp_path / "home" / "embed").iterdir()) == []
    assert keys(bucket) == ["in/a.parquet", f"out/v.{suffix}"]


def test_resume(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off at any step on the disk, the next run uploads the same object."""
    monkeypatch.setattr(command, "_COMMIT_S", 0.0)
    put(bucket, "in/a.txt", b"".join(b"sky %d\n" % n for n in range(2000)))
    home = tmp_path / "home"

    def work() -> None:
        embed([f"{BUCKET}/in/a.txt"], f"{BUCKET}/v.npy", home=home, resume=True)

    work()  # makes the folder
    n_steps = count_steps(home, work)
    for step in range(0, n_steps, 2):
        bucket.delete_object(Bucket="corpus", Key="v.npy")
        with pytest.raises(Crash):
            crash_at(step, home, work)
        work()
        body = bucket.get_object(Bucket="corpus", Key="v.npy")["Body"].read()
        (tmp_path / "v.npy").write_bytes(body)
        assert np.load(tmp_path / "v.npy").shape == (2000, 384)
        assert list((home / "embed").iterdir()) == []


def test_changed_object(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object that was written again in between is refused."""
    monkeypatch.setattr(command, "_COMMIT_S", 0.0)
    put(bucket, "in/a.txt", b"sky\n" * 2000)
    out = tmp_path / "v.npy"

    def work() -> None:
        embed([f"{BUCKET}/in/a.txt"], out, resume=True)

    with pytest.raises(Crash):
        crash_at(14, tmp_path, work)
    put(bucket, "in/a.txt", b"sky\n" * 1999 + b"sea\n")
    with pytest.raises(SettingsInvalid, match="the input was"):
        work()


def test_refused(bucket: Any, tmp_path: Path) -> None:
    """What is not there is named before the model is loaded."""
    put(bucket, "a.txt", b"one\n")
    for name in (f"{BUCKET}/none.txt", "s3://no-such-bucket/a.txt", f"{BUCKET}/none/*.txt"):
        with pytest.raises(InvalidRequest, match=r"no such file|no file to read|cannot be"):
            texts(name)
    for name in ("s3://no-such-bucket/v.npy", "https://127.0.0.1:9/v.npy"):
        with pytest.raises(SettingsInvalid, match=r"cannot be written|takes no files"):
            embed([f"{BUCKET}/a.txt"], name, home=tmp_path)
    with pytest.raises(SettingsInvalid, match="this is an input"):
        embed([f"{BUCKET}/v.jsonl"], f"{BUCKET}/v.jsonl", home=tmp_path, reading=Reading("lines"))
    with pytest.raises(SettingsInvalid, match="give a path, or a URL"):
        Remote("nosuch://a/b")


def test_web_server(tmp_path: Path) -> None:
    """A file of a web server, whatever follows its name in the URL."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one"}) + "\n")
    (tmp_path / "b.parquet").write_bytes(parquet(["two"] * 300))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            root = f"http://127.0.0.1:{server.server_port}"
            assert texts(f"{root}/a.jsonl?signature=x*y") == ["one"]
            with pytest.raises(InvalidRequest, match="no such file"):
                texts(f"{root}/none.jsonl")
        finally:
            server.shutdown()
            thread.join()
