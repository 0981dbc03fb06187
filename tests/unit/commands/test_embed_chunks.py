"""`matryo embed --chunk`: windows of a real tokenizer's tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from matryo.commands.embedding.chunks import Chunker, Chunking, mean_of_windows
from matryo.core.errors import SettingsInvalid
from matryo.engine import Engine
from matryo.engine.postprocess import l2_normalize
from tests.unit.commands.conftest import Command

PREFIX = "search_document: "
WORDS = ["the", "sky", "is", "blue", "green", "grass", "x", "\u4f60\u597d", "é", "🎉"]
LONG = " ".join(WORDS[n * n % 7] for n in range(400))


@pytest.fixture(scope="session")
def engine(embed: Command) -> Engine:
    """The tiny model."""
    return embed.engine()


def body(engine: Engine, text: str) -> list[int]:
    """Tokens of a text without what the model puts around them."""
    [with_text, bare] = (one.ids.tolist() for one in engine.tokenize([text, ""], PREFIX))
    tail = next(n for n in range(len(bare), -1, -1) if with_text[-n:] == bare[-n:] or not n)
    tail = min(tail, 1)
    return with_text[len(bare) - tail : len(with_text) - tail]


def rows(done: Result) -> list[dict[str, Any]]:
    """The rows of standard output."""
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(WORDS), max_size=60), st.integers(8, 40), st.integers(0, 7))
def test_windows(engine: Engine, words: list[str], size: int, overlap: int) -> None:
    """Windows are the text's own tokens, overlap exactly, and end where the text ends."""
    n_around = engine.from_ids([], PREFIX).n_tokens
    text = " ".join(words)
    if size - n_around <= overlap:
        with pytest.raises(SettingsInvalid, match="no room for new tokens"):
            Chunker(engine, PREFIX, Chunking(size, overlap))
        return
    (found,) = Chunker(engine, PREFIX, Chunking(size, overlap)).split([text])
    tokens = body(engine, text)
    n_window = size - n_around
    if found is None:
        assert len(tokens) <= n_window
        return
    assert len(tokens) > n_window
    step = n_window - overlap
    starts = [n * step for n in range(len(found))]
    assert [one.ids for one in found] == [tokens[at : at + n_window] for at in starts]
    assert starts[-1] + n_window >= len(tokens) > starts[-1] + overlap
    for one in found:
        assert one.ids == body(engine, text[one.span.start : one.span.end])
        assert engine.from_ids(one.ids, PREFIX).n_tokens <= size


def test_sections(engine: Engine) -> None:
    """A text of many sections has the tokens, and the places, of the whole text."""
    text = "  \n".join(["the sky is blue é"] * 9000)
    (found,) = Chunker(engine, PREFIX, Chunking(100)).split([text])
    assert found is not None
    spans = [text[one.span.start : one.span.end] for one in found]
    assert [token for one in found for token in one.ids] == body(engine, "the sky is blue é") * 9000
    assert all(one.ids == body(engine, span) for one, span in zip(found, spans, strict=True))
    assert "".join("".join(spans).split()) == "".join(text.split())


class TestRows:
    """--pool rows."""

    def test_rows(self, embed: Command, engine: Engine, tmp_path: Path) -> None:
        """A row for each window, with its place; its vector is that of its tokens alone."""
        path = tmp_path / "a.jsonl"
        items = [{"text": LONG, "id": "k"}, {"text": "the sky", "id": "l"}]
        path.write_text("\n".join(map(json.dumps, items)))
        found = rows(embed(path, "--chunk", 100, "--overlap", 10, "--pool", "rows"))
        assert [(row["index"], row["id"]) for row in found[-2:]] == [(0, "k"), (1, "l")]
        assert [row["chunk"] for row in found] == [*range(len(found) - 1), 0]
        assert (found[-1]["start"], found[-1]["end"]) == (0, len("the sky"))
        for row in found[:-1]:
            part = LONG[row["start"] : row["end"]]
            (one,) = engine.tokenize([part], PREFIX)
            assert one.n_tokens <= 100
            (vector,) = engine.embed([one.ids], [32]).embeddings
            assert np.array_equal(np.array(row["embedding"], np.float32), vector)

    def test_parquet(self, embed: Command, tmp_path: Path) -> None:
        """Parquet has columns for the places, equal to those of JSON lines."""
        import pyarrow.parquet as pq

        path, out = tmp_path / "a.txt", tmp_path / "v.parquet"
        path.write_text(f"{LONG}\nthe sky\n{LONG}\n")
        flags = ("--chunk", 50, "--pool", "rows", "--dedupe")
        assert embed(path, "--output", out, *flags).exit_code == 0
        table: Any = pq.read_table(out)  # pyright: ignore[reportUnknownMemberType]
        names = ("index", "chunk", "start", "end")
        wanted = [tuple(row[name] for name in names) for row in rows(embed(path, *flags))]
        assert [tuple(row[name] for name in names) for row in table.to_pylist()] == wanted
        assert table.schema.metadata[b"matryo.chunk"] == b"50/0/rows"


class TestMean:
    """--pool mean."""

    def test_definition(self, embed: Command, engine: Engine) -> None:
        """The mean of what the model has before its last step, by tokens; then the last step."""
        (row,) = rows(embed("--chunk", 100, "--overlap", 10, text=LONG))
        (windows,) = Chunker(engine, PREFIX, Chunking(100, 10)).split([LONG])
        assert windows is not None
        ids = [engine.from_ids(window.ids, PREFIX).ids for window in windows]
        raw = np.array(engine.embed(ids, [32] * len(ids), [False] * len(ids)).embeddings)
        counts = [len(window.ids) for window in windows]
        mean = np.average(raw.astype(np.float64), axis=0, weights=counts)
        found = np.array(row["embedding"], np.float32)
        assert np.allclose(found, mean / np.linalg.norm(mean), atol=1e-6)
        assert np.array_equal(found, mean_of_windows(raw, counts))
        assert abs(np.linalg.norm(found) - 1) < 1e-6

    def test_short_texts_are_left(self, embed: Command, tmp_path: Path) -> None:
        """A text that fits has the very vector that it has without the flag."""
        path = tmp_path / "a.txt"
        path.write_text("the sky is blue\n\ngrass\n")
        assert embed(path, "--chunk", 20).stdout == embed(path).stdout

    def test_quantised_last(self, embed: Command, tmp_path: Path) -> None:
        """int8 is made of the mean."""
        from matryo.service.numbers import quantize

        (row,) = rows(embed("--chunk", 60, text=LONG))
        (small,) = rows(embed("--chunk", 60, "--dtype", "int8", text=LONG))
        vectors = np.array([row["embedding"]], np.float32)
        assert quantize(vectors, "int8").tolist() == [small["embedding"]]

    def test_one_window(self) -> None:
        """The mean of one window is its vector, of unit length."""
        vectors = np.array([[3.0, 4.0]], np.float32)
        assert np.allclose(mean_of_windows(vectors, [7]), l2_normalize(vectors)[0])


def test_truncated_row_is_cut(embed: Command) -> None:
    """A row that asks to be cut is cut, and others are split."""
    items = [{"text": LONG, "truncate": True}, {"text": LONG}]
    flags = ("--chunk", "50", "--pool", "rows")
    found = rows(embed(*flags, text="\n".join(map(json.dumps, items))))
    assert [row["index"] for row in found].count(0) == 1
    assert [row["index"] for row in found].count(1) > 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--chunk", 121), "reads at most 120 tokens; give --chunk 120 or less"),
        (("--chunk", 5), "no room for new tokens"),
        (("--chunk", 50, "--overlap", 49), "or a smaller --overlap"),
    ],
)
def test_refused(embed: Command, flags: tuple[object, ...], words: str) -> None:
    """Windows that do not fit the model are refused with the number that does."""
    done = embed(*flags, text="a")
    assert done.exit_code == 1
    assert words in done.stderr


def test_long_text_names_the_flag(embed: Command) -> None:
    """A text over the limit is refused, and the message names --chunk."""
    assert "--chunk 120" in embed(text=LONG).stderr
