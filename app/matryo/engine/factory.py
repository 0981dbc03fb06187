"""Loads the engine that runs an artefact."""

from __future__ import annotations

from matryo.catalog.manifest import Manifest
from matryo.engine.cores import CoreUse, plan_cores
from matryo.engine.protocol import Engine
from matryo.store.artifact import Artifact

__all__ = ["CoreUse", "is_prepared", "load_engine", "plan_cores"]


def load_engine(manifest: Manifest, artifact: Artifact, use: CoreUse) -> Engine:
    """The engine of an artefact, ready to run. Every artefact is an ONNX graph so far.

    Args:
        manifest: the model.
        artifact: the model's artefact. The hash of every file that the engine reads is checked.
        use: the cores. Every engine of this process must get the same object.

    Raises:
        ArtifactDamaged: a file is not the one that was built, or cannot be loaded.
    """
    # Importing ONNX Runtime takes time that other commands need not spend.
    from matryo.engine.onnx import OnnxEngine

    return OnnxEngine(manifest, artifact, use)


def is_prepared(artifact: Artifact) -> bool:
    """Whether the engine has prepared an artefact for this machine, or knows that it cannot."""
    from matryo.engine.onnx.prepacked import is_settled

    return is_settled(artifact)
