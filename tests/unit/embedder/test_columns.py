"""Batches of columns go in, and come out with their vectors; nulls are refused or kept."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from matryo import Embedder
from matryo.core.errors import ContextTooLong, InvalidRequest
from matryo.embedder.columns import read_texts
from tests.checkpoints import TinyModel, make_model
from tests.conftest import build_tiny

parquet: Any = pq
arrow: Any = pa
WORDS = ["the sky", "grass", "", "blue is green"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TinyModel]:
    """A store, and a tiny model in it."""
    root = tmp_path_factory.mktemp("columns")
    model = make_model(root, "bert", max_tokens=64)
    build_tiny(root, model)
    return root / "home", model


@pytest.fixture(autouse=True)
def own_models(model: tuple[Path, TinyModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue has the tiny model."""
    monkeypatch.setenv("MATRYO_MODELS", str(model[1].models))


@pytest.fixture
def embedder(model: tuple[Path, TinyModel]) -> Iterator[Any]:
    """An embedder that refuses nulls."""
    with Embedder(model[1].id, home=model[0]) as embedder:
        yield embedder


@pytest.fixture
def keeping(model: tuple[Path, TinyModel]) -> Iterator[Any]:
    """An embedder that keeps nulls, and names its vectors."""
    with Embedder(
        model[1].id,
        home=model[0],
        nulls="keep",
        text_column="body",
        vector_column="vector",
        fingerprint_column="made_by",
    ) as embedder:
        yield embedder


COLUMNS: dict[str, Any] = {
    "tuple": tuple(WORDS),
    "generator": (word for word in WORDS),
    "numpy unicode": np.array(WORDS),
    "numpy objects": np.array(WORDS, object),
    "numpy strings": np.array(WORDS, np.dtypes.StringDType()),
    "numpy scalars": [np.str_(word) for word in WORDS],
    "arrow": arrow.array(WORDS),
    "arrow large": arrow.array(WORDS, arrow.large_string()),
    "arrow view": arrow.array(WORDS, arrow.string_view()),
    "arrow chunks": arrow.chunked_array([WORDS[:1], [], WORDS[1:]]),
    "arrow dictionary": arrow.array(WORDS).dictionary_encode(),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_any_library(embedder: Any, name: str) -> None:
    """Whatever holds the strings, the vectors are those of the list."""
    assert np.array_equal(embedder.embed(COLUMNS[name]), embedder.embed(WORDS))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (b"bytes", "texts is a bytes"),
        ({"text": WORDS}, "texts is a dict; give a list of strings, or one column"),
        ({"a", "b"}, "texts is a set"),
        (arrow.table({"text": WORDS}), "texts is a Table"),
        (np.array("alone"), "texts is one string"),
        (np.array([WORDS]), r"texts\[0\] is list"),
        (np.array([b"a"]), r"texts\[0\] is bytes"),
        (["a", math.nan], r'texts\[1\] is float.*nulls="keep"'),
        (arrow.array(["a", None]), r'texts\[1\] is NoneType.*nulls="keep"'),
    ],
)
def test_what_is_no_column_of_texts(embedder: Any, texts: Any, message: str) -> None:
    """An error names what came, and for a null the remedy."""
    with pytest.raises(InvalidRequest, match=message):
        embedder.embed(texts)


def test_other_items_than_nulls_are_refused_all_the_same(keeping: Any) -> None:
    """`nulls="keep"` keeps nulls, and nothing else that is no text."""
    with pytest.raises(InvalidRequest, match=r"texts\[1\] is int; each text must be a string$"):
        keeping.embed([None, 3])


def test_nulls(keeping: Any) -> None:
    """A null is a row of NaN in an array and a null in Arrow; the other rows have their vectors."""
    texts = [None, "the sky", math.nan, "grass", type("NAType", (), {})()]
    expected = keeping.embed(["the sky", "grass"])
    vectors = keeping.embed(texts)
    assert np.isnan(vectors[[0, 2, 4]]).all()
    assert np.array_equal(vectors[[1, 3]], expected)
    lists = keeping.embed_arrow(texts)
    assert [item is None for item in lists.to_pylist()] == [True, False, True, False, True]
    assert np.array_equal(np.array(lists.drop_null().to_pylist(), np.float32), expected)
    assert np.isnan(keeping.embed([None])).all()
    assert keeping.embed_arrow([None]).null_count == 1


def test_the_text_of_an_error_has_its_row(keeping: Any) -> None:
    """Nulls count as rows where an error names the row of a text."""
    with pytest.raises(ContextTooLong) as caught:
        keeping.embed([None, "a", None, "the " * 200])
    assert caught.value.index == 3


def test_dict(embedder: Any, keeping: Any) -> None:
    """A dict of arrays, Ray's default: a new dict with a matrix, the columns of before as given."""
    batch = {"id": np.arange(4), "text": np.array(WORDS, object)}
    answer = embedder(batch)
    assert list(answer) == ["id", "text", "embedding"]
    assert list(batch) == ["id", "text"]
    assert np.array_equal(answer["embedding"], embedder.embed(WORDS))
    assert answer["embedding"].dtype == np.float32
    named = keeping({"body": np.array(WORDS, object)})
    assert named["made_by"].tolist() == [keeping.fingerprint] * 4
    assert named["vector"].shape == (4, 32)


@pytest.mark.parametrize("kind", ["table", "batch"])
def test_arrow(embedder: Any, kind: str, tmp_path: Path) -> None:
    """An Arrow table stays a table, with a column of fixed-size lists that Parquet keeps."""
    make = arrow.table if kind == "table" else arrow.record_batch
    batch = make({"id": [1, 2, 3, 4], "text": WORDS})
    answer = embedder(batch)
    assert type(answer) is type(batch)
    assert answer.schema.field("embedding").type == arrow.list_(arrow.float32(), 32)
    table = answer if kind == "table" else arrow.Table.from_batches([answer])
    parquet.write_table(table, tmp_path / "file.parquet")
    read = parquet.read_table(tmp_path / "file.parquet")
    vectors = np.array(read["embedding"].to_pylist(), np.float32)
    assert np.array_equal(vectors, embedder.embed(WORDS))


def test_arrow_nulls_through_parquet(keeping: Any, tmp_path: Path) -> None:
    """Null vectors are null after Parquet too, and a batch without nulls has the same type."""
    with_nulls = keeping(arrow.table({"body": ["a", None, "b"]}))
    assert with_nulls.schema == keeping(arrow.table({"body": ["a"]})).schema
    parquet.write_table(with_nulls, tmp_path / "file.parquet")
    read = parquet.read_table(tmp_path / "file.parquet")
    assert [item is None for item in read["vector"].to_pylist()] == [False, True, False]
    assert read["made_by"].to_pylist() == [keeping.fingerprint] * 3


@pytest.mark.parametrize("batch", [{"id": [1]}, arrow.table({"id": [1]})])
def test_a_batch_without_the_column(embedder: Any, batch: Any) -> None:
    """The error names the column, the columns there are, and the argument."""
    with pytest.raises(InvalidRequest, match=r"no column 'text', but 'id'\. .* text_column"):
        embedder(batch)


@pytest.mark.parametrize("name", ["vector", "made_by"])
def test_a_column_is_never_replaced(keeping: Any, name: str) -> None:
    """A batch that has the new column already is refused: vectors would be lost or mixed."""
    for batch in ({"body": ["a"], name: [1]}, arrow.table({"body": ["a"], name: [1]})):
        with pytest.raises(InvalidRequest, match=f"has a column '{name}' already"):
            keeping(batch)


def test_an_empty_batch_loads_nothing(
    model: tuple[Path, TinyModel], keeping: Any, tmp_path: Path
) -> None:
    """Frameworks ask for types with an empty batch: the catalogue knows them, without weights."""
    elsewhere = Embedder(model[1].id, home=tmp_path, dimensions=16)
    assert elsewhere.dimensions == 16
    assert elsewhere({"text": np.array([], object)})["embedding"].shape == (0, 16)
    assert not list(tmp_path.iterdir())
    empty, full = (
        keeping(arrow.table({"body": arrow.array(t, arrow.string())})) for t in ([], WORDS)
    )
    assert empty.schema == full.schema


def test_predict_function(embedder: Any, keeping: Any) -> None:
    """Spark's function gives a matrix, or a struct of vectors and fingerprints."""
    texts = np.array(WORDS, object)
    assert np.array_equal(embedder.make_predict_fn()(texts), embedder.embed(WORDS))
    struct = keeping.make_predict_fn()(texts)
    assert np.array_equal(struct["vector"], keeping.embed(WORDS))
    assert struct["made_by"].tolist() == [keeping.fingerprint] * 4


def test_nulls_must_be_a_choice() -> None:
    """A misspelt choice is refused where the embedder is made, not in a worker."""
    with pytest.raises(InvalidRequest, match=r"nulls is 'drop'; give one of \('refuse', 'keep'\)"):
        Embedder("tiny", nulls="drop")  # pyright: ignore[reportArgumentType]


def test_a_list_is_not_copied() -> None:
    """A list of strings is read as it is, since it may be large."""
    assert read_texts(WORDS, "refuse").strings is WORDS


def test_no_library_is_imported_for_lists(model: tuple[Path, TinyModel]) -> None:
    """Embedding a list or a dict needs neither Arrow nor pandas."""
    code = (
        "import sys, matryo\n"
        f"embedder = matryo.Embedder({model[1].id!r}, home={str(model[0])!r})\n"
        "embedder.embed(['a']); embedder({'text': ['a']})\n"
        "assert not {'pyarrow', 'pandas'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            "MATRYO_MODELS": str(model[1].models),
            "MATRYO_KERNELS": "onnxruntime",
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": ":".join(sys.path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
