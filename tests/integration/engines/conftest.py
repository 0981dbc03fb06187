"""A store with a tiny model under the name that the examples use, and Parquet to embed."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matryo import Embedder
from tests.checkpoints import make_model
from tests.conftest import build_tiny
from tests.fakes import MINILM

ROOT = Path(__file__).parents[3]
N_ROWS = 2000
N_FILES = 8

pa: Any = importlib.import_module("pyarrow")
pq: Any = importlib.import_module("pyarrow.parquet")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Frameworks warn of each other's versions, and leave sockets behind: not our faults."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables of every process: a store of its own, and nothing that leaves this machine."""
    root = tmp_path_factory.mktemp("store")
    model = make_model(root, "bert", model_id=MINILM.id)
    build_tiny(root, model)
    build_tiny(root, model, "int8")
    variables = {
        "MATRYO_HOME": str(root / "home"),
        "MATRYO_MODELS": str(model.models),
        "MATRYO_KERNELS": "onnxruntime",
        "PYTHONPATH": f"{ROOT / 'app'}:{ROOT}",
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "DO_NOT_TRACK": "1",
        "DAFT_ANALYTICS_ENABLED": "0",
    }
    before = dict(os.environ)
    os.environ.pop("OMP_NUM_THREADS", None)
    os.environ |= variables
    yield variables
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def rows(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Parquet with the columns `id` and `text`."""
    folder = tmp_path_factory.mktemp("rows")
    for number in range(N_FILES):
        ids = range(number * N_ROWS // N_FILES, (number + 1) * N_ROWS // N_FILES)
        table = pa.table({"id": ids, "text": [f"the sky is {_spelled(i)}" for i in ids]})
        pq.write_table(table, folder / f"{number}.parquet")
    return folder


def _spelled(number: int) -> str:
    """A number in letters: the tiny tokenizer knows no digits."""
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


def check_output(folder: Path) -> Any:
    """The table that an engine wrote: every row once, with the vector that its text has here."""
    table = pq.read_table(folder).sort_by("id")
    assert table["id"].to_pylist() == list(range(N_ROWS))
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    with Embedder(MINILM.id, precision="int8") as embedder:
        assert np.array_equal(vectors, embedder.embed(table["text"]))
        if "fingerprint" in table.column_names:
            assert set(table["fingerprint"].to_pylist()) == {embedder.fingerprint}
    return table
