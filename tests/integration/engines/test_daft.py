"""Daft: columns, nulls, processes, errors."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np
import pytest

from matryo import Embedder
from tests.fakes import MINILM

daft: Any = importlib.import_module("daft")
TEXTS = ["grass", None, "the sky", "blue"] * 8


def vectors_class(n_dimensions: int, **ways: Any) -> Any:
    """A class of Daft with a method for vectors, and one for the process that runs the class."""
    vector = daft.DataType.fixed_size_list(daft.DataType.float32(), n_dimensions)

    class Vectors(Embedder):
        """As in examples/embed_with_daft.py."""

        @daft.method.batch(return_dtype=vector, batch_size=4)
        def of(self, texts: Any) -> Any:
            """Lists of Arrow."""
            return self.embed_arrow(texts)

        @daft.method.batch(return_dtype=daft.DataType.int64(), batch_size=4)
        def process(self, texts: Any) -> list[int]:
            """The process, for each text."""
            return [os.getpid()] * len(texts)

    return daft.cls(Vectors, **ways)


@pytest.mark.parametrize("use_process", [False, True])
def test_nulls(environment: dict[str, str], use_process: bool) -> None:
    """A null text has a null vector; the type is a fixed-size list."""
    with Embedder(MINILM.id) as embedder:
        expected = embedder.embed([text for text in TEXTS if text])
    made = vectors_class(expected.shape[1], max_concurrency=1, use_process=use_process)
    vectors = made(MINILM.id, nulls="keep", threads=1)
    frame = daft.from_pydict({"text": TEXTS})
    table = frame.with_columns(
        {"vector": vectors.of(frame["text"]), "pid": vectors.process(frame["text"])}
    ).to_arrow()
    assert str(table["vector"].type).startswith("fixed_size_list")
    found = table["vector"].to_pylist()
    assert [vector is None for vector in found] == [text is None for text in TEXTS]
    assert np.array_equal(np.array([v for v in found if v], np.float32), expected)
    if use_process:
        assert os.getpid() not in table["pid"].to_pylist()


def test_an_embedder_as_a_function(environment: dict[str, str]) -> None:
    """A method of an embedder is a function of Daft too, since it can be pickled."""
    embedder = Embedder(MINILM.id, dimensions=8)
    vector = daft.DataType.fixed_size_list(daft.DataType.float32(), 8)
    embed = daft.func.batch(return_dtype=vector)(embedder.embed)
    frame = daft.from_pydict({"text": ["grass", "blue"]})
    found = frame.select(embed(frame["text"]).alias("vector")).to_pydict()["vector"]
    assert np.array_equal(np.array(found, np.float32), embedder.embed(["grass", "blue"]))


def test_errors(environment: dict[str, str]) -> None:
    """The error of a worker has its sentence."""
    vectors = vectors_class(32, max_concurrency=1)(MINILM.id)
    frame = daft.from_pydict({"text": ["a", None]})
    with pytest.raises(Exception, match=r'texts\[1\] is NoneType.*nulls="keep"'):
        frame.select(vectors.of(frame["text"])).collect()
