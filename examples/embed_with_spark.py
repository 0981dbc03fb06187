"""Embed the column `text` of Parquet files with Spark.

    PYSPARK_PYTHON=python python embed_with_spark.py IN OUT

The Python that PYSPARK_PYTHON names must have matryo, on every machine of the cluster.
Every Python process of an executor loads the model once. A process takes as many threads as
`spark.task.cpus` says.
"""

import sys

from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql.types import ArrayType, FloatType, StringType, StructField, StructType

from matryo import Embedder

NEW_COLUMNS = StructType(
    [
        StructField("embedding", ArrayType(FloatType())),
        StructField("fingerprint", StringType()),
    ]
)


def main() -> None:
    """Read, embed and write."""
    source, target = sys.argv[1:]
    embedder = Embedder("all-minilm-l6-v2", precision="int8", fingerprint_column="fingerprint")
    embed = predict_batch_udf(embedder.make_predict_fn, return_type=NEW_COLUMNS, batch_size=1024)
    spark = SparkSession.builder.appName("embed").getOrCreate()
    rows = spark.read.parquet(source)
    rows.withColumn("new", embed("text")).select("*", "new.*").drop("new").write.parquet(target)
    spark.stop()


if __name__ == "__main__":
    main()
