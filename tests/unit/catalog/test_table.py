"""The table of models in docs/models.md is that of the model folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from matryo.catalog.catalog import Catalog, shipped_models
from matryo.catalog.manifest import Architecture
from matryo.catalog.table import BEGIN, END, multiplications, page, speed

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
CATALOG = Catalog([shipped_models()])


def architecture(**changes: object) -> Architecture:
    """An architecture of one layer, 4 wide, with an MLP of 8."""
    values: dict[str, object] = {
        "model_type": "bert",
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        **changes,
    }
    return Architecture.model_validate(values)


def test_the_page_is_true() -> None:
    """`make models-table` would write the page as it is."""
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text


@pytest.mark.parametrize("model_id", CATALOG.ids)
def test_every_shipped_model(model_id: str) -> None:
    """The page has a row for each model, and the model says languages and parameters."""
    rows = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].splitlines()
    (row,) = [row for row in rows if row.startswith(f"| [{model_id}](")]
    assert "not known" not in row
    assert row.count("|") == 11


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}\n{BEGIN}"])
def test_a_page_without_its_marks(text: str) -> None:
    """A page that lost a mark is refused, and not written over."""
    with pytest.raises(ValueError, match="must have one line"):
        page(text)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 4 * 16 + 2 * 32),
        ({"num_hidden_layers": 3}, 3 * (4 * 16 + 2 * 32)),
        ({"hidden_act": "swiglu"}, 4 * 16 + 3 * 32),
        ({"model_type": "modernbert"}, 4 * 16 + 3 * 32),
        # Queries and outputs 2 x 6 wide, one key and one value head of 6.
        (
            {"model_type": "qwen3", "head_dim": 6, "num_key_value_heads": 1},
            2 * 4 * 12 + 2 * 4 * 6 + 3 * 32,
        ),
        # Layers 1 and 3 of four have two MLPs for each token.
        (
            {"num_hidden_layers": 4, "moe_every_n_layers": 2, "moe_top_k": 2},
            4 * 64 + (2 + 2 * 2) * 64,
        ),
        ({"model_type": "model2vec"}, 0),
    ],
)
def test_multiplications(changes: dict[str, object], expected: int) -> None:
    """Four matrices of attention and two or three of the MLP, counted by their shapes."""
    assert multiplications(architecture(**changes)) == expected


@pytest.mark.parametrize(
    ("model_id", "expected"),
    [
        ("potion-retrieval-32m", "static"),
        ("all-minilm-l6-v2", "fast"),
        ("nomic-embed-text-v1.5", "middle"),
        ("bge-m3", "slow"),
    ],
)
def test_speed(model_id: str, expected: str) -> None:
    """The classes that the page explains."""
    assert speed(CATALOG.manifest(model_id).architecture) == expected
