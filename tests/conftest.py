"""Fixtures shared by every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from prometheus_client import CollectorRegistry

from matryo.build.provision import build_model
from matryo.catalog.reading import read_manifest
from matryo.core.choices import Precision
from matryo.core.metrics import Metrics
from matryo.core.progress import SILENT
from matryo.engine import CoreUse
from matryo.engine.onnx import OnnxEngine
from matryo.store.artifact import Artifact
from matryo.store.layout import Store
from tests.checkpoints import TinyModel, make_model
from tests.fakes import FakeEngine


def pytest_configure() -> None:
    """No test reads this machine's settings, store, hub, proxies or clock, or reports its use."""
    foreign = ("MATRYO_", "HF_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    for name in [name for name in os.environ if name.upper().startswith(foreign)]:
        if name not in {"MATRYO_HOME", "HF_HUB_DISABLE_TELEMETRY"}:  # the golden tests' store
            del os.environ[name]
    os.environ |= {
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "MATRYO_KERNELS": "onnxruntime",  # tests of matryo-native ask for its operators
        "LANGSMITH_TRACING": "false",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else litellm fetches prices when imported
    }
    # A shell without job control has what it starts with & ignore Ctrl-C, and so would every
    # command that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A deadline would make a test depend on what else the machine does.
    hypothesis.settings.register_profile("matryo", deadline=None)
    hypothesis.settings.load_profile("matryo")


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    """An engine without a model; its gate is opened at the end, whatever the test did."""
    fake = FakeEngine()
    yield fake
    fake.gate.set()


@pytest.fixture
def metrics() -> Metrics:
    """Metrics on a registry of their own."""
    return Metrics(CollectorRegistry())


def build_tiny(
    root: Path, model: TinyModel, precision: Precision = "fp32", *, native: bool = False
) -> Artifact:
    """Build a tiny model into the store `root/home`."""
    manifest = read_manifest(model.models / model.id)
    return build_model(
        Store(root / "home", native=native),
        manifest,
        precision,
        model.checkpoint,
        allow_unverified=False,
        reporter=SILENT,
    )


def load_tiny(model: TinyModel, artifact: Artifact, threads: int = 1) -> OnnxEngine:
    """The engine of a tiny model that was built."""
    use = CoreUse(workers=1, threads=threads, lone_threads=threads)
    return OnnxEngine(read_manifest(model.models / model.id), artifact, use)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyModel, OnnxEngine]:
    """A tiny `bert` on ONNX Runtime, its limit beyond SOLO_TOKENS."""
    root = tmp_path_factory.mktemp("bert")
    model = make_model(root, "bert", max_tokens=1200)
    return model, load_tiny(model, build_tiny(root, model))


@pytest.fixture(scope="session")
def tiny_nomic(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyModel, OnnxEngine]:
    """A tiny `nomic_bert` on ONNX Runtime, with prompts and layer norm as v1.5."""
    root = tmp_path_factory.mktemp("nomic")
    model = make_model(root, "nomic_bert", max_tokens=1200, layer_norm=True, prompts=True)
    return model, load_tiny(model, build_tiny(root, model))
