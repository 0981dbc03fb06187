"""What `matryo embed` takes for a text, an id and a choice; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from tests.contract.conftest import Live
from tests.unit.commands.conftest import Command

BOM = b"\xef\xbb\xbf"


def rows(done: Result) -> list[dict[str, Any]]:
    """The rows of standard output; the command must have succeeded."""
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.split("\n")[:-1]]


def vectors(done: Result) -> Any:
    """The vectors of standard output."""
    return np.array([row["embedding"] for row in rows(done)], np.float32)


def served(live: Live, texts: list[str], **fields: Any) -> Any:
    """The server's vectors of texts, one request for each."""
    found: list[Any] = []
    for text in texts:
        answer = httpx2.post(f"{live.url}/v1/embeddings", json={"input": text} | fields)
        assert answer.status_code == 200, answer.text
        found.append(answer.json()["data"][0]["embedding"])
    return np.array(found, np.float32)


def refused(done: Result, *words: str) -> None:
    """Assert exit status 1, one sentence with these words, and an empty standard output."""
    assert done.exit_code == 1, done.output
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


class TestFormat:
    """The format follows the name, then --format; a pipe's is guessed from its content."""

    @pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.JSONL"])
    @pytest.mark.parametrize("start", [b"", BOM])
    def test_json_by_name(
        self, embed: Command, live: Live, tmp_path: Path, name: str, start: bytes
    ) -> None:
        """Rows keep texts and ids, also after a byte order mark."""
        path = tmp_path / name
        path.write_bytes(start + b'{"text": "the sky", "id": 7}\n{"text": "grass", "id": 8}\n')
        done = embed(path)
        assert [row["id"] for row in rows(done)] == [7, 8]
        assert (vectors(done) == served(live, ["the sky", "grass"])).all()

    @pytest.mark.parametrize(
        "first",
        ['{"text": NaN}', "{'text': 'a'}", '{"text": "a",}', "the sky", '["a"]', '"a"', "{}", "7"],
    )
    def test_json_by_name_is_strict(self, embed: Command, tmp_path: Path, first: str) -> None:
        """A line that is no row is refused by its number, also the first one."""
        path = tmp_path / "a.jsonl"
        path.write_text(f'{first}\n{{"text": "b"}}\n')
        refused(embed(path), f"{path}, line 1: ")

    def test_lines_by_name(self, embed: Command, live: Live, tmp_path: Path) -> None:
        """A .txt file is lines; one that looks like JSON is embedded with a warning."""
        path = tmp_path / "a.txt"
        path.write_text('{"text": "the sky"}\n')
        done = embed(path)
        assert (vectors(done) == served(live, ['{"text": "the sky"}'])).all()
        assert "warning: " in done.stderr
        assert "--format jsonl" in done.stderr
        again = embed(path, "--format", "jsonl")
        assert (vectors(again) == served(live, ["the sky"])).all()

    def test_json_document(self, embed: Command, tmp_path: Path) -> None:
        """A .json file is neither; the message says what to give."""
        path = tmp_path / "a.json"
        path.write_text('[{"text": "a"}]')
        refused(embed(path), "a.json", "--format jsonl")

    def test_lines_by_flag(self, embed: Command, live: Live, tmp_path: Path) -> None:
        """--format wins over the name."""
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "the sky"}\n')
        done = embed(path, "--format", "lines")
        assert (vectors(done) == served(live, ['{"text": "the sky"}'])).all()
        assert "read as" not in done.stderr

    @pytest.mark.parametrize(
        ("content", "guess"),
        [
            (b'{"text": "the sky"}\n', "JSON lines"),
            (BOM + b'{"text": "the sky"}\n', "JSON lines"),
            (b'\n{"text": "the sky"}\n', "JSON lines"),
            (b"the sky\n", "lines"),
        ],
    )
    def test_pipe(self, embed: Command, live: Live, content: bytes, guess: str) -> None:
        """The guess is printed; a byte order mark and blank lines do not change it."""
        done = embed("-", text=content)
        assert f"read as {guess}" in done.stderr
        assert (vectors(done)[-1:] == served(live, ["the sky"])).all()

    @pytest.mark.parametrize(
        ("content", "number"),
        [
            ('the sky\n{"text": "b"}\n', 2),
            ('{"text": "b"}\nthe sky\n', 2),
            ('{"text": NaN}\n{"text": "b"}\n', 1),
            ("{'text': 'a'}\n", 1),
            ('{"text": "a",}\n', 1),
            ("a\n" * 700 + '{"text": "b"}\n', 701),
            ('{"text": "b"}\n' * 700 + "a\n", 701),
        ],
    )
    def test_mix(self, embed: Command, tmp_path: Path, content: str, number: int) -> None:
        """A mix is refused by the line's number, and no file is left."""
        out = tmp_path / "v.npy"
        done = embed("-", "--output", out, text=content)
        refused(done, f"line {number}", "--format")
        assert list(tmp_path.iterdir()) == []

    def test_mix_on_standard_output(self, embed: Command) -> None:
        """Nothing is written before the first lines of a pipe are known to agree."""
        refused(embed("-", text='a\n{"text": "b"}\n'), "line 2")

    def test_file_is_read_first(self, embed: Command, tmp_path: Path) -> None:
        """A fault in the last line of a file is found before anything is written."""
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "b"}\n' * 1500 + "nope\n")
        refused(embed(path), "line 1501")

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
    @pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
    def test_utf16(self, embed: Command, tmp_path: Path, encoding: str, name: str) -> None:
        """Other encodings are refused with the remedy."""
        path = tmp_path / name
        path.write_text('{"text": "a"}\n{"text": "b"}\n', encoding=encoding)
        refused(embed(path), "UTF-", "iconv")

    def test_latin1(self, embed: Command, tmp_path: Path) -> None:
        """A byte that is no UTF-8 is named by line."""
        path = tmp_path / "a.txt"
        path.write_bytes(b"a\ngr\xfcn\n")
        refused(embed(path), "line 2", "not UTF-8", "iconv")


class TestLines:
    """What ends a line, and what a blank one means."""

    @pytest.mark.parametrize(
        "text",
        ["a\u2028b", "a\u0085b", "a\x0bb", "a\x0cb", "a\rb", "a\x1cb", "a\x00b", "\u3000a"],
    )
    def test_within(self, embed: Command, live: Live, tmp_path: Path, text: str) -> None:
        """Only a line feed ends a line; the text is what the server would be sent."""
        path = tmp_path / "a.txt"
        path.write_bytes(f"the sky\r\n{text}\nblue".encode())
        assert (vectors(embed(path)) == served(live, ["the sky", text, "blue"])).all()

    @pytest.mark.parametrize("suffix", ["jsonl", "npy", "parquet"])
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.txt", "the sky\n\nblue\n\n \n"),
            ("a.jsonl", '{"text": "the sky"}\n\n{"text": "blue"}\n\n \n'),
        ],
    )
    def test_blank(
        self, embed: Command, tmp_path: Path, name: str, content: str, suffix: str
    ) -> None:
        """Blank lines at the end are no rows; others get the vector of the empty text."""
        path, out = tmp_path / name, tmp_path / f"v.{suffix}"
        path.write_text(content)
        done = embed(path, "--output", out)
        assert done.exit_code == 0, done.stderr
        assert "line 2 is blank" in done.stderr
        found = read_vectors(out)
        empty = vectors(embed("-", "--format", "jsonl", text='{"text": ""}'))
        assert len(found) == 3
        assert (found[1] == empty[0]).all()

    @pytest.mark.parametrize("suffix", ["jsonl", "npy", "parquet"])
    @pytest.mark.parametrize("content", [b"", BOM, b"\n", b"\r\n\n"])
    @pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
    def test_empty(
        self, embed: Command, tmp_path: Path, suffix: str, content: bytes, name: str
    ) -> None:
        """A file without texts gives a valid file without rows."""
        path, out = tmp_path / name, tmp_path / f"v.{suffix}"
        path.write_bytes(content)
        done = embed(path, "--output", out)
        assert done.exit_code == 0, done.stderr
        assert len(read_vectors(out)) == 0
        if suffix == "npy":
            assert np.load(out).shape == (0, 32)

    def test_marks_of_joined_files(self, embed: Command, live: Live, tmp_path: Path) -> None:
        """A byte order mark at the start of a later line is no text, either."""
        path = tmp_path / "a.jsonl"
        path.write_bytes(BOM + b'{"text": "a"}\n' + BOM + b'{"text": "b"}\n')
        assert (vectors(embed(path)) == served(live, ["a", "b"])).all()


def read_vectors(path: Path) -> Any:
    """The vectors of a file of any format."""
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".parquet":
        table: Any = pq.read_table(path)  # pyright: ignore[reportUnknownMemberType]
        found = table.to_pydict()["embedding"]
    else:
        lines = path.read_text("utf-8").split("\n")[:-1]
        found = [json.loads(line)["embedding"] for line in lines]
    return np.array(found, np.float32)


IDS = {
    "7": "7",
    "18446744073709551617": "18446744073709551617",
    "-123456789012345678901234567890": "-123456789012345678901234567890",
    "9" * 300: "9" * 300,
    "1.0": "1.0",
    "0.1000000000000000055": "0.1000000000000000055",
    "1E300": "1E300",
    "[" * 900 + "]" * 900: "[" * 900 + "]" * 900,
    "true": "true",
    '"k1"': "k1",
    '"7"': "7",
    '"\\u00e9 \\ud83c\\udf89 \\u2028"': "é 🎉 \u2028",
    '{"a": [1, 2.50, {"b": null}]}': '{"a": [1, 2.50, {"b": null}]}',
    "[ ]": "[ ]",
    "null": None,
}


class TestRows:
    """Fields of a JSON row."""

    @pytest.mark.parametrize("name", ["id", "custom_id"])
    @pytest.mark.parametrize("key", IDS, ids=lambda key: key[:40])
    def test_ids(self, embed: Command, tmp_path: Path, key: str, name: str) -> None:
        """An id comes back as it came, to the character; Parquet has it as a string."""
        path, out = tmp_path / "a.jsonl", tmp_path / "v.parquet"
        path.write_text(f'{{"text": "a", "{name}": {key}}}\n{{"{name}": {key} , "text": "b"}}\n')
        done = embed(path)
        assert done.exit_code == 0, done.stderr
        for line in done.stdout.split("\n")[:-1]:
            assert f'"{name}":{key},"embedding"' in line
        assert embed(path, "--output", out).exit_code == 0
        table: Any = pq.read_table(out)  # pyright: ignore[reportUnknownMemberType]
        assert table.to_pydict()["id"] == [IDS[key]] * 2

    def test_no_id(self, embed: Command) -> None:
        """A row without an id gets none."""
        [one, other] = rows(embed("-", text='{"text": "a"}\n{"text": "b", "id": null}'))
        assert "id" not in one
        assert other["id"] is None

    @pytest.mark.parametrize(
        ("fields", "asked"),
        [
            ({"input_type": "query"}, {"input_type": "query"}),
            ({"input_type": "passage"}, {"input_type": "document"}),
            ({"input_type": None}, {}),
            ({"dimensions": 32}, {}),
            ({"dimensions": 32.0}, {}),
            ({"truncate": True}, {"truncate": True}),
            ({"truncate": "END"}, {"truncate": True}),
            ({"model": "ID-query"}, {"input_type": "query"}),
            ({"encoding_format": "float"}, {}),
            ({"embedding_type": "float"}, {}),
            ({"user": "me"}, {}),
            ({"whatever": None}, {}),
        ],
    )
    def test_honoured(
        self, embed: Command, live: Live, fields: dict[str, Any], asked: dict[str, Any]
    ) -> None:
        """A row's fields mean what they mean in a request, for this row alone."""
        fields = {
            k: str(v).replace("ID", embed.model.id) if k == "model" else v
            for k, v in fields.items()
        }
        long = "the sky " * 100 if fields.get("truncate") else "the sky"
        lines = [{"text": "blue"}, {"text": long} | fields, {"input": "grass"}]
        done = embed("-", text="\n".join(map(json.dumps, lines)))
        expected = [
            served(live, ["blue"]),
            served(live, [long], **asked),
            served(live, ["grass"]),
        ]
        assert (vectors(done) == np.concatenate(expected)).all()

    def test_many_choices(self, embed: Command, live: Live) -> None:
        """Rows of several input types come back in order."""
        kinds = ["query", "document", "none"]
        lines = [
            {"text": f"sky {n % 50}", "input_type": kinds[n % 3], "id": n} for n in range(1200)
        ]
        done = embed("-", text="\n".join(map(json.dumps, lines)))
        assert [row["id"] for row in rows(done)] == list(range(1200))
        found = vectors(done)
        for n in (0, 1, 2, 600, 1199):
            expected = served(live, [f"sky {n % 50}"], input_type=kinds[n % 3])
            assert (found[n] == expected[0]).all()

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ('{"text": "a", "input": "b"}', ("'text' and 'input'",)),
            ('{"text": "a", "text": "b"}', ("'text'", "twice")),
            ('{"text": "a", "id": 1, "custom_id": 2}', ("'id' and 'custom_id'",)),
            ('{"id": 1}', ("'text'",)),
            ('{"text": null}', ("'text'",)),
            ('{"text": 7}', ("'text'", "an integer")),
            ('{"input": ["a", "b"]}', ("'input'", "an array")),
            ('{"text": "\\ud83d"}', ("surrogate",)),
            ('{"text": "a", "id": 1E400}', ("infinity",)),
            ('{"text": "a", "dimensions": 16}', ("'dimensions'", "16", "32", "--dimensions")),
            ('{"text": "a", "dimensions": "32"}', ("'dimensions'", "a string")),
            ('{"text": "a", "dimensions": true}', ("'dimensions'", "a boolean")),
            ('{"text": "a", "input_type": "x"}', ("'input_type'", "'x'")),
            ('{"text": "a", "input_type": 7}', ("'input_type'", "an integer")),
            ('{"text": "a", "model": "gpt-4"}', ("gpt-4",)),
            ('{"text": "a", "truncate": "START"}', ("'truncate'",)),
            ('{"text": "a", "truncate": "yes"}', ("'truncate'",)),
            ('{"text": "a", "encoding_format": "base64"}', ("'encoding_format'", "base64")),
            ('{"text": "a", "embedding_type": "int8"}', ("'embedding_type'", "int8")),
            ('{"text": "a", "late_chunking": true}', ("'late_chunking'",)),
            ('{"text": "a", "normalize": false}', ("'normalize'",)),
            ('{"text": "a", "inputtype": "query"}', ("'inputtype'", "'input_type'")),
            ('{"text": "a", "input-type": "query"}', ("'input-type'", "'input_type'")),
            pytest.param('{"text": "a", "id": ' + "[" * 3000 + "]" * 3000 + "}", (), id="deep"),
        ],
    )
    def test_refused(
        self, embed: Command, tmp_path: Path, row: str, words: tuple[str, ...]
    ) -> None:
        """What cannot be honoured is refused with line number, field and reason."""
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "a"}\n' + row)
        refused(embed(path), "line 2", *words)

    def test_late_choice(self, embed: Command, tmp_path: Path) -> None:
        """A choice that the model does not know is refused before anything is written."""
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "a"}\n' * 1500 + '{"text": "a", "input_type": "x"}\n')
        refused(embed(path), "line 1501", "'input_type'")

    def test_other_columns(self, embed: Command) -> None:
        """A column that is no field of a request is named once, and changes nothing."""
        lines = [{"text": "a", "title": "t", "url": "u"}, {"text": "b", "title": "t"}]
        done = embed("-", text="\n".join(map(json.dumps, lines)))
        assert [sorted(row) for row in rows(done)] == [["embedding", "index"]] * 2
        assert done.stderr.count("'title'") == 1
        assert "'url'" in done.stderr
