"""From every format to every format: texts, ids, kept columns, numbers, equal texts."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from matryo.cli import main
from matryo.commands.embedding import distinct
from matryo.commands.sources.item import Item
from matryo.commands.sources.rows import Asked
from matryo.core.errors import SettingsInvalid
from matryo.service.numbers import quantize
from tests.fakes import MINILM, FakeEngine
from tests.unit.commands.faked import Chunking, Options, Reading, embed

PARQUET: Any = pq
FORMATS = ("jsonl", "csv", "parquet")
ROWS = [
    ("k1", "the sky is blue", "a;b"),
    ("k2", 'say "hi", twice', ""),
    ("k3", "two\nlines", "é"),
    ("k1", "the sky is blue", "again"),
]


def write(path: Path, rows: Sequence[tuple[str, str, str]]) -> Path:
    """A table of ids, texts and titles in the format of the name."""
    names = ("sku", "body", "title")
    if path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
        path.write_text("\n".join(lines) + "\n" * bool(lines))
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([names, *rows])
    else:
        columns = [pa.array([row[at] for row in rows], pa.string()) for at in range(3)]
        PARQUET.write_table(pa.table(columns, names=list(names)), path)
    return path


def read(path: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The vectors of an output, and its other columns."""
    if path.suffix == ".npy":
        return np.load(path), []
    if path.suffix == ".parquet":
        rows: Any = PARQUET.read_table(path).to_pylist()
    else:
        rows = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    return np.array([row.pop("embedding") for row in rows]), rows


def expected(texts: Sequence[str]) -> Any:
    """What the engine gives for texts, one by one."""
    engine = FakeEngine(MINILM)
    ids = [one.ids for one in engine.tokenize(texts)]
    found = [engine.embed([one], [384]).embeddings[0] for one in ids]
    return np.array(found, np.float32).reshape(-1, 384)


TABLE = Reading(text="body", key="sku", keep=("title",))


@pytest.mark.parametrize("target", ["jsonl", "npy", "parquet"])
@pytest.mark.parametrize("source", FORMATS)
def test_pairs(tmp_path: Path, source: str, target: str) -> None:
    """Every format to every format: vectors of the texts, ids and titles as they were."""
    path, out = write(tmp_path / f"a.{source}", ROWS), tmp_path / f"v.{target}"
    keep = () if target == "npy" else ("title",)
    embed([path], out, reading=Reading(text="body", key="sku", keep=keep))
    vectors, rows = read(out)
    assert np.array_equal(vectors.astype(np.float32), expected([text for _, text, _ in ROWS]))
    if target != "npy":
        assert rows == [
            {"index": index, "id": key, "title": title}
            for index, (key, _, title) in enumerate(ROWS)
        ]


CELL = st.text(st.characters(blacklist_categories=["Cs"]), max_size=8)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(CELL, CELL, CELL), max_size=8),
    st.sampled_from(FORMATS),
    st.sampled_from(["jsonl", "parquet"]),
    st.booleans(),
)
def test_round_trip(
    tmp_path_factory: Any,
    rows: list[tuple[str, str, str]],
    source: str,
    target: str,
    dedupe: bool,
) -> None:
    """Any texts, ids and titles come through, whether equal texts are computed once or not."""
    folder = tmp_path_factory.mktemp("pair")
    path, out = write(folder / f"a.{source}", rows), folder / f"v.{target}"
    embed([path], out, reading=TABLE, dedupe=dedupe)
    vectors, found = read(out)
    assert [(row["id"], row["title"]) for row in found] == [(key, t) for key, _, t in rows]
    wanted = expected([text for _, text, _ in rows])
    assert np.array_equal(vectors.astype(np.float32).reshape(-1, 384), wanted)


class TestNumbers:
    """--dtype in every format."""

    @pytest.mark.parametrize("target", ["jsonl", "npy", "parquet"])
    @pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
    def test_values(self, tmp_path: Path, dtype: Any, target: str) -> None:
        """float16 is rounded, int8 is the server's own int8."""
        path, out = write(tmp_path / "a.jsonl", ROWS), tmp_path / f"v.{target}"
        embed([path], out, reading=Reading(text="body"), dtype=dtype)
        vectors, _ = read(out)
        floats = expected([text for _, text, _ in ROWS])
        wanted = quantize(floats, "int8") if dtype == "int8" else floats.astype(dtype)
        assert np.array_equal(vectors.astype(wanted.dtype), wanted)
        if target == "npy":
            assert vectors.dtype == dtype
        if target == "parquet":
            schema = PARQUET.read_schema(out)
            kind = schema.field("embedding").type
            assert (kind.list_size, kind.value_type) == (384, pa.from_numpy_dtype(dtype))

    def test_facts(self, tmp_path: Path) -> None:
        """The schema of a Parquet file names what shaped its vectors."""
        out = tmp_path / "v.parquet"
        options = Options(input_type="query", dimensions=256)
        engine = FakeEngine()
        path = write(tmp_path / "a.csv", ROWS)
        reading = Reading(text="body")
        embed([path], out, engine=engine, options=options, reading=reading, dtype="int8")
        assert PARQUET.read_schema(out).metadata == {
            b"matryo.model": engine.manifest.id.encode(),
            b"matryo.fingerprint": f"{engine.fingerprint}/query/256/int8".encode(),
            b"matryo.input_type": b"query",
            b"matryo.dimensions": b"256",
            b"matryo.dtype": b"int8",
        }


class TestKept:
    """Types of what is handed through."""

    def test_parquet_types(self, tmp_path: Path) -> None:
        """From Parquet to Parquet, a kept column and an id of integers keep their types."""
        table = pa.table(
            {
                "text": ["a", "b"],
                "id": pa.array([7, None], pa.int32()),
                "price": pa.array([1.5, None], pa.float64()),
                "tags": [["x"], []],
                "kind": pa.array(["u", "u"]).dictionary_encode(),
            }
        )
        PARQUET.write_table(table, tmp_path / "a.parquet")
        embed(
            [tmp_path / "a.parquet"],
            tmp_path / "v.parquet",
            reading=Reading(keep=("price", "tags", "kind")),
        )
        found = PARQUET.read_table(tmp_path / "v.parquet").drop_columns("embedding")
        assert found.schema.field("id").type == pa.int64()
        assert found.schema.field("price").type == pa.float64()
        assert found.to_pylist() == [
            {"index": 0, "id": 7, "price": 1.5, "tags": ["x"], "kind": "u"},
            {"index": 1, "id": None, "price": None, "tags": [], "kind": "u"},
        ]

    def test_json(self, tmp_path: Path) -> None:
        """A kept value of JSON lines comes back to the character; in Parquet as a string."""
        (tmp_path / "a.jsonl").write_text('{"text": "a", "n": 1.50, "s": "x"}\n{"text": "b"}\n')
        reading = Reading(keep=("n", "s"))
        embed([tmp_path / "a.jsonl"], tmp_path / "v.jsonl", reading=reading)
        first = (tmp_path / "v.jsonl").read_text().splitlines()[0]
        assert first.startswith('{"index":0,"n":1.50,"s":"x","embedding"')
        embed([tmp_path / "a.jsonl"], tmp_path / "v.parquet", reading=reading)
        _, rows = read(tmp_path / "v.parquet")
        assert [(row["n"], row["s"]) for row in rows] == [("1.50", "x"), (None, None)]

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ({"output": "v.npy", "reading": Reading(keep=("a",))}, "a .npy file has vectors"),
            ({"reading": Reading(keep=("embedding",))}, "--keep embedding"),
            ({"output": None, "resume": True}, "give --output"),
            ({"chunking": Chunking(8), "options": Options(truncate=True)}, "give one"),
            ({"output": "v.npy", "chunking": Chunking(8, 0, "rows")}, "--pool rows: a .npy"),
            ({"chunking": Chunking(8, 0, "rows"), "reading": Reading(keep=("start",))}, "start"),
        ],
    )
    def test_contradictions(self, tmp_path: Path, flags: dict[str, Any], words: str) -> None:
        """Flags that contradict one another are refused before anything is read."""
        name = flags.pop("output", "v.jsonl")
        output = None if name is None else tmp_path / name
        with pytest.raises(SettingsInvalid, match=words):
            embed([tmp_path / "none.jsonl"], output, **flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--overlap", "3"), "give --chunk"),
        (("--pool", "rows"), "give --chunk"),
        (("--delimiter", ";;"), "give one character"),
        (("--compare", "int8", "--dedupe"), "leave them out"),
    ],
)
def test_command_line(flags: tuple[str, ...], words: str) -> None:
    """Flags that make no sense together are refused by the command line."""
    done = CliRunner().invoke(main, ["embed", MINILM.id, *flags])
    assert done.exit_code == 1
    assert words in done.stderr


class TestEqualTexts:
    """--dedupe."""

    @pytest.mark.parametrize("target", ["jsonl", "npy", "parquet"])
    def test_computed_once(self, tmp_path: Path, target: str) -> None:
        """Equal texts of the whole input are computed once, and every row has its vector."""
        texts = [f"the sky {number * number % 41}" for number in range(6000)]
        (tmp_path / "a.txt").write_text("\n".join(texts))
        engine = FakeEngine(MINILM)
        embed([tmp_path / "a.txt"], tmp_path / f"v.{target}", engine=engine, dedupe=True)
        vectors, _ = read(tmp_path / f"v.{target}")
        assert np.array_equal(vectors.astype(np.float32), expected(texts))
        # A text has three words and two special tokens; runs to start with have other lengths.
        assert sum(batch.count(5) for batch in engine.batches) == len(set(texts))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", f"v.{target}"]

    def test_one_text(self, tmp_path: Path) -> None:
        """An input of one text all over is read a few windows at a time."""
        (tmp_path / "a.txt").write_text("the sky\n" * 20_000)
        embed([tmp_path / "a.txt"], tmp_path / "v.npy", dedupe=True)
        assert np.array_equal(np.load(tmp_path / "v.npy"), expected(["the sky"] * 20_000))

    def test_another_choice(self, tmp_path: Path) -> None:
        """Equal texts of another input type are other texts."""
        rows = [{"text": "sky", "input_type": kind} for kind in ("query", "document", "query")]
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        embed([tmp_path / "a.jsonl"], tmp_path / "v.npy", engine=FakeEngine(), dedupe=True)
        one, other, third = np.load(tmp_path / "v.npy")
        assert np.array_equal(one, third)
        assert not np.array_equal(one, other)
        texts = [Item(1, "sky", asked=Asked(input_type=kind)) for kind in ("query", "document")]
        assert len(set(map(distinct.digest_of, texts))) == 2

    def test_standard_output(self, tmp_path: Path, capfdbinary: Any) -> None:
        """Without a file, vectors of equal texts wait in a temporary one."""
        path = write(tmp_path / "a.csv", ROWS)
        embed([path], None, reading=Reading(text="body"), dedupe=True)
        lines = capfdbinary.readouterr().out.splitlines()
        found = np.array([json.loads(line)["embedding"] for line in lines], np.float32)
        assert np.array_equal(found, expected([text for _, text, _ in ROWS]))
