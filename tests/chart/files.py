"""Where the chart's files are, and what they are copies of."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/matryo"
VALUES = {path.stem: path for path in sorted((ROOT / "deploy/helm/values").glob("*.yaml"))}
RENDERS = Path(__file__).parent / "renders"
COPIES = {
    CHART / "files/rules": ROOT / "deploy/prometheus/rules",
    CHART / "files/dashboards": ROOT / "deploy/grafana/dashboards",
}
"""Folders of the chart, and the folders whose files they repeat: a chart reads only its own files."""


def digest() -> str:
    """The sha256 of everything that a render depends on."""
    found = hashlib.sha256()
    files = [path for path in sorted(CHART.rglob("*")) if path.is_file()]
    for path in [*files, *VALUES.values()]:
        if path.name != "README.md":
            found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


def copy_files() -> None:
    """Copy rules and dashboards into the chart."""
    for copy, source in COPIES.items():
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(parents=True)
        for path in sorted(source.iterdir()):
            shutil.copyfile(path, copy / path.name)


def values() -> dict[str, Any]:
    """The chart's values."""
    return yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))


def schema() -> dict[str, Any]:
    """The schema of the chart's values."""
    return json.loads((CHART / "values.schema.json").read_text("utf-8"))


def documents(text: str) -> list[dict[str, Any]]:
    """The objects of a render."""
    return [document for document in yaml.safe_load_all(text) if document]


def rendered(name: str) -> list[dict[str, Any]]:
    """The objects of the checked-in render of a set of values."""
    return documents((RENDERS / f"{name}.yaml").read_text("utf-8"))


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The objects of a kind."""
    return [one for one in objects if one["kind"] == kind]
