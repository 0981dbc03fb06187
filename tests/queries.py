"""Every query of deploy/ and of docs/, and the rules that Prometheus loads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"
CONSOLES = PROMETHEUS / "consoles"
RUNBOOK = ROOT / "docs" / "runbook.md"

_VARIABLES = {
    "$job": ".+",
    "$instance": ".+",
    "$model": ".+",
    "$__rate_interval": "10s",
}


@dataclass(frozen=True)
class Query:
    """A query in PromQL.

    Attributes:
        where: names the file, and the panel or rule.
        text: the expression, Grafana's variables filled in.
    """

    where: str
    text: str


def rules(folder: Path = PROMETHEUS / "rules") -> Iterator[dict[str, Any]]:
    """Every rule of every group, recording and alerting ones."""
    for path in sorted(folder.glob("*.yml")):
        for group in yaml.safe_load(path.read_text("utf-8"))["groups"]:
            yield from group["rules"]


def alerts() -> list[dict[str, Any]]:
    """The alerting rules."""
    return [rule for rule in rules() if "alert" in rule]


def rule_queries() -> list[Query]:
    """The expression of every rule."""
    return [
        Query(f"{kind} {rule[kind]}", rule["expr"])
        for kind in ("record", "alert")
        for rule in rules()
        if kind in rule
    ]


def panels() -> Iterator[dict[str, Any]]:
    """The panels of every dashboard, without rows."""
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            if panel["type"] != "row":
                yield panel


def dashboard_queries() -> list[Query]:
    """The expression of every line of every panel, and those of the variables."""
    found = [
        Query(f"dashboard, {panel['title']}", _filled(target["expr"]))
        for panel in panels()
        for target in panel["targets"]
    ]
    for path in sorted(DASHBOARDS.glob("*.json")):
        for variable in json.loads(path.read_text("utf-8"))["templating"]["list"]:
            if variable["type"] == "query":
                text = re.fullmatch(r"label_values\((.*), \w+\)", variable["query"])
                assert text, variable
                found.append(Query(f"dashboard, ${variable['name']}", _filled(text[1])))
    return found


def _filled(text: str) -> str:
    for name, value in _VARIABLES.items():
        text = text.replace(name, value)
    return text


def console_queries() -> list[Query]:
    """What the consoles ask for, in their templates and in their graphs."""
    found: list[Query] = []
    for path in sorted(CONSOLES.glob("*.html")):
        text = path.read_text("utf-8")
        found += [
            Query(f"{path.name}, table", query.replace("='%s'", "=~'.+'"))
            for query in re.findall(r'(?:query|printf) "([^"]*)"', text)
        ]
        (rows,) = re.findall(r'id="rows">\n(.*?)\n</script>', text, re.DOTALL)
        found += [
            Query(f"{path.name}, {panel['title']}", query)
            for row in json.loads(rows)
            for panel in row["panels"]
            for query, _ in panel["queries"]
        ]
    return found


def page_queries() -> list[Query]:
    """The queries of the runbook and of other pages, one a line of their blocks."""
    return [
        Query(page.stem, line)
        for page in sorted((ROOT / "docs").glob("*.md"))
        for block in re.findall(r"```promql\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
        for line in block.splitlines()
    ]


def every_query() -> list[Query]:
    """All of them."""
    return [*rule_queries(), *dashboard_queries(), *console_queries(), *page_queries()]
