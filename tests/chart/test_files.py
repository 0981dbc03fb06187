"""The chart's files: values, schema, README, copies, and the names of Matryo that they use."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest
import yaml
from prometheus_client import CollectorRegistry

from matryo.core.metrics import Metrics
from matryo.core.settings import Settings
from tests.chart import lint
from tests.chart.files import CHART, COPIES, VALUES, rendered, schema, values
from tests.chart.readme import PAGE, page

_METRIC = re.compile(r"\bmatryo_[a-z_]+\b")
_SETTING = re.compile(r"\bMATRYO_[A-Z0-9_]+\b")


def _merged(base: Any, over: Any) -> Any:
    """Values over the chart's, as helm does it."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: _merged(base.get(key), value) for key, value in over.items()}


@pytest.mark.parametrize("name", [None, *VALUES])
def test_values_satisfy_the_schema(name: str | None) -> None:
    """The defaults and each set of values are as the schema says."""
    over = yaml.safe_load(VALUES[name].read_text("utf-8")) if name else {}
    jsonschema.Draft7Validator(schema()).validate(_merged(values(), over))


def test_schema_is_a_schema() -> None:
    """The schema itself is valid."""
    jsonschema.Draft7Validator.check_schema(schema())


def _paths(part: dict[str, Any], at: str = "") -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, inner in part.get("properties", {}).items():
        found[f"{at}{name}"] = inner
        found |= _paths(inner, f"{at}{name}.")
    return found


def _given(part: Any, known: dict[str, Any], at: str = "") -> set[str]:
    found: set[str] = set()
    for name, inner in part.items():
        found.add(f"{at}{name}")
        if isinstance(inner, dict) and "properties" in known.get(f"{at}{name}", {}):
            found |= _given(inner, known, f"{at}{name}.")
    return found


def test_schema_documents_every_value() -> None:
    """Every value has a description, and the schema has no value that the chart does not have."""
    known = _paths(schema())
    assert all(inner["description"].endswith(".") for inner in known.values())
    assert _given(values(), known) == set(known) - {"global"}


def test_schema_refuses_unknown_values() -> None:
    """A misspelt value is refused wherever the chart itself reads the values."""
    for path, inner in {"": schema(), **_paths(schema())}.items():
        if "properties" in inner and path != "global":
            assert inner["additionalProperties"] is False, path


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("settings", {"MATRYO_PORT": 1}),
        ("settings", {"PATH": "x"}),
        ("extraEnv", [{"name": "MATRYO_GRACE_S", "value": "99"}]),
        ("image", {"tag": "latest"}),
        ("shutdown", {"marginSeconds": 0}),
        ("autoscaling", {"type": "cpu"}),
        ("replicas", 2),
    ],
)
def test_schema_refuses(path: str, value: Any) -> None:
    """What would fight with the chart is refused."""
    given = _merged(values(), {path: value})
    assert list(jsonschema.Draft7Validator(schema()).iter_errors(given))


def test_readme_table() -> None:
    """The README's table is that of schema and values; `make chart-render` writes it again."""
    text = PAGE.read_text("utf-8")
    assert page(text) == text


def test_copies() -> None:
    """Rules and dashboards of the chart are those of deploy/; `make chart-render` copies them."""
    for copy, source in COPIES.items():
        wanted = {path.name: path.read_bytes() for path in source.iterdir()}
        assert wanted
        assert {path.name: path.read_bytes() for path in copy.iterdir()} == wanted


def _texts() -> dict[str, str]:
    files = [*CHART.rglob("*.*"), *VALUES.values()]
    return {str(path): path.read_text("utf-8") for path in files if path.is_file()}


def test_settings_exist() -> None:
    """Every setting that the chart names is one of Matryo's, those that a user may not set included."""
    named = {name for text in _texts().values() for name in _SETTING.findall(text)}
    known = {f"MATRYO_{name.upper()}" for name in Settings.model_fields}
    assert "MATRYO_BATCH_MS" in named
    assert {name for name in named if not name.endswith("_")} <= known


def test_metrics_exist() -> None:
    """Every metric that templates and values name is one of Matryo's."""
    files = {path: text for path, text in _texts().items() if "/files/" not in path}
    named = {name for text in files.values() for name in _METRIC.findall(text)}
    assert "matryo_backlog_seconds" in named
    known = {family.name for family in Metrics(CollectorRegistry()).registry.collect()}
    assert named <= known


@pytest.mark.parametrize("name", VALUES)
def test_settings_can_be_read(name: str) -> None:
    """Matryo takes every variable that a render sets, with its value."""
    given = {
        key.removeprefix("MATRYO_").lower(): value
        for key, value in lint.environment(rendered(name)).items()
        if key.startswith("MATRYO_")
    }
    settings = Settings.model_validate(given)
    assert settings.host == "0.0.0.0"  # noqa: S104
    assert settings.port == 8080
