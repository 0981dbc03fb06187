"""Writes Grafana's dashboard and the panels of Prometheus' console, from `panels.toml`.

    .venv/bin/python deploy/dashboard.py

Grafana's own builders make the dashboard, so that it fits the schema of Grafana 10.1 and newer.
"""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders.common import (
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.timeseries import Panel as TimeSeries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

HERE = Path(__file__).parent
DASHBOARD = HERE / "grafana" / "dashboards" / "matryo.json"
CONSOLE = HERE / "prometheus" / "consoles" / "matryo.html"

GRAFANA = {
    "JOB": 'job=~"$job"',
    "TARGET": 'job=~"$job", instance=~"$instance"',
    "MODEL": 'job=~"$job", instance=~"$instance", model=~"$model"',
    "RATE": "$__rate_interval",
}
PROMETHEUS = {
    "JOB": 'job="matryo"',
    "TARGET": 'job="matryo"',
    "MODEL": 'job="matryo"',
    "RATE": "1m",
}
"""What the words of `panels.toml` stand for; a console has no variables."""

_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_WIDTH, _HEIGHT = 8, 8  # three panels in a row of 24 columns


@dataclass(frozen=True)
class Panel:
    """One graph.

    Attributes:
        queries: pairs of an expression and of a legend, where `{x}` is the label x.
    """

    title: str
    why: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    stack: bool = False


def read_rows() -> dict[str, list[Panel]]:
    """The panels of each row, by the row's title."""
    table = tomllib.loads((HERE / "panels.toml").read_text("utf-8"))
    return {
        row["title"]: [
            Panel(
                **panel | {"queries": tuple((query, legend) for query, legend in panel["queries"])}
            )
            for panel in row["panel"]
        ]
        for row in table["row"]
    }


def expression(query: str, words: Mapping[str, str]) -> str:
    """A query of `panels.toml` as PromQL."""
    return re.sub(r"\b(JOB|TARGET|MODEL|RATE)\b", lambda found: words[found[0]], query)


def dashboard() -> str:
    """Grafana's dashboard as JSON."""
    made = (
        Dashboard("Matryo")
        .uid("matryo")
        .description("Traffic, latency, backlog, errors and memory of Matryo servers.")
        .tags(["matryo", "embeddings"])
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .editable()
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("job", "label_values(matryo_ready, job)"))
        .with_variable(_variable("instance", 'label_values(matryo_ready{job=~"$job"}, instance)'))
        .with_variable(
            _variable(
                "model",
                'label_values(matryo_build_info{job=~"$job", instance=~"$instance"}, model)',
            )
        )
    )
    ids = itertools.count(1)
    for title, panels in read_rows().items():
        made = made.with_row(Row(title).id(next(ids)))
        for panel in panels:
            made = made.with_panel(_time_series(panel).id(next(ids)))
    encoded: str = JSONEncoder(sort_keys=True, indent=1).encode(made.build())
    return encoded + "\n"


def _variable(name: str, query: str) -> QueryVariable:
    everything = VariableOption(selected=True, text="All", value="$__all")
    return (
        QueryVariable(name)
        .datasource(_SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".+")
        .current(everything)
    )


def _time_series(panel: Panel) -> TimeSeries:
    made = (
        TimeSeries()
        .title(panel.title)
        .description(panel.why)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .min(0)
        .fill_opacity(30 if panel.stack else 10)
        .height(_HEIGHT)
        .span(_WIDTH)
        .legend(
            VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(show_legend=True)
            .calcs([])
        )
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
    if panel.stack:
        made = made.stacking(StackingConfig().mode(StackingMode.NORMAL))
    for number, (query, legend) in enumerate(panel.queries):
        made = made.with_target(
            Dataquery()
            .ref_id(chr(ord("A") + number))
            .expr(expression(query, GRAFANA))
            .legend_format(re.sub(r"\{(\w+)\}", r"{{\1}}", legend))
        )
    return made


def console(page: str) -> str:
    """The page of the console with the panels as they are now.

    Args:
        page: the page, with panels of any time.
    """
    rows: list[dict[str, Any]] = [
        {
            "title": title,
            "panels": [
                {
                    "title": panel.title,
                    "why": panel.why,
                    "unit": panel.unit,
                    "queries": [
                        [expression(query, PROMETHEUS), legend] for query, legend in panel.queries
                    ],
                }
                for panel in panels
            ],
        }
        for title, panels in read_rows().items()
    ]
    text = json.dumps(rows, indent=1)
    return re.sub(
        r'(<script type="application/json" id="rows">\n).*?(\n</script>)',
        lambda found: found[1] + text + found[2],
        page,
        flags=re.DOTALL,
    )


def main() -> None:
    """Write both files."""
    DASHBOARD.write_text(dashboard(), "utf-8")
    CONSOLE.write_text(console(CONSOLE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
