"""The table of values in the chart's README, written from schema and defaults.

    .venv/bin/python -m tests.chart.readme

Whatever stands between the two marks is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.chart.files import CHART, schema, values

BEGIN, END = "<!-- values -->", "<!-- end of values -->"
PAGE = CHART / "README.md"


def entries(part: dict[str, Any], given: Any, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Path, default and meaning of each value."""
    for name, inner in part["properties"].items():
        where = f"{path}.{name}" if path else name
        value = given.get(name) if isinstance(given, dict) else None
        if inner.get("type") == "object" and inner.get("properties"):
            yield from entries(inner, value, where)
        else:
            yield where, value, inner["description"]


def table() -> str:
    """The table as Markdown."""
    lines = ["| value | default | meaning |", "|---|---|---|"]
    for path, value, meaning in entries(schema(), values()):
        if path != "global":
            lines.append(
                f"| `{path}` | `{json.dumps(value)}` | {meaning.replace('|', chr(92) + '|')} |"
            )
    return "\n".join(lines)


def page(old: str) -> str:
    """The README with the table as it should be."""
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
