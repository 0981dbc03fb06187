"""`matryo verify`: finds what is right and what is wrong, and says so to people and tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from matryo.build.arch import _layers as layers
from matryo.catalog.reading import read_manifest
from matryo.cli import main
from matryo.engine import BatchResult, TokenIds
from matryo.engine.onnx import OnnxEngine
from matryo.store.artifact import find_artifact
from matryo.store.layout import Store
from tests.checkpoints import TinyModel, make_model, save_gguf, vocabulary
from tests.conftest import build_tiny, load_tiny
from tests.reference import hidden_states, pooled
from tests.unit.build.test_ready_graphs import WORDS, edit, export

TEXT = "the sky is blue"
SOURCE = "the float64 forward of the tests"


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """A tiny v1.5, built in fp32."""
    model = make_model(tmp_path, "nomic_bert", layer_norm=True, prompts=True)
    build_tiny(tmp_path, model)
    return model


def verify(root: Path, model: TinyModel, *flags: str) -> Result:
    """Run the command on the store `root/home`."""
    env = {"MATRYO_HOME": str(root / "home"), "MATRYO_MODELS": str(model.models)}
    return CliRunner().invoke(main, ["verify", model.id, *flags], env=env)


def publish(root: Path, model: TinyModel, change: float = 0.0) -> None:
    """Write golden.json from the float64 forward; `change` makes its values wrong."""
    manifest = read_manifest(model.models / model.id)
    engine = load_tiny(model, find_artifact(Store(root / "home"), manifest, "fp32"))

    def states(text: str) -> Any:
        ids = engine.tokenize([text])[0].ids.tolist()
        return hidden_states(model.config, model.tensors, ids)

    def vectors(texts: Sequence[str], prefix: str, size: int) -> Any:
        return np.stack(
            [pooled(states(prefix + t), layer_norm_eps=1e-5, dimensions=size) for t in texts]
        )

    rows, columns = ["is grass green", TEXT], [TEXT, "search"]
    cosines = [
        {
            "kind": "cosine",
            "source": SOURCE,
            "rows": rows,
            "row_type": "query",
            "columns": columns,
            "column_type": "document",
            "dimensions": size,
            "expected": (
                vectors(rows, "search_query: ", size or 32)
                @ vectors(columns, "search_document: ", size or 32).T
                + change
            ).tolist(),
            "abs_tolerance": 1e-5,
        }
        for size in (None, 16)
    ]
    hidden = states(TEXT) + change
    others = [
        {
            "kind": "vector",
            "values": (vectors([TEXT], "", 32)[0] + change).tolist()[:10],
            "max_abs": 1e-5,
        },
        {
            "kind": "pooled",
            "values": hidden.mean(0).tolist(),
            "min_cosine": 0.99999,
            "max_abs": 1e-4,
        },
        {
            "kind": "hidden",
            "first_token": 1,
            "first_column": 2,
            "values": hidden[1:4, 2:7].tolist(),
            "max_abs": 1e-4,
        },
    ]
    checks = cosines + [other | {"source": SOURCE, "text": TEXT} for other in others]
    (model.models / model.id / "golden.json").write_text(json.dumps({"checks": checks}))


def test_texts_without_a_token(tmp_path: Path) -> None:
    """A model is well whose vocabulary lacks every word of a built-in text."""
    bare = "add_special_tokens = false\ndrop_unknown = true"
    model = make_model(tmp_path, "model2vec", tokenizer=bare)
    build_tiny(tmp_path, model)
    (model.models / model.id / "golden.json").write_text('{"checks": []}')
    result = verify(tmp_path, model)
    assert result.exit_code == 0, result.output
    assert sum(line.startswith("ok") for line in result.output.splitlines()) == 4


def test_all_is_well(tmp_path: Path, model: TinyModel) -> None:
    """Each check of golden.json and of consistency is a line, with its source; exit 0."""
    publish(tmp_path, model)
    result = verify(tmp_path, model)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[-1] == "passed"
    assert sum(line.startswith("ok") for line in lines) == 5 + 4  # alone, 2 norms, forward
    assert f"[1] {SOURCE}" in lines
    manifest = read_manifest(model.models / model.id)
    artifact = find_artifact(Store(tmp_path / "home"), manifest, "fp32")
    assert artifact.passed_verify
    assert (
        "yes"
        in CliRunner()
        .invoke(
            main,
            ["models"],
            env={"MATRYO_HOME": str(tmp_path / "home"), "MATRYO_MODELS": str(model.models)},
        )
        .output
    )


def test_each_kind_can_fail(tmp_path: Path, model: TinyModel) -> None:
    """Values a little off fail every published check; exit 1, and no note is left."""
    publish(tmp_path, model)
    verify(tmp_path, model)
    publish(tmp_path, model, change=0.01)
    result = verify(tmp_path, model, "--json")
    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    assert facts["passed"] is False
    published = [check for check in facts["checks"] if check["source"] == SOURCE]
    assert [check["passed"] for check in published] == [False] * 5
    assert all(check["passed"] for check in facts["checks"] if check["source"] != SOURCE)
    manifest = read_manifest(model.models / model.id)
    assert not find_artifact(Store(tmp_path / "home"), manifest, "fp32").passed_verify


def test_a_graph_that_pools_itself(tmp_path: Path) -> None:
    """Pooled values are held against the graph's vectors; hidden states cannot be checked."""
    model = make_model(tmp_path, "bert", max_tokens=24)
    steps = '["mean_pool", "truncate", "l2_normalize"]'
    edit(model, steps, '["given", "truncate", "l2_normalize"]')
    path = export(model.checkpoint / "m.onnx")
    env = {"MATRYO_HOME": str(tmp_path / "home"), "MATRYO_MODELS": str(model.models)}
    command = ["build", model.id, "--checkpoint", str(path), "--unverified"]
    assert CliRunner().invoke(main, command, env=env).exit_code == 0
    tokens = [2, *(vocabulary().index(word) for word in TEXT.split()), 3]
    shared = {"source": SOURCE, "text": TEXT}
    pooled_check = {"kind": "pooled", "values": WORDS[tokens].mean(0).tolist(), "min_cosine": 0.999}
    hidden_check = {"kind": "hidden", "first_token": 1, "first_column": 0, "values": [[0.0]]}
    checks = [pooled_check | shared, hidden_check | shared | {"max_abs": 1e-4}]
    (model.models / model.id / "golden.json").write_text(json.dumps({"checks": checks}))
    result = verify(tmp_path, model, "--json")
    assert result.exit_code == 0, result.output
    passed = {
        check["name"].split()[0]: (check["passed"], check["found"])
        for check in json.loads(result.stdout)["checks"]
    }
    assert passed["pooled"][0]
    assert passed["hidden"] == (None, "the graph pools itself")
    assert passed["alone"][0]


def test_consistency_can_fail(
    tmp_path: Path, model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward that computes something else is noticed without any published value."""
    (model.models / model.id / "golden.json").write_text('{"checks": []}')
    assert verify(tmp_path, model).exit_code == 0
    right = layers.np_silu
    monkeypatch.setattr(layers, "np_silu", lambda x: right(x) * np.float32(1.01))
    result = verify(tmp_path, model)
    assert result.exit_code == 1
    assert "FAILED" in result.output
    assert "1 of 4 checks failed" in result.output


def test_company_can_be_found_out(
    tmp_path: Path, model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine whose vectors depend on their neighbours by one bit does not pass."""
    (model.models / model.id / "golden.json").write_text('{"checks": []}')
    right = OnnxEngine.embed

    def leaky(engine: OnnxEngine, texts: Sequence[TokenIds], *how: Any, **more: Any) -> BatchResult:
        result = right(engine, texts, *how, **more)
        if len(texts) > 1:
            result.embeddings[0][0] = np.nextafter(result.embeddings[0][0], np.float32(1))
        return result

    monkeypatch.setattr(OnnxEngine, "embed", leaky)
    result = verify(tmp_path, model)
    assert result.exit_code == 1
    assert "1 of 4 checks failed" in result.output


def test_without_published_values(tmp_path: Path, model: TinyModel) -> None:
    """Consistency alone does not make a model verified, and the reader is told."""
    (model.models / model.id / "golden.json").write_text('{"checks": []}')
    result = verify(tmp_path, model)
    assert "no published values are known" in result.output
    manifest = read_manifest(model.models / model.id)
    assert not find_artifact(Store(tmp_path / "home"), manifest, "fp32").passed_verify


def test_other_precisions(tmp_path: Path, model: TinyModel) -> None:
    """Published cosines hold with some slack; exact values are not asked of rounded weights."""
    publish(tmp_path, model)
    build_tiny(tmp_path, model, "q8")
    facts = json.loads(verify(tmp_path, model, "--precision", "q8", "--json").stdout)
    by_kind = {check["name"].split()[0]: check for check in facts["checks"]}
    assert facts["precision"] == "q8"
    assert by_kind["hidden"]["passed"] is None
    assert by_kind["cosine"]["allowed"].endswith("0.02")
    assert "least cosine" in by_kind["graph"]["found"]


def test_a_checkpoint_of_ones_own(tmp_path: Path) -> None:
    """Files that nobody pinned, and tensors that were missing, head the table."""
    from tests.checkpoints import EXPERTS

    model = make_model(tmp_path, "nomic_bert", **EXPERTS)
    (model.models / model.id / "golden.json").write_text('{"checks": []}')
    path = save_gguf(model, tmp_path / "tiny.gguf")
    env = {"MATRYO_HOME": str(tmp_path / "home"), "MATRYO_MODELS": str(model.models)}
    command = ["build", model.id, "--checkpoint", str(path), "--unverified"]
    assert CliRunner().invoke(main, command, env=env).exit_code == 0
    result = verify(tmp_path, model)
    assert result.exit_code == 0, result.output
    assert "built from files that model.toml does not pin" in result.output
    assert "the checkpoint lacked layer.1.experts.bias" in result.output

    path.unlink()
    result = verify(tmp_path, model)
    assert result.exit_code == 0
    assert "is gone" in result.output
    assert "not run" in result.output
