"""Every shipped model can be built: there is a graph for its architecture, with its values."""

from __future__ import annotations

import pytest

from matryo.build import arch
from matryo.catalog.catalog import Catalog, shipped_models

CATALOG = Catalog([shipped_models()])


@pytest.mark.parametrize("model_id", CATALOG.ids)
def test_every_shipped_model(model_id: str) -> None:
    """The architecture takes the model's config and its longest text.

    The folder pulls `config.json`, which a build compares with `[architecture]`, or the model is one
    of those whose vectors were compared otherwise.
    """
    manifest = CATALOG.manifest(model_id)
    _, config = arch.load(manifest)
    most = arch.max_tokens(config)
    assert most is None or manifest.tokenizer.max_tokens <= most
    older = ("bge-small", "bge-base", "e5-small-v2", "nomic-", "snowflake-arctic-embed-m-v1.5")
    assert "config.json" in manifest.files or model_id.startswith(older)
