"""deploy/prometheus and deploy/grafana name only what exists; tests.monitoring runs them for real."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry
from promql_parser import AggregateExpr, MatchOp, VectorSelector

from deploy import dashboard
from matryo.core import metric_list
from matryo.core.metrics import Metrics
from matryo.core.settings import Settings
from matryo.core.sources import PREFIX
from matryo.http.operations import build_router
from tests.queries import PROMETHEUS, ROOT, RUNBOOK, Query, alerts, every_query, panels, rules
from tests.unit.test_pages import anchors

# What Prometheus adds to each series, and its own series.
TARGET = {"job", "instance", "namespace"}
OWN = {"up": set[str](), "ALERTS": {"alertname", "alertstate", "severity"}}
# Values of labels that are fixed in the code.
VALUES: dict[tuple[str, str], set[str]] = {
    ("matryo_rejections_total", "reason"): set(metric_list.REJECTION_REASONS),
    ("matryo_caller_rejections_total", "reason"): set(metric_list.REJECTION_REASONS),
    ("matryo_aborts_total", "reason"): set(metric_list.ABORT_REASONS),
    ("matryo_dropped_connections_total", "reason"): set(metric_list.DROP_REASONS),
    ("matryo_requests_total", "door"): set(metric_list.DOORS),
    ("matryo_request_seconds_bucket", "door"): set(metric_list.DOORS),
    ("matryo_request_seconds_count", "door"): set(metric_list.DOORS),
    ("matryo_reloads_total", "outcome"): set(metric_list.OUTCOMES),
    ("matryo_heartbeats_total", "outcome"): set(metric_list.HEARTBEATS),
}
FILES = [
    ROOT / "docker-compose.yml",
    ROOT / "Dockerfile",
    *sorted(
        path
        for path in (ROOT / "deploy").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ),
]
MONITORING = [
    path
    for path in FILES
    if path.parent.name == "deploy" or {"prometheus", "grafana"} & {*path.parts}
]


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """The labels of every series that a scrape or a recording rule may have, by its name."""
    registry = CollectorRegistry()
    Metrics(registry)
    found = {name: set(labels) for name, labels in OWN.items()}
    for collector, names in registry._collector_to_names.items():
        labels = set(getattr(collector, "_labelnames", ()))
        for name in names:
            found[name] = labels | ({"le"} if name.endswith("_bucket") else set())
    for rule in rules():
        if "record" in rule:
            found[rule["record"]] = set(rule.get("labels", ()))
    return found


def selectors(query: Query) -> list[VectorSelector]:
    """The selectors of a query."""
    found: list[VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(query.text), visit)
    return found


def groupings(query: Query) -> Iterator[str]:
    """The labels by which a query groups."""
    found: list[str] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, AggregateExpr) and node.modifier:
            found.extend(node.modifier.labels)

    promql_parser.walk(promql_parser.parse(query.text), visit)
    return iter(found)


QUERIES = [pytest.param(query, id=f"{n}-{query.where}") for n, query in enumerate(every_query())]


@pytest.mark.parametrize("query", QUERIES)
def test_query(known: dict[str, set[str]], query: Query) -> None:
    """A query parses, and its metrics, labels and fixed values of labels exist."""
    named = selectors(query)
    assert named or query.text.startswith("vector(")
    labels = set(TARGET)
    for selector in named:
        assert selector.name in known, selector.name
        labels |= known[selector.name]
        for matcher in selector.matchers.matchers:
            assert matcher.name in known[selector.name] | TARGET, (
                f"{selector.name}{{{matcher.name}}}"
            )
            values = VALUES.get((selector.name, matcher.name))
            if values and matcher.op in (MatchOp.Equal, MatchOp.Re):
                assert set(matcher.value.split("|")) <= values
    assert set(groupings(query)) <= labels


def test_queries_are_found() -> None:
    """The test above sees rules, dashboard, console and pages."""
    places = [query.where.split(",")[0].split(" ")[0] for query in every_query()]
    for place, least in (
        ("record", 19),
        ("alert", 22),
        ("dashboard", 60),
        ("matryo.html", 60),
        ("runbook", 15),
        ("metrics", 20),
    ):
        assert places.count(place) >= least, place


def test_unknown_metric(known: dict[str, set[str]]) -> None:
    """A metric that nobody exports is found."""
    with pytest.raises(AssertionError, match="matryo_no_such_total"):
        test_query(known, Query("", "rate(matryo_no_such_total[5m])"))
    with pytest.raises(AssertionError, match="flavour"):
        test_query(known, Query("", 'matryo_ready{flavour="a"}'))


def test_every_metric_is_watched(known: dict[str, set[str]]) -> None:
    """Each metric of the service is in the dashboard, so that an operator need not search for it."""
    shown = {
        selector.name
        for query in every_query()
        if query.where.startswith("dashboard")
        for selector in selectors(query)
    }
    stems = {re.sub(r"_(bucket|sum|count|total|created)$", "", name) for name in shown if name}
    # Through a recording rule.
    stems |= {"matryo_http_refusals", "matryo_busy_seconds"}
    missing = {
        name
        for name in known
        if name.startswith("matryo_")
        and re.sub(r"_(bucket|sum|count|total|created)$", "", name) not in stems
    }
    assert not missing


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_alert(alert: dict[str, Any]) -> None:
    """An alert has a severity, a summary, a first step, and a section of the runbook of its name."""
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    notes = alert["annotations"]
    assert len(notes["summary"]) > 20
    assert re.search(r"\bfirst\b", notes["description"])
    page, _, anchor = notes["runbook_url"].rpartition("#")
    assert ROOT / page == RUNBOOK
    assert anchor == alert["alert"].lower()
    assert anchor in anchors(RUNBOOK)


def test_runbook_has_no_more() -> None:
    """Each section of the runbook that is named like an alert has that alert, and all four parts."""
    sections = re.split(r"^## ", RUNBOOK.read_text("utf-8"), flags=re.MULTILINE)
    named = {part.split("\n")[0]: part for part in sections if part.startswith("Matryo")}
    assert set(named) == {alert["alert"] for alert in alerts()}
    for name, part in named.items():
        for heading in ("**Meaning.**", "**First look.**", "**Remedy.**", "**Ignore** the alert"):
            assert heading in part, f"{name}: {heading}"


def test_promtool_tests_cover() -> None:
    """The rule tests for promtool have every alert firing and clear, and every recorded series."""
    fires: set[tuple[str, str]] = set()
    clears: set[str] = set()
    recorded: set[str] = set()
    for path in (PROMETHEUS / "tests").glob("*.yml"):
        for test in yaml.safe_load(path.read_text("utf-8"))["tests"]:
            for case in test.get("alert_rule_test", ()):
                for seen in case.get("exp_alerts", ()):
                    labels = seen["exp_labels"]
                    fires.add((case["alertname"], labels["severity"] + labels.get("window", "")))
                if not case.get("exp_alerts"):
                    clears.add(case["alertname"])
            recorded |= {
                re.split(r"[{ ]", case["expr"])[0] for case in test.get("promql_expr_test", ())
            }
    wanted = {
        (rule["alert"], rule["labels"]["severity"] + rule["labels"].get("window", ""))
        for rule in alerts()
    }
    assert fires == wanted
    assert clears == {name for name, _ in wanted}
    assert recorded >= {rule["record"] for rule in rules() if "record" in rule}


def test_dashboard() -> None:
    """Dashboard and console are what deploy/panels.toml gives; `make dashboard` writes them."""
    assert dashboard.DASHBOARD.read_text("utf-8") == dashboard.dashboard()
    page = dashboard.CONSOLE.read_text("utf-8")
    assert dashboard.console(page) == page
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles)


def name_of(path: Path) -> str:
    """The path in the repository, as the id of a case."""
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_settings_and_metrics(known: dict[str, set[str]], path: Path) -> None:
    """Every setting and every metric that a file of deploy/ names exists."""
    text = path.read_text("utf-8")
    settings = {PREFIX + name.upper() for name in Settings.model_fields}
    assert set(re.findall(rf"\b{PREFIX}[A-Z_]*[A-Z]\b", text)) <= settings
    assert set(re.findall(r"\bmatryo_[a-z_]*[a-z]\b", text)) <= set(known)


@pytest.mark.parametrize("path", MONITORING, ids=name_of)
def test_paths_and_ports(path: Path) -> None:
    """Pages, routes and ports that a file of monitoring names exist."""
    text = path.read_text("utf-8")
    for page in re.findall(r"\b(?:docs|deploy)/[\w/-]+\.\w+", text):
        assert (ROOT / page).exists(), page
    routes = {getattr(route, "path", "") for route in build_router().routes}
    for route in re.findall(r"(?:PORT|\$port|8080)(/[a-z]\w*)", text):
        assert route in routes, route
    assert set(re.findall(r"127\.0\.0\.1:(\d+)", text)) <= {
        str(Settings.model_fields["port"].default),
        "9090",
        "9093",
    }


def test_scrape() -> None:
    """Prometheus scrapes the route of the metrics, under the name of the job that rules select."""
    (job,) = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert job["job_name"] == "matryo"
    assert job["metrics_path"] in {getattr(route, "path", "") for route in build_router().routes}
    for service in job["file_sd_configs"]:
        for file in service["files"]:
            assert (PROMETHEUS / file).exists()


def test_without_prometheus() -> None:
    """`make monitoring` on a machine without Prometheus says how to get it."""
    command = ["/bin/sh", str(PROMETHEUS / "monitoring.sh")]
    done = subprocess.run(command, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "apt-get install prometheus" in done.stderr
