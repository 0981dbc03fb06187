"""Spark: nulls, structs, record batches, cores, errors."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from matryo import Embedder
from matryo.embedder.cores import given_cores
from tests.fakes import MINILM

ml: Any = importlib.import_module("pyspark.ml.functions")
sql: Any = importlib.import_module("pyspark.sql")
functions: Any = importlib.import_module("pyspark.sql.functions")
types: Any = importlib.import_module("pyspark.sql.types")
VECTOR = types.ArrayType(types.FloatType())
TEXTS = ["grass", None, "the sky", "blue", None]


@pytest.fixture(scope="module")
def spark(environment: dict[str, str]) -> Iterator[Any]:
    """A session with two task slots, on a machine that sets OMP_NUM_THREADS."""
    builder = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    session = builder.config("spark.executorEnv.OMP_NUM_THREADS", "64").getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()


@pytest.fixture
def frame(spark: Any) -> Any:
    """A few texts in two partitions."""
    return spark.createDataFrame(list(enumerate(TEXTS)), "id int, text string").repartition(2)


def expected() -> Any:
    """The vectors of the texts that are not null."""
    with Embedder(MINILM.id) as embedder:
        return embedder.embed([text for text in TEXTS if text])


def test_nulls(frame: Any) -> None:
    """A null is NaN in a column of `predict_batch_udf`, and null behind `when`."""
    embedder = Embedder(MINILM.id, nulls="keep")
    embed = ml.predict_batch_udf(embedder.make_predict_fn, return_type=VECTOR, batch_size=2)
    column = functions.when(frame.text.isNotNull(), embed("text"))
    found = frame.withColumn("vector", column).orderBy("id").collect()
    assert [row.vector is None for row in found] == [text is None for text in TEXTS]
    vectors = np.array([row.vector for row in found if row.vector], np.float32)
    assert np.array_equal(vectors, expected())
    bare = frame.select(embed("text").alias("vector")).where(frame.text.isNull()).collect()
    assert np.isnan(np.array([row.vector for row in bare])).all()


def test_record_batches(frame: Any) -> None:
    """`mapInArrow` takes the embedder for each batch: nulls are null, the fingerprint is there."""
    embedder = Embedder(MINILM.id, nulls="keep", fingerprint_column="made_by")
    schema = "id int, text string, embedding array<float>, made_by string"
    found = frame.mapInArrow(lambda batches: map(embedder, batches), schema).orderBy("id").collect()
    assert [row.embedding is None for row in found] == [text is None for text in TEXTS]
    vectors = np.array([row.embedding for row in found if row.embedding], np.float32)
    assert np.array_equal(vectors, expected())
    with Embedder(MINILM.id) as same:
        assert {row.made_by for row in found} == {same.fingerprint}


def test_cores(spark: Any) -> None:
    """A task has `spark.task.cpus`, whatever OMP_NUM_THREADS says."""
    numbers = spark.sparkContext.parallelize([0, 1], 2)
    assert numbers.map(lambda _: given_cores()).collect() == [1, 1]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (MINILM.id, r'texts\[\d\] is \w+; each text must be a string, .*nulls="keep"'),
        ("nothing", "no model 'nothing'"),
    ],
)
def test_errors(frame: Any, model: str, message: str) -> None:
    """The driver's exception has the worker's sentence."""
    if model == "nothing":
        frame = frame.where(frame.text.isNotNull())
    embed = ml.predict_batch_udf(Embedder(model).make_predict_fn, return_type=VECTOR, batch_size=8)
    with pytest.raises(Exception, match=message):
        frame.select(embed("text")).coalesce(1).collect()
