"""The page `/docs`: the OpenAPI document as plain HTML, which loads nothing from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { border-top: 1px solid #8886; padding-top: 1rem }
code, pre { font-family: ui-monospace, monospace }
pre { background: #8882; padding: .7rem; overflow-x: auto }
table { border-collapse: collapse } td, th { border: 1px solid #8886; padding: .2rem .6rem;
text-align: left; vertical-align: top }
"""

PAGE_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
"""A browser that shows the page fetches nothing, whatever the document says."""


def render(document: dict[str, Any], *, has_page: bool = False) -> str:
    """The page of an OpenAPI document: each operation with its body, examples and answers.

    Args:
        document: what it shows.
        has_page: whether the server has a page to try the API on.
    """
    info = document["info"]
    title = f"{info['title']} {info['version']}"
    root = document.get("servers", [{"url": ""}])[0]["url"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(title)}</h1><p>{escape(info['description'])}</p>",
        "<p>The same for programs: <a href=openapi.json>openapi.json</a></p>",
    ]
    if has_page:
        parts.append("<p>To try it in the browser: <a href=./>the server's page</a></p>")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            shown = root + path
            parts.append(f"<h2><code>{method.upper()} {escape(shown)}</code></h2>")
            parts += _operation(document, shown, operation)
    return "\n".join(parts)


def _operation(document: dict[str, Any], path: str, operation: dict[str, Any]) -> list[str]:
    parts = [f"<p>{escape(operation.get('description') or operation.get('summary', ''))}</p>"]
    if "security" in operation:
        parts.append("<p>Needs the header <code>Authorization: Bearer YOUR_KEY</code>.</p>")
    if parameters := operation.get("parameters"):
        parts.append(_table("parameter", {one["name"]: one | one["schema"] for one in parameters}))
    for body in operation.get("requestBody", {}).get("content", {}).values():
        schema = _resolved(document, body["schema"])
        parts.append(_table("field", schema.get("properties", {})))
        for example in body.get("examples", {}).values():
            text = json.dumps(example["value"], ensure_ascii=False)
            parts.append(f"<p>{escape(example['summary'])}</p>")
            parts.append(f"<pre>{escape(_curl(path, text, secured='security' in operation))}</pre>")
    parts.append(_table("answer", operation["responses"]))
    return parts


def _curl(path: str, body: str, *, secured: bool) -> str:
    key = " -H 'Authorization: Bearer YOUR_KEY'" if secured else ""
    quoted = body.replace("'", "'\\''")
    return f"curl $URL{path}{key} -H 'Content-Type: application/json' \\\n  -d '{quoted}'"


def _table(what: str, rows: dict[str, dict[str, Any]]) -> str:
    if not rows:
        return ""
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code><td>{escape(_type(row))}"
        f"<td>{escape(row.get('description', ''))}"
        for name, row in rows.items()
    )
    return f"<table><tr><th>{what}<th>type<th>meaning{cells}</table>"


def _type(schema: dict[str, Any]) -> str:
    """The type of a value in a few words."""
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return " or ".join(dict.fromkeys(_type(choice) for choice in choices))
    if "const" in schema:
        return str(schema["const"])
    bounds = [f"{word} {schema[key]}" for key, word in _BOUNDS.items() if key in schema]
    items = f" of {_type(schema['items'])}" if schema.get("items") else ""
    return " ".join([schema.get("type", "") + items, *bounds]).strip()


_BOUNDS = {"minimum": "from", "maximum": "to", "multipleOf": "in steps of"}


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema itself, or the one that it refers to."""
    name = schema.get("$ref", "").rpartition("/")[2]
    return document["components"]["schemas"][name] if name else schema
