"""A release: one version everywhere, and workflows that call recipes which exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import matryo

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.fixture
def release(tmp_path: Path) -> ModuleType:
    """`deploy/release.py`, on a copy of the files that it reads."""
    spec = importlib.util.spec_from_file_location("release", ROOT / "deploy/release.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in (
        "app/matryo/__init__.py",
        "native/pyproject.toml",
        "pyproject.toml",
        "deploy/helm/matryo/Chart.yaml",
        "CHANGELOG.md",
    ):
        copy = tmp_path / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((ROOT / name).read_text("utf-8"), "utf-8")
    module.ROOT = tmp_path  # pyright: ignore[reportAttributeAccessIssue]
    return module


def edit(path: Path, old: str, new: str) -> None:
    """Replace text that is there."""
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


def test_every_file_names_one_version(release: ModuleType) -> None:
    """Package, native package, extra and chart have the package's version."""
    assert release.check(None) is None
    assert set(release.versions().values()) == {matryo.__version__}


@pytest.mark.parametrize(
    ("name", "old"),
    [
        ("native/pyproject.toml", f'version = "{matryo.__version__}"'),
        ("pyproject.toml", f"matryo-native=={matryo.__version__}"),
        ("deploy/helm/matryo/Chart.yaml", f"version: {matryo.__version__}"),
    ],
)
def test_another_version_is_named(release: ModuleType, tmp_path: Path, name: str, old: str) -> None:
    """A file that was forgotten is named with both versions."""
    edit(tmp_path / name, old, old.replace(matryo.__version__, "9.9.9"))
    fault = release.check(None)
    assert name in fault
    assert "9.9.9" in fault
    assert matryo.__version__ in fault


def test_a_tag_needs_its_version_and_its_notes(release: ModuleType, tmp_path: Path) -> None:
    """A tag of another version is refused, and so is one that CHANGELOG.md does not know."""
    tag = f"v{matryo.__version__}"
    assert tag in release.check("v9.9.9")
    assert "CHANGELOG.md" in release.check(tag)
    edit(tmp_path / "CHANGELOG.md", "## Unreleased", f"## Unreleased\n\n## {matryo.__version__}")
    assert release.check(tag) is None
    assert release.notes(matryo.__version__).startswith("### Added")


def test_workflows_call_recipes_that_exist() -> None:
    """Each `make` of a workflow names a recipe of the Makefile."""
    recipes = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert len(WORKFLOWS) == 2
    called = {
        target
        for path in WORKFLOWS
        for target in re.findall(r"make (?:--?\S+ |\w+=\S+ )*([a-z-]+)", path.read_text("utf-8"))
    }
    assert {"check", "test", "golden", "dist", "image", "chart", "notes"} <= called
    assert called <= recipes
