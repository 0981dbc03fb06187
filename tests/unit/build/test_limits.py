"""A build refuses what the model could not serve: ids without a row, texts beyond its positions."""

from __future__ import annotations

import base64
import json
import os
import signal
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from matryo.build import limits, trial
from matryo.build.provision import build_model
from matryo.catalog.reading import read_manifest
from matryo.core.errors import BuildFailed, CheckpointMismatch, ManifestInvalid
from matryo.core.progress import SILENT
from matryo.store.artifact import Artifact
from matryo.store.layout import Store
from tests.checkpoints import HIDDEN, TinyModel, make_model, make_tokenizer, save_gguf, vocabulary
from tests.unit.build.test_onnx import WORDS


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """A tiny model that is not built."""
    return make_model(tmp_path, "bert")


def build(root: Path, model: TinyModel, checkpoint: Path) -> Artifact:
    """Build from files that no manifest pins."""
    return build_model(
        Store(root / "home"),
        read_manifest(model.models / model.id),
        "fp32",
        checkpoint,
        allow_unverified=True,
        reporter=SILENT,
    )


def set_limit(model: TinyModel, max_tokens: int) -> None:
    """Write another `max_tokens` into model.toml."""
    path = model.models / model.id / "model.toml"
    path.write_text(path.read_text().replace("max_tokens = 64", f"max_tokens = {max_tokens}"))


def export(path: Path, *, rows: int = len(WORDS), positions: int = 64, seen: bool = True) -> Path:
    """A graph that adds a row for the id and a row for the position.

    Args:
        path: of the file; a tokenizer is written beside it.
        rows: rows of the word table.
        positions: rows of the table of positions.
        seen: whether the tables can be seen without a run.
    """
    table = np.resize(WORDS, (rows, HIDDEN))
    places = np.ones((positions, HIDDEN), np.float32)
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["n"], start=1, end=2),
        helper.make_node("Squeeze", ["n"], ["length"]),
        helper.make_node("Range", ["zero", "length", "one"], ["index"]),
    ]
    tables = ("words", "places")
    if not seen:
        tables = ("computed words", "computed places")
        nodes += [
            helper.make_node("Mul", [name, "unit"], [f"computed {name}"])
            for name in ("words", "places")
        ]
    nodes += [
        helper.make_node("Gather", [tables[0], "input_ids"], ["x"]),
        helper.make_node("Gather", [tables[1], "index"], ["p"]),
        helper.make_node("Add", ["x", "p"], ["last_hidden_state"]),
    ]
    graph = helper.make_graph(
        nodes,
        "positions",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ("B", "T"))
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ("B", "T", HIDDEN))],
        [
            numpy_helper.from_array(table, "words"),
            numpy_helper.from_array(places, "places"),
            numpy_helper.from_array(np.array(0), "zero"),
            numpy_helper.from_array(np.array(1), "one"),
            numpy_helper.from_array(np.array(1, np.float32), "unit"),
        ],
    )
    save(graph, path)
    make_tokenizer().save(str(path.parent / "tokenizer.json"))
    return path


def save(graph: Any, path: Path) -> None:
    """Write a graph as a model."""
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(proto.SerializeToString())


class TestPositions:
    """`max_tokens` beyond the model's positions."""

    @pytest.mark.parametrize("kind", ["safetensors", "gguf"])
    def test_manifest(self, tmp_path: Path, model: TinyModel, kind: str) -> None:
        """The manifest contradicts itself: both numbers are named."""
        set_limit(model, 1201)
        checkpoint = model.checkpoint
        if kind == "gguf":
            checkpoint = save_gguf(model, tmp_path / "tiny.gguf")
        with pytest.raises(ManifestInvalid, match=r"max_tokens = 1201, but .* = 1200\. Lower"):
            build(tmp_path, model, checkpoint)

    @pytest.mark.parametrize("seen", [True, False])
    def test_ready_graph(self, tmp_path: Path, model: TinyModel, *, seen: bool) -> None:
        """A graph with fewer positions than max_tokens is refused, and one with enough is not."""
        folder = tmp_path / "own"
        folder.mkdir()
        build(tmp_path, model, export(folder / "m.onnx", positions=64, seen=seen))
        with pytest.raises(CheckpointMismatch, match=r"max_tokens = 64, but .*m(odel)?\.onnx"):
            build(tmp_path, model, export(folder / "m.onnx", positions=63, seen=seen))

    def test_long_texts(self, tmp_path: Path, model: TinyModel) -> None:
        """A limit beyond the usual probe is proven too if that takes little time."""
        model = make_model(tmp_path, "bert", model_id="long", max_position_embeddings=5000)
        set_limit(model, 5000)
        folder = tmp_path / "own"
        folder.mkdir()
        with pytest.raises(CheckpointMismatch, match="cannot run a text of 5000 tokens"):
            build(tmp_path, model, export(folder / "m.onnx", positions=4999, seen=False))


class TestIds:
    """Ids of a tokenizer beyond the word table."""

    @pytest.mark.parametrize("seen", [True, False])
    def test_ready_graph(self, tmp_path: Path, model: TinyModel, *, seen: bool) -> None:
        """The last id is run, also where the table cannot be seen."""
        folder = tmp_path / "own"
        folder.mkdir()
        rows = len(vocabulary()) - 1
        with pytest.raises(CheckpointMismatch, match=rf"tokenizer\.json has ids up to {rows}, but"):
            build(tmp_path, model, export(folder / "m.onnx", rows=rows, seen=seen))

    def test_special_tokens_in_no_vocabulary(self, tmp_path: Path, model: TinyModel) -> None:
        """The tokens that a tokenizer puts around each text have ids of their own."""
        path = model.checkpoint / "tokenizer.json"
        data = json.loads(path.read_text())
        data["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [99_999]
        path.write_text(json.dumps(data))
        with pytest.raises(CheckpointMismatch, match=r"ids up to 99999, but .* 68 rows"):
            build(tmp_path, model, model.checkpoint)

    def test_added_tokens(self, tmp_path: Path, model: TinyModel) -> None:
        """A token that was added with an id far beyond the vocabulary has no row."""
        path = model.checkpoint / "tokenizer.json"
        data = json.loads(path.read_text())
        token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        data["added_tokens"] = [{**token, "id": 70_000, "content": "<x>", "special": True}]
        path.write_text(json.dumps(data))
        with pytest.raises(
            CheckpointMismatch, match=r"has 1 added tokens.*has 68 rows.*resize_token_embeddings"
        ):
            build(tmp_path, model, model.checkpoint)


class TestTrial:
    """A ready graph or a tokenizer from elsewhere is tried in a process of its own."""

    @pytest.mark.parametrize("kind", ["allocates", "grows"])
    def test_tokenizer(
        self, tmp_path: Path, model: TinyModel, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        """A tokenizer that asks for gigabytes as it is read, or at a text, is one error."""
        monkeypatch.setattr(limits, "TRIAL_MEMORY_BYTES", 1 << 29)
        path = model.checkpoint / "tokenizer.json"
        data = json.loads(path.read_text())
        if kind == "allocates":  # the size of a table that is not there
            table = base64.b64encode(bytes([0xFC, 0xFF, 0xFF, 0xFF]) * 2).decode()
            data["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": table}
        else:
            twice = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}
            data["normalizer"] = {"type": "Sequence", "normalizers": [twice] * 40}
        path.write_text(json.dumps(data))
        with pytest.raises(CheckpointMismatch, match="is not a tokenizer"):
            build(tmp_path, model, model.checkpoint)

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """A graph that runs."""
        folder = tmp_path / "own"
        folder.mkdir()
        return export(folder / "m.onnx")

    def test_endless(
        self, tmp_path: Path, model: TinyModel, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A graph that never ends is given up, and the error says after how long."""
        monkeypatch.setattr(limits, "TRIAL_SECONDS", 3.0)
        graph = cast("Any", onnx).load(str(path)).graph
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["condition"], ["on"]),
                helper.make_node("Add", ["value", "value"], ["next"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, ()),
                helper.make_tensor_value_info("condition", TensorProto.BOOL, ()),
                helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info("on", TensorProto.BOOL, ()),
                helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
            ],
        )
        graph.node[-1].output[0] = "sum"
        graph.node.append(
            helper.make_node("Loop", ["trips", "", "sum"], ["last_hidden_state"], body=body)
        )
        graph.initializer.append(numpy_helper.from_array(np.array(1 << 62), "trips"))
        save(graph, path)
        with pytest.raises(BuildFailed, match="cannot run the graph: it took more than 3 s"):
            build(tmp_path, model, path)

    def test_too_much_memory(
        self, tmp_path: Path, model: TinyModel, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A graph that asks for more memory than a model of its size is refused."""
        monkeypatch.setattr(limits, "TRIAL_MEMORY_BYTES", 1 << 30)
        graph = cast("Any", onnx).load(str(path)).graph
        graph.node[-1].output[0] = "sum"
        graph.node.extend(
            [
                helper.make_node("Expand", ["sum", "shape"], ["large"]),
                helper.make_node("ReduceMean", ["large"], ["mean"], axes=[0], keepdims=0),
                helper.make_node("Identity", ["mean"], ["last_hidden_state"]),
            ]
        )
        graph.initializer.append(numpy_helper.from_array(np.array([1 << 20, 1, 1, 1]), "shape"))
        save(graph, path)
        with pytest.raises(BuildFailed, match="cannot run the graph"):
            build(tmp_path, model, path)

    def test_crash(
        self, tmp_path: Path, model: TinyModel, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A crash of the library ends the trial alone, and is one error."""
        crash = tmp_path / "crash"
        crash.write_text(f"#!/bin/sh\nkill -{int(signal.SIGSEGV)} $$\n")
        crash.chmod(0o755)
        monkeypatch.setattr("matryo.build.inputs.try_tokenizer", print)
        monkeypatch.setattr(trial.sys, "executable", os.fspath(crash))
        with pytest.raises(
            BuildFailed, match=r"crashed, or needed too much memory .signal SIGSEGV"
        ):
            build(tmp_path, model, path)

    def test_hash_first(
        self, tmp_path: Path, model: TinyModel, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No library parses a file whose hash the manifest does not pin."""

        def parsed(_: object) -> None:
            raise AssertionError("it was parsed")

        monkeypatch.setattr("matryo.build.inputs.read_ready_graph", parsed)
        with pytest.raises(CheckpointMismatch, match="has sha256"):
            build_model(
                Store(tmp_path / "home"),
                read_manifest(model.models / model.id),
                "fp32",
                path,
                allow_unverified=False,
                reporter=SILENT,
            )
