"""The OpenAPI document, true of this server: its models, its limits, its key.

FastAPI writes the frame from the routes; what depends on the models served (sizes, input
types, token ids) and what it cannot know (headers, examples, the key) is put in here. The
examples are run by the tests, and schemathesis holds the document against the server.
"""

from __future__ import annotations

from typing import Any, cast

from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse, Response

from matryo.http.application import Application
from matryo.http.context import Context
from matryo.http.encoderfile import document as encoderfile
from matryo.http.openai.reference import PAGE_HEADERS, render
from matryo.http.openai.wire import EmbeddingRequest
from matryo.http.raw import RAW
from matryo.http.routing import Described
from matryo.http.tei import document as tei
from matryo.service.token_arrays import LAST_RANK, SPECIAL_TOKENS

REQUEST_EXAMPLES: dict[str, dict[str, Any]] = {
    "one": {"summary": "One text", "value": {"input": "The sky is blue."}},
    "several": {
        "summary": "Several texts, shorter vectors, base64",
        "value": {
            "input": ["The sky is blue.", "Grass is green."],
            "dimensions": 256,
            "encoding_format": "base64",
        },
    },
    "query": {
        "summary": "A query",
        "value": {"input": "What colour is the sky?", "input_type": "query"},
    },
    "binary": {
        "summary": "Signs, eight to a byte; a long text is cut",
        "value": {
            "input": "The sky is blue.",
            "embedding_type": "ubinary",
            "encoding_format": "float",
            "truncate": True,
        },
    },
    "tokens": {
        "summary": "Token ids of cl100k_base, as LangChain sends them",
        "value": {"input": [[791, 13180, 374, 6437, 13]]},
    },
}

_HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "x-request-id": ("The caller's own, or a new one; quote it in reports.", {"type": "string"}),
    "openai-processing-ms": ("Milliseconds in the server.", {"type": "integer", "minimum": 0}),
    "x-matryo-fingerprint": (
        "What shaped the vectors: model, precision, weights, input type, dimensions, type.",
        {"type": "string"},
    ),
    "x-matryo-truncated": ("Texts that were cut; absent if none.", {"type": "integer"}),
    "x-matryo-unknown": (
        "Texts with characters or words that the model cannot read; absent if none.",
        {"type": "integer"},
    ),
    "x-matryo-shape": ("Of bytes: rows, and numbers of a row.", {"type": "string"}),
    "x-matryo-dtype": (
        "Of bytes: the type of a number, least significant byte first.",
        {"type": "string", "enum": ["float32", "int8", "uint8"]},
    ),
    "x-matryo-model": ("Of bytes: the model.", {"type": "string"}),
    "x-matryo-prompt-tokens": (
        "Of bytes: tokens of all texts.",
        {"type": "integer", "minimum": 0},
    ),
    "x-compute-type": ("What computed the vectors.", {"type": "string"}),
    "x-compute-time": ("Milliseconds in the server.", {"type": "integer", "minimum": 0}),
    "x-compute-characters": ("Characters, or ids, sent.", {"type": "integer", "minimum": 0}),
    "x-compute-tokens": ("Tokens of all texts.", {"type": "integer", "minimum": 0}),
    "x-total-time": ("Milliseconds in the server.", {"type": "integer", "minimum": 0}),
    "x-matryo-warning": ("A size the model was not trained for.", {"type": "string"}),
    "retry-after": (
        "Seconds to wait: at most 60, except for a quota; absent if no wait helps.",
        {"type": "integer", "minimum": 1, "maximum": 86_400},
    ),
    "retry-after-ms": (
        "Where a limit of the key is used up: milliseconds to wait.",
        {"type": "integer", "minimum": 1},
    ),
} | {
    f"x-ratelimit-{what}-{kind}": (
        f"For a key with a limit of {kind} a minute: {meaning}.",
        {"type": "string"} if what == "reset" else {"type": "integer", "minimum": 0},
    )
    for kind in ("requests", "tokens")
    for what, meaning in (
        ("limit", "the limit"),
        ("remaining", "what is left now"),
        ("reset", "the time until all of it is left, as Go writes a duration: 12ms, 6m0s"),
    )
}
_OF_KEYS = tuple(name for name in _HEADERS if name.startswith("x-ratelimit-"))
_OF_VECTORS = (
    "openai-processing-ms",
    "x-matryo-fingerprint",
    "x-matryo-truncated",
    "x-matryo-unknown",
)


_OF_BYTES = ("x-matryo-shape", "x-matryo-dtype", "x-matryo-model", "x-matryo-prompt-tokens")
_OF_TEI = (
    "x-compute-type",
    "x-compute-time",
    "x-compute-characters",
    "x-compute-tokens",
    "x-total-time",
)


def describe(application: Application, context: Context) -> dict[str, Any]:
    """The document.

    Args:
        application: its routes.
        context: the models it serves, its defaults and its keys.
    """
    document: dict[str, Any] = get_openapi(
        title=application.title,
        version=application.version,
        description=application.description,
        routes=[
            route.described() if isinstance(route, Described) else route
            for route in application.routes
        ],
    )
    if application.prefix:
        document["servers"] = [{"url": application.prefix}]
    for operations in document["paths"].values():
        for operation in operations.values():
            responses: dict[str, Any] = operation["responses"]
            if responses.get("422", {}).get("description") == "Validation Error":
                del responses["422"]  # FastAPI's own; nothing here answers it
            for status, response in responses.items():
                _add_headers(response, "x-request-id")
                if status in ("429", "503"):
                    _add_headers(response, "retry-after")
                if status == "429":
                    _add_headers(response, "retry-after-ms", *_OF_KEYS)
    schemas: dict[str, Any] = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["EmbeddingRequest"] = _request(context)
    create = document["paths"]["/v1/embeddings"]["post"]
    _add_headers(create["responses"]["200"], *_OF_VECTORS, "x-matryo-warning")
    examples = {
        name: example
        for name, example in REQUEST_EXAMPLES.items()
        if name != "tokens" or _takes_cl100k(context)
    }
    reference = {"$ref": "#/components/schemas/EmbeddingRequest"}
    content = {"application/json": {"schema": reference, "examples": examples}}
    create["requestBody"] = {"required": True, "content": content}
    ok = create["responses"]["200"]
    _add_headers(ok, *_OF_KEYS)
    ok["content"][RAW] = {"schema": {"type": "string", "format": "binary"}}
    _add_headers(ok, *_OF_BYTES)
    tei.describe(document, context)
    encoderfile.describe(document, context)
    for path, own in (("/embed", _OF_TEI), ("/predict", ())):
        ok = document["paths"][path]["post"]["responses"]["200"]
        _add_headers(ok, *own, *_OF_VECTORS[1:], "x-matryo-warning", *_OF_KEYS)
    _add_security(document, context)
    return document


def _add_security(document: dict[str, Any], context: Context) -> None:
    """Say which operations need a key, if the server has keys."""
    if not context.service.keys:
        return
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer"},
        "azure": {"type": "apiKey", "in": "header", "name": "api-key"},
    }
    for path, operations in document["paths"].items():
        if path.startswith("/v1/") or path in (*tei.PATHS, *encoderfile.PATHS):
            for operation in operations.values():
                operation["security"] = [{"key": []}, {"azure": []}]


def _add_headers(response: dict[str, Any], *names: str) -> None:
    headers = response.setdefault("headers", {})
    for name in names:
        description, schema = _HEADERS[name]
        headers[name] = {"description": description, "schema": schema}


def _takes_cl100k(context: Context) -> bool:
    return context.service.decoder is not None and context.service.decoder.available()


def _request(context: Context) -> dict[str, Any]:
    """The schema of the body, as narrow as the models served."""
    schema = EmbeddingRequest.model_json_schema()
    fields: dict[str, Any] = schema["properties"]
    fields["input"] = {"description": fields["input"]["description"], "oneOf": _inputs(context)}
    manifests = [engine.manifest for engine in context.service.directory.engines]
    sizes = [manifest.output.dimensions for manifest in manifests]
    largest = max(size.native for size in sizes)
    if any(size.cut for size in sizes) and not context.service.defaults.strict_dimensions:
        dimensions = {"type": "integer", "minimum": 1, "maximum": largest}
    else:
        trained = {n for size in sizes for n in (*size.trained, size.native) if size.cut}
        known = trained | {size.native for size in sizes}
        dimensions = {"type": "integer", "enum": sorted(known)}
    _narrow(fields["dimensions"], dimensions)
    names = dict.fromkeys(name for manifest in manifests for name in manifest.input_type_names)
    _narrow(fields["input_type"], {"type": "string", "enum": list(names)})
    if context.unknown_fields == "warn":
        schema["additionalProperties"] = True
    # Eight signs to a byte.
    packed = {"properties": {"embedding_type": {"enum": ["binary", "ubinary"]}}}
    eights = {"anyOf": [{"type": "integer", "multipleOf": 8}, {"type": "null"}]}
    schema["if"] = packed | {"required": ["embedding_type"]}
    schema["then"] = {"properties": {"dimensions": eights}}
    return schema


def _narrow(field: dict[str, Any], schema: dict[str, Any]) -> None:
    """Put `schema` in the place of what a field may be beside null."""
    field["anyOf"] = [schema, {"type": "null"}]


def _inputs(context: Context) -> list[dict[str, Any]]:
    """The forms of `input` that this server takes."""
    many: dict[str, Any] = {"type": "array", "minItems": 1}
    if (most := context.service.limits.max_texts) is not None:
        many["maxItems"] = most
    forms: list[dict[str, Any]] = [
        {"title": "One text", "type": "string"},
        {"title": "Several texts", **many, "items": {"type": "string", "minLength": 1}},
    ]
    if context.service.decoder is None:
        sizes = [engine.vocab_size for engine in context.service.directory.engines]
        token: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": min(sizes) - 1}
    elif context.service.decoder.available():
        ranks = {"type": "integer", "minimum": 0, "maximum": LAST_RANK}
        token = {"anyOf": [ranks, {"type": "integer", "enum": list(SPECIAL_TOKENS)}]}
    else:
        return forms
    array = {"type": "array", "minItems": 1, "items": token}
    return [
        *forms,
        {"title": "One text as token ids", **array},
        {"title": "Several texts as token ids", **many, "items": array},
    ]


def install(application: Application, *, has_page: bool = False) -> None:
    """Have `/openapi.json` and `/docs` show `describe`'s document; made when first asked for.

    Args:
        application: its routes.
        has_page: whether `/` has the page for people.
    """

    def openapi() -> dict[str, Any]:
        if application.openapi_schema is None:
            application.openapi_schema = describe(application, application.state.context)
        return application.openapi_schema

    async def docs() -> Response:
        """The document as a page for people."""
        return HTMLResponse(render(openapi(), has_page=has_page), headers=PAGE_HEADERS)

    cast("Any", application).openapi = openapi
    application.add_api_route(
        "/docs", docs, methods=["GET", "HEAD"], name="/docs", include_in_schema=False
    )
