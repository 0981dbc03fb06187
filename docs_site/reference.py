"""The text of docs/reference.md: the OpenAPI document for people, every operation in full.

`make reference-page` writes it from the document of a server that serves every shipped model, with
stand-ins in place of the engines: no weights are needed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from matryo.catalog.catalog import Catalog, shipped_models
from matryo.core.settings import Settings
from matryo.main import create_app
from tests.fakes import FakeEngine

ROOT = Path(__file__).resolve().parents[1]
URL = "http://127.0.0.1:8080"
FIRST = "nomic-embed-text-v1.5"

_GROUPS = {
    "OpenAI's routes": ("/v1/embeddings", "/v1/models"),
    "Batch API": ("/v1/files", "/v1/batches"),
    "TEI's routes": ("/embed", "/tokenize", "/decode", "/info"),
    "Encoderfile's routes": ("/predict", "/model"),
    "Operation": ("/livez", "/readyz", "/health", "/metrics"),
}
"""Where a route stands: below the title of the first group that has it, or a path above it."""
_ELSEWHERE = "Other routes"

_INTRODUCTION = """# Reference of the routes

`make reference-page` writes this page from the OpenAPI document of a server with every shipped
model, keys and the Batch API. Each server has its own document at `/openapi.json`, and the same as
a page at `/docs`, with the sizes and input types of its models. [api.md](api.md) says what the
routes are for.

*Key* means that the caller shows a key where the server has keys. The routes below `/v1` also work
without `/v1`, and below `/openai/v1`. In a body a field that is null counts as absent. Every answer
has `x-request-id`; `x-ratelimit-...` stands for six [headers](#headers), which a key with limits
gets.
"""
_EVERY = "x-request-id"
_LIMITS = "x-ratelimit-"


class _StandIn(FakeEngine):
    """An engine without weights, whose token ids are those of its model."""

    @property
    def vocab_size(self) -> int:
        return self.manifest.architecture.config["vocab_size"]


def document() -> dict[str, Any]:
    """The OpenAPI document of a server with every shipped model, keys and the Batch API."""
    catalog = Catalog([shipped_models()])
    ids = sorted(catalog.ids, key=lambda model_id: (model_id != FIRST, model_id))
    engines = [_StandIn(catalog.manifest(model_id)) for model_id in ids]
    with tempfile.TemporaryDirectory() as home:
        settings = Settings.model_validate({"home": home, "api_keys": "any", "batch": True})
        application = create_app(settings, engines)
        try:
            return application.openapi()
        finally:
            application.state.context.batch.close()


def page(described: dict[str, Any]) -> str:
    """The text of docs/reference.md.

    Args:
        described: an OpenAPI document.
    """
    return "\n".join(_Page(described).lines())


class _Page:
    def __init__(self, described: dict[str, Any]) -> None:
        self.paths: dict[str, dict[str, Any]] = described["paths"]
        self.schemas: dict[str, dict[str, Any]] = described["components"]["schemas"]

    def lines(self) -> Iterator[str]:
        yield _INTRODUCTION
        for title in (*_GROUPS, _ELSEWHERE):
            paths = [path for path in self.paths if _group(path) == title]
            if paths:
                yield f"## {title}\n"
            for path in paths:
                for method, operation in self.paths[path].items():
                    yield from self.operation(method.upper(), path, operation)
        yield "## Headers\n"
        yield from _table(("header", "type", "meaning"), self.headers())
        yield "## Objects\n"
        bodies = {self.body_name(operation) for operation in self.operations()}
        for name in sorted(self.schemas.keys() - bodies):
            schema = self.schemas[name]
            yield f"### {name}\n"
            if text := schema.get("description"):
                yield f"{text}\n"
            yield from self.fields(schema)

    def operations(self) -> Iterator[dict[str, Any]]:
        for operations in self.paths.values():
            yield from operations.values()

    def operation(self, method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
        yield f"### {method} {path}\n"
        key = " Key." if "security" in operation else ""
        yield f"{operation.get('description') or operation['summary']}{key}\n"
        parameters = operation.get("parameters", [])
        rows = [
            (f"`{one['name']}`", one["in"], self.type(one["schema"]), _meaning(one))
            for one in parameters
        ]
        yield from _table(("parameter", "in", "type", "meaning"), rows)
        for kind, body in operation.get("requestBody", {}).get("content", {}).items():
            yield f"Body: `{kind}`\n"
            name = self.body_name(operation)
            yield from self.fields(self.schemas[name] if name else body["schema"])
            for example in body.get("examples", {}).values():
                yield f"{example['summary']}:\n"
                yield f"```sh\n{_curl(path, kind, example['value'])}\n```\n"
        yield from _table(
            ("status", "meaning", "body", "headers"),
            [
                (status, _answer(answer), self.bodies(answer), _headers(answer))
                for status, answer in operation["responses"].items()
            ],
        )

    def body_name(self, operation: dict[str, Any]) -> str:
        """The name of the schema of an operation's body; empty for none, or one without a name."""
        for body in operation.get("requestBody", {}).get("content", {}).values():
            return body["schema"].get("$ref", "").rpartition("/")[2]
        return ""

    def bodies(self, answer: dict[str, Any]) -> str:
        """What an answer may hold."""
        return ", ".join(
            f"{self.type(body['schema'])}{'' if kind == 'application/json' else f' (`{kind}`)'}"
            if body.get("schema")
            else f"`{kind}`"
            for kind, body in answer.get("content", {}).items()
        )

    def headers(self) -> list[tuple[str, ...]]:
        """Every header of every answer, once for each meaning."""
        rows = {
            (f"`{name}`", self.type(header["schema"]), _meaning(header))
            for operation in self.operations()
            for answer in operation["responses"].values()
            for name, header in answer.get("headers", {}).items()
        }
        return sorted(rows)

    def fields(self, schema: dict[str, Any]) -> Iterator[str]:
        """A table of the fields of an object."""
        required = schema.get("required", ())
        rows = [
            (f"`{name}`", self.type(field), "yes" if name in required else "no", _meaning(field))
            for name, field in schema.get("properties", {}).items()
        ]
        yield from _table(("field", "type", "required", "meaning"), rows)

    def type(self, schema: dict[str, Any]) -> str:
        """The type of a value, in words; a name of an object is a link."""
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return f"[{name}](#{name.lower()})"
        if "const" in schema:
            return f"`{json.dumps(schema['const'])}`"
        if "enum" in schema:
            return ", ".join(f"`{value}`" for value in schema["enum"])
        if choices := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
            return " or ".join(dict.fromkeys(self.choice(choice) for choice in choices))
        if schema.get("format") == "binary":
            return "bytes"
        kind = schema.get("type", "anything")
        if kind == "array":
            return f"list{_span(schema, 'Items')} of ({self.type(schema.get('items', {}))})"
        values = schema.get("additionalProperties")
        if kind == "object" and isinstance(values, dict):
            return f"object of ({self.type(cast('dict[str, Any]', values))})"
        if kind == "string":
            return f"string{_span(schema, 'Length', ' characters')}"
        bounds = {"minimum": "from", "maximum": "to", "multipleOf": "in steps of"}
        words = [f"{word} {schema[key]:,}" for key, word in bounds.items() if key in schema]
        return " ".join([kind, *words])

    def choice(self, schema: dict[str, Any]) -> str:
        """The type of one of several forms of a value, and the name of the form."""
        title = schema.get("title")
        return f"*{title.lower()}*: {self.type(schema)}" if title else self.type(schema)


def _span(schema: dict[str, Any], what: str, unit: str = "") -> str:
    """How long a value may be, as ` of 1 to 5 characters`."""
    least, most = schema.get(f"min{what}"), schema.get(f"max{what}")
    if most is not None:
        return f" of {least or 0:,} to {most:,}{unit}"
    if least == 1:
        return " that is not empty"
    return f" of at least {least:,}{unit}" if least else ""


def _group(path: str) -> str:
    for title, starts in _GROUPS.items():
        if any(path == start or path.startswith(f"{start}/") for start in starts):
            return title
    return _ELSEWHERE


def _meaning(described: Mapping[str, Any]) -> str:
    """What a field, a parameter or a header means, and its default."""
    schema: Mapping[str, Any] = described.get("schema", described)
    default = schema.get("default")
    words = [described.get("description") or schema.get("description") or ""]
    if default is not None:
        words.append(f"Default: `{json.dumps(default)}`.")
    return _cell(" ".join(words).strip())


def _answer(answer: dict[str, Any]) -> str:
    """What an answer means; FastAPI's own words say nothing."""
    text = answer["description"]
    return "" if text == "Successful Response" else _cell(text)


def _headers(answer: dict[str, Any]) -> str:
    """The headers of an answer beside the one that every answer has."""
    names = [name for name in answer.get("headers", {}) if name != _EVERY]
    shown = [f"{_LIMITS}..." if name.startswith(_LIMITS) else name for name in names]
    return ", ".join(f"`{name}`" for name in dict.fromkeys(shown))


def _curl(path: str, kind: str, value: object) -> str:
    text = json.dumps(value, ensure_ascii=False).replace("'", "'\\''")
    return f"curl {URL}{path} -H 'Content-Type: {kind}' \\\n  -d '{text}'"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    """The lines of a table, without columns that are empty in each row; none without rows."""
    columns = [n for n in range(len(heads)) if any(row[n] for row in rows)]
    if not rows:
        return
    yield f"| {' | '.join(heads[n] for n in columns)} |"
    yield "|---" * len(columns) + "|"
    yield from (f"| {' | '.join(row[n] for n in columns)} |" for row in rows)
    yield ""


if __name__ == "__main__":
    (ROOT / "docs" / "reference.md").write_text(page(document()), encoding="utf-8")
