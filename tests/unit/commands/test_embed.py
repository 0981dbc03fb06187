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
