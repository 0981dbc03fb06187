"""Golden values are typed, and each says where it comes from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from matryo.catalog.catalog import Catalog, shipped_models
from matryo.catalog.golden import CosineCheck, HiddenCheck, PooledCheck, VectorCheck, read_golden
from matryo.catalog.reading import read_manifest
from matryo.core.errors import ManifestInvalid
from tests.fakes import MODELS


@pytest.mark.parametrize("model_id", Catalog([shipped_models()]).ids)
def test_every_shipped_model(model_id: str) -> None:
    """Shapes fit, tolerances are tight enough to tell texts apart, sources are named."""
    manifest = read_manifest(MODELS / model_id)
    golden = read_golden(MODELS / model_id)
    for check in golden.checks:
        assert check.source
        match check:
            case CosineCheck():
                assert len(check.expected) == len(check.rows)
                assert {len(row) for row in check.expected} == {len(check.columns)}
                assert {check.row_type, check.column_type} <= set(manifest.input_types)
                assert 0 < max(check.abs_tolerance, check.rel_tolerance) <= 0.01
            case PooledCheck() | VectorCheck():
                assert 3 <= len(check.values) <= manifest.output.dimensions.native
                assert all(map(math.isfinite, check.values))
            case HiddenCheck():
                assert {len(row) for row in check.values} == {len(check.values[0])}
                assert all(math.isfinite(value) for row in check.values for value in row)


def test_models_without_published_values() -> None:
    """None but the one whose authors published nothing that we could find."""
    bare = {
        name for name in Catalog([shipped_models()]).ids if not read_golden(MODELS / name).checks
    }
    assert bare == {"e5-small-v2"}


def test_a_model_without_the_file(tmp_path: Path) -> None:
    """A derived model has no golden.json, and so no checks."""
    assert read_golden(tmp_path).checks == ()


def test_faults_are_named(tmp_path: Path) -> None:
    """A file that cannot be read, or a key that is none, is said with the path."""
    (tmp_path / "golden.json").mkdir()
    with pytest.raises(ManifestInvalid, match=r"golden\.json: cannot be read"):
        read_golden(tmp_path)
    (tmp_path / "golden.json").rmdir()
    (tmp_path / "golden.json").write_text('{"checks": [{"kind": "cosine"}]}')
    with pytest.raises(ManifestInvalid, match=r"checks\.0\.cosine\.source"):
        read_golden(tmp_path)
