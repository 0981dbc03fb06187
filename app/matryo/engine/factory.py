"""From an artefact to the engine that runs it."""

from __future__ import annotations

from matryo.catalog.manifest import Manifest
from matryo.engine.cores import CoreUse, plan_cores
from matryo.engine.protocol import Engine
from matryo.store.artifact import Artifact

__all__ = ["CoreUse", "is_prepared", "load_engine", "plan_cores"]


def load_engine(manifest: Manifest, artifact: Artifact, use: CoreUse) -> Engine:
    """The engine of an artefact, loaded and ready to run. Every artefact is an ONNX graph so far.

    Args:
        manifest: the model.
        artifact: its artefact. Every file that the engine reads is hashed.
        use: the cores; the same object for every engine of this process.

    Raises:
        ArtifactDamaged: a file is not the one that was built, or cannot be loaded.
    """
    # Imported here, because loading ONNX Runtime takes time that other commands need not spend.
    from matryo.engine.onnx import OnnxEngine

    return OnnxEngine(manifest, artifact, use)


def is_prepared(artifact: Artifact) -> bool:
    """Whether everything that an engine wants beside the artefact for this machine is there."""
    from matryo.engine.onnx.prepacked import is_settled

    return is_settled(artifact)
