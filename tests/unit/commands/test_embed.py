"""`matryo embed`: the server's vectors without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matryo.engine.postprocess import FloatArray
from tests.unit.commands.conftest import Command

TEXTS = [f"the sky is {word}" for word in ("blue", "green", "grass", "x", "y z", "the sky") * 3]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A file of lines."""
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


def expected(embed: Command, prefix: str, size: int = 32) -> FloatArray:
    """What the engine gives for the texts."""
    engine = embed.engine()
    ids = [encoded.ids for encoded in engine.tokenize([prefix + text for text in TEXTS])]
    return np.array(engine.embed(ids, [size] * len(ids)).embeddings)


class TestOutput:
    """Vectors in order, in every format."""

    def test_json_lines(self, embed: Command) -> None:
        """From standard input to standard output, documents by default."""
        done = embed(text="\n".join(TEXTS))
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert [row["index"] for row in rows] == list(range(len(TEXTS)))
        found = np.array([row["embedding"] for row in rows], np.float32)
        assert np.array_equal(found, expected(embed, "search_document: "))

    def test_npy(self, embed: Command, texts: Path, tmp_path: Path) -> None:
        """Queries, cut to 16; nothing half-written is left."""
        out = tmp_path / "v.npy"
        flags = ("--input-type", "query", "--dimensions", 16, "--output", out)
        assert embed(texts, *flags).exit_code == 0
        found = np.load(out)
        assert found.dtype == np.float32
        assert np.array_equal(found, expected(embed, "search_query: ", 16))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.txt", "v.npy"]

    def test_parquet_and_ids(self, embed: Command, tmp_path: Path) -> None:
        """An id goes through as it came."""
        import pyarrow.parquet as pq

        out = tmp_path / "v.parquet"
        rows = [{"text": text, "id": f"k{n}"} for n, text in enumerate(TEXTS)]
        lines = "\n".join(map(json.dumps, rows))
        assert embed("-", "--output", out, text=lines).exit_code == 0
        table: Any = pq.read_table(out).to_pydict()  # pyright: ignore[reportUnknownMemberType]
        assert table["id"] == [row["id"] for row in rows]
        found = np.array(table["embedding"], np.float32)
        assert np.array_equal(found, expected(embed, "search_document: "))

    @pytest.mark.parametrize(
        ("text", "flags", "message"),
        [
            ("a\n" + "the " * 160, (), "line 2 has"),
            ('{"text": "a"}\nnope', (), "line 2: no JSON"),
            ("a", ("--output", "v.csv"), "unknown format '.csv'"),
            ("a", ("--dimensions", "33"), "'dimensions': 33"),
            ("a", ("--input-type", "x"), "'input_type': 'x'"),
        ],
    )
    def test_faults(self, embed: Command, text: str, flags: tuple[str, ...], message: str) -> None:
        """Each names the place or the flag's value."""
        done = embed("-", *flags, text=text)
        assert done.exit_code == 1
        assert message in done.stderr

    def test_truncate(self, embed: Command) -> None:
        """Long texts are cut when asked."""
        done = embed("--truncate", text="the " * 160)
        assert len(done.stdout.splitlines()) == 1


def test_what_was_lost_is_said(embed: Command) -> None:
    """Texts that were cut, and texts that the model cannot read whole, are counted at the end."""
    done = embed("--truncate", text="the sky\nthe sky is \u4f60\u597d\n" + "the sky " * 300 + "\n")
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 3
    assert "1 texts were cut to the model's limit" in done.stderr
    assert "1 texts have something that the model's vocabulary lacks" in done.stderr
    assert "texts" not in embed(text="the sky\n").stderr.replace("standard input", "")


class TestExpectedFingerprint:
    """`--expect-fingerprint` keeps vectors of another index out of the output."""

    def test_right(self, embed: Command, texts: Path, tmp_path: Path) -> None:
        """The fingerprint that a file has is the one to give for the rows to come."""
        import pyarrow.parquet as pq

        for dtype, kind in (("float32", "float"), ("float16", "float"), ("int8", "int8")):
            out = tmp_path / f"{dtype}.parquet"
            flags = ("--dtype", dtype, "--dimensions", 16, "--output", out)
            assert embed(texts, *flags).exit_code == 0
            metadata: Any = pq.read_schema(out).metadata  # pyright: ignore[reportUnknownMemberType]
            fingerprint = metadata[b"matryo.fingerprint"].decode()
            assert fingerprint.endswith(f"/16/{kind}")
            done = embed(texts, *flags, "--expect-fingerprint", fingerprint)
            assert done.exit_code == 0, done.stderr

    @pytest.mark.parametrize(
        ("flags", "part", "message"),
        [
            ((), "tiny/int8", "another precision"),
            ((), "tiny/fp32/0", "another build"),
            (("--dtype", "int8"), "{}/document/32/float", "another number type"),
            (("--dimensions", "16"), "{}/document/32", "another number of dimensions"),
            ((), "", "is empty"),
        ],
    )
    def test_wrong(
        self,
        embed: Command,
        texts: Path,
        tmp_path: Path,
        flags: tuple[str, ...],
        part: str,
        message: str,
    ) -> None:
        """Nothing is written."""
        out = tmp_path / "v.npy"
        expected = part.format(embed.engine().fingerprint)
        done = embed(texts, *flags, "--output", out, "--expect-fingerprint", expected)
        assert done.exit_code == 1
        assert message in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]

    def test_a_row_that_asks_for_more(self, embed: Command) -> None:
        """A row with an input type of its own is refused by its line."""
        expected = f"{embed.engine().fingerprint}/document"
        rows = '{"text": "a"}\n{"text": "b", "input_type": "query"}'
        done = embed("-", "--expect-fingerprint", expected, text=rows)
        assert done.exit_code == 1
        assert "line 2: " in done.stderr
        assert "another input type" in done.stderr
        assert not done.stdout

    def test_compare(self, embed: Command) -> None:
        """--compare finds out by itself."""
        done = embed("--compare", "int8", "--expect-fingerprint", "tiny")
        assert done.exit_code == 1
        assert "give one" in done.stderr
