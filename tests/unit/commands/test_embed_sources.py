"""Which files `matryo embed` reads, and what it takes for texts, ids and columns."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matryo.commands.sources.inputs import open_inputs
from matryo.commands.sources.item import Item, Reading
from matryo.commands.sources.rows import _distinct, _object, _request, _simple, read_row
from matryo.core.errors import InvalidRequest

WRITE: Any = pq.write_table  # pyright: ignore[reportUnknownMemberType]
TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)


def read(*names: object, **reading: Any) -> list[Item]:
    """The items of inputs, as they are before the model is loaded."""
    inputs = open_inputs([str(name) for name in names], Reading(**reading))
    return list(inputs.read_ahead().items)


def texts(*names: object, **reading: Any) -> list[str]:
    """The texts of inputs."""
    return [item.text for item in read(*names, **reading)]


class TestNames:
    """Files, folders and globs."""

    def test_folder_of_mixed_files(self, tmp_path: Path, capsys: Any) -> None:
        """Every file by its own format, in the order of the paths; others are named."""
        (tmp_path / "sub").mkdir()
        (tmp_path / "b.jsonl").write_text('{"text": "two"}\n')
        (tmp_path / "a.txt").write_text("one\n")
        (tmp_path / "sub" / "c.csv").write_text("id,text\n7,three\n")
        WRITE(pa.table({"text": ["four"]}), tmp_path / "sub" / "d.parquet")
        (tmp_path / "e.TXT.GZ").write_bytes(gzip.compress(b"five\n"))
        for name in ("_SUCCESS", ".hidden.txt", "sub/_metadata.parquet"):
            (tmp_path / name).write_text("no text\n")
        (tmp_path / "readme.pdf").write_text("no text\n")
        assert texts(tmp_path) == ["one", "two", "five", "three", "four"]
        warning = capsys.readouterr().err
        assert "1 files of other formats are not read" in warning
        assert "readme.pdf" in warning

    def test_format_reads_every_file(self, tmp_path: Path) -> None:
        """--format takes files of any name in a folder."""
        (tmp_path / "a.md").write_text("one\n")
        (tmp_path / "b").write_text("two\n")
        assert texts(tmp_path, form="lines") == ["one", "two"]

    def test_glob(self, tmp_path: Path) -> None:
        """A glob is sorted, `**` goes into folders, and a file of that very name wins."""
        for name in ("b.txt", "a.txt", "x/c.txt", "d[1].txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(f"{name}\n")
        assert texts(tmp_path / "[ab].txt") == ["a.txt", "b.txt"]
        assert texts(tmp_path / "**" / "c.*") == ["x/c.txt"]
        assert texts(tmp_path / "d[1].txt") == ["d[1].txt"]

    def test_several(self, tmp_path: Path) -> None:
        """Inputs follow one another; `file://` is a path; a fault names its file."""
        one, other = tmp_path / "a b.txt", tmp_path / "b.jsonl"
        one.write_text("one\n")
        other.write_text('{"text": "two"}\n')
        assert texts(other, f"file://{tmp_path}/a%20b.txt") == ["two", "one"]
        assert [item.where for item in read(one, other)] == [f"{one}, line 1", f"{other}, line 1"]
        other.write_text("nope\n")
        with pytest.raises(InvalidRequest, match=r"b\.jsonl, line 1: no JSON"):
            read(one, other)

    @pytest.mark.parametrize("name", ["none/*.txt", "empty", "none.txt"])
    def test_nothing(self, tmp_path: Path, name: str) -> None:
        """A name without a file is refused."""
        (tmp_path / "empty").mkdir()
        with pytest.raises(InvalidRequest, match=r"no file to read|cannot be read"):
            read(tmp_path / name)

    @pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.bz2", "a.txt.xz"])
    def test_damaged(self, tmp_path: Path, name: str) -> None:
        """A compressed file that is none, or that is cut, is refused by its name."""
        whole = gzip.compress(b"one\n" * 9999)
        content = whole[: len(whole) // 2] if name.endswith("gz") else b"no such data\n" * 9
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidRequest, match=name):
            read(tmp_path / name)


class TestCsv:
    """Cells with anything in them."""

    def test_odd_cells(self, tmp_path: Path) -> None:
        """Quotes, delimiters, line feeds and a byte order mark; lines are those of the file."""
        path = tmp_path / "a.csv"
        path.write_bytes(
            '\ufeffid;text\r\n1;"a;b"\r\n2;"say ""hi"""\r\n\r\n3;"two\nlines"\r\n4;é'.encode()
        )
        found = read(path)
        assert [item.text for item in found] == ["a;b", 'say "hi"', "two\nlines", "é"]
        assert [item.line for item in found] == [2, 3, 5, 7]
        assert [item.key.json if item.key else None for item in found] == [f'"{n}"' for n in "1234"]

    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    def test_guessed_delimiter(self, tmp_path: Path, delimiter: str) -> None:
        """The header decides, but for what it has in quotes."""
        path = tmp_path / "a.csv"
        path.write_text(delimiter.join(['"a,b;c|d"', "text", "x"]) + "\n1" + f"{delimiter}t" * 2)
        assert texts(path) == ["t"]

    def test_given_delimiter(self, tmp_path: Path) -> None:
        """--delimiter wins; a .tsv file has tabs."""
        (tmp_path / "a.csv").write_text("text:a,b\none:2\n")
        (tmp_path / "a.tsv").write_text("text\ta,b,c\none\t2\n")
        assert texts(tmp_path / "a.csv", delimiter=":") == ["one"]
        assert texts(tmp_path / "a.tsv") == ["one"]

    def test_empty_cell(self, tmp_path: Path, capsys: Any) -> None:
        """An empty cell is the empty text, with one warning."""
        path = tmp_path / "a.csv"
        path.write_text('id,text\n1,\n2,""\n')
        assert texts(path) == ["", ""]
        assert capsys.readouterr().err.count("the text is null or empty") == 1

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("text,id\na,b,c\n", "line 2: 3 cells"),
            ("text,id\na\n", "line 2: 1 cells"),
            ("a,b\nc,d\n", "--column"),
            ("text,text\na,b\n", "2 times"),
            ("text,input\na,b\n", "--column"),
            ('text\n"a"b\n', "line 2: no CSV"),
            ('text\n"a\n\n', "line 2: no CSV"),
        ],
    )
    def test_refused(self, tmp_path: Path, content: str, words: str) -> None:
        """What is no table is refused by its line."""
        path = tmp_path / "a.csv"
        path.write_text(content)
        with pytest.raises(InvalidRequest, match=words):
            read(path)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=6))
    def test_round_trip(self, tmp_path_factory: Any, rows: list[tuple[str, str, str]]) -> None:
        """What Python's writer writes is read back: texts, ids and kept cells."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)
        writer.writerows([("sku", "body", "price"), *rows])
        path = tmp_path_factory.mktemp("csv") / "a.csv"
        path.write_bytes(buffer.getvalue().encode())
        found = read(path, text="body", key="sku", keep=("price",))
        assert [item.text for item in found] == [row[1] for row in rows]
        assert [orjson.loads(item.key.json) for item in found if item.key] == [r[0] for r in rows]
        assert [item.kept for item in found] == [(row[2],) for row in rows]


class TestParquet:
    """Columns of Arrow's types."""

    @pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
    def test_strings(self, tmp_path: Path, kind: Any, capsys: Any) -> None:
        """Every kind of string; a null text is the empty text."""
        values = ["one", None, "x" * 100_000, "é\u2028"] * 300
        WRITE(pa.table({"text": pa.array(values, kind)}), tmp_path / "a.parquet")
        assert texts(tmp_path / "a.parquet") == [value or "" for value in values]
        assert "row 2: the text is null" in capsys.readouterr().err

    def test_dictionary(self, tmp_path: Path) -> None:
        """Dictionaries, in many row groups, with ids of integers."""
        column: Any = pa.array(["a", "b", None, "a"] * 500).dictionary_encode()
        table = pa.table({"id": list(range(2000)), "text": column})
        WRITE(table, tmp_path / "a.parquet", row_group_size=7)
        found = read(tmp_path / "a.parquet")
        assert [item.text for item in found] == ["a", "b", "", "a"] * 500
        assert [item.key.json if item.key else "" for item in found] == list(map(str, range(2000)))

    def test_refused(self, tmp_path: Path) -> None:
        """No Parquet, another column, another type: one sentence each."""
        path = tmp_path / "a.parquet"
        path.write_bytes(b"no parquet at all")
        with pytest.raises(InvalidRequest, match="cannot be read as Parquet"):
            read(path)
        WRITE(pa.table({"text": [1], "body": ["x"]}), path)
        with pytest.raises(InvalidRequest, match="'text' is int64"):
            read(path)
        with pytest.raises(InvalidRequest, match="no column 'title', but 'text', 'body'"):
            read(path, text="title")

    def test_types_of_files(self, tmp_path: Path) -> None:
        """A kept column has one type in all files."""
        for name, values in (("a", [1]), ("b", ["x"])):
            WRITE(pa.table({"text": ["t"], "n": values}), tmp_path / f"{name}.parquet")
        with pytest.raises(InvalidRequest, match=r"b\.parquet: the column 'n' is string"):
            read(tmp_path, keep=("n",))


class TestColumns:
    """--column, --id-column and --keep on JSON lines."""

    def test_record(self, tmp_path: Path) -> None:
        """With --column, a row is a record: fields of requests are plain columns."""
        path = tmp_path / "a.jsonl"
        row = '{"body": "t", "model": "T", "text": 7, "sku": 1.50, "tags": [1, {"a": 2.0}]}'
        path.write_text(f'{row}\n{{"body": null, "sku": "x"}}\n')
        one, other = read(path, text="body", key="sku", keep=("tags", "model"))
        assert one.text == "t"
        assert one.key is not None
        assert (one.key.name, one.key.json) == ("id", "1.50")
        assert one.kept == ('[1, {"a": 2.0}]', '"T"')
        assert (other.text, other.kept) == ("", (None, None))

    def test_request(self, tmp_path: Path) -> None:
        """Without --column, a row stays the body of a request; named columns are used."""
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "t", "input_type": "query", "sku": 5, "title": "x"}\n')
        (item,) = read(path, key="sku", keep=("title",))
        assert item.asked.input_type == "query"
        assert item.key is not None
        assert item.key.json == "5"
        assert item.kept == ('"x"',)

    def test_refused(self, tmp_path: Path) -> None:
        """A column that a row lacks, and columns of plain lines."""
        (tmp_path / "a.jsonl").write_text('{"title": "t"}\n')
        (tmp_path / "a.txt").write_text("t\n")
        with pytest.raises(InvalidRequest, match="line 1: the row has no column 'body'"):
            read(tmp_path / "a.jsonl", text="body")
        with pytest.raises(InvalidRequest, match="lines, which have no columns"):
            read(tmp_path / "a.txt", text="body")


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
NAMES = st.sampled_from(["text", "input", "id", "custom_id", "title"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(NAMES, JSON), max_size=4), st.booleans())
def test_the_short_way_is_the_long_one(fields: Sequence[tuple[str, Any]], is_ascii: bool) -> None:
    """A line that is read without its tokens gives what the tokens give, names twice included."""
    parts = [f"{json.dumps(name)}: {json.dumps(v, ensure_ascii=is_ascii)}" for name, v in fields]
    line = "{" + ", ".join(parts) + "}"
    short = _simple(line)
    if short is not None:
        assert short == _request(_object(line), _distinct(line))


def test_the_short_way_is_taken() -> None:
    """Rows of a text and an id need no look at their tokens."""
    for line in ('{"text": "a"}', '{"input": "a", "id": "k"}', '{"custom_id": 7, "text": "a"}'):
        assert _simple(line) == read_row(line)
        assert _simple(line) is not None
    for line in ('{"text": "a", "text": "b"}', '{"text": "a", "id": -0}', '{"text": "a\\n"}'):
        assert _simple(line) is None
