"""TEI's part of the OpenAPI document: bodies with examples, and headers of answers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from matryo.http.context import Context
from matryo.http.tei.wire import DecodeRequest, EmbedRequest, TokenizeRequest

EXAMPLES: dict[str, dict[str, dict[str, Any]]] = {
    "/embed": {
        "one": {"summary": "One text", "value": {"inputs": "The sky is blue."}},
        "several": {
            "summary": "Queries, in shorter vectors; long ones are cut at their beginning",
            "value": {
                "inputs": ["What colour is the sky?", "Is grass green?"],
                "prompt_name": "query",
                "dimensions": 256,
                "truncate": True,
                "truncation_direction": "Left",
            },
        },
        "unnormalized": {
            "summary": "What the model gives before the last step",
            "value": {"inputs": "The sky is blue.", "normalize": False},
        },
    },
    "/tokenize": {
        "one": {"summary": "One text", "value": {"inputs": "The sky is blue."}},
        "bare": {
            "summary": "Several texts, without special tokens",
            "value": {"inputs": ["sky", "grass"], "add_special_tokens": False},
        },
    },
    "/decode": {"one": {"summary": "One text", "value": {"ids": [3, 4, 5]}}},
}

PATHS = ("/embed", "/info", "/tokenize", "/decode")
"""TEI's routes in the document."""


def describe(document: dict[str, Any], context: Context) -> None:
    """Put the bodies of TEI's routes into the document.

    Args:
        document: of the application; changed.
        context: the models it serves and its limits.
    """
    kinds: dict[str, type[BaseModel]] = {
        "/embed": EmbedRequest,
        "/tokenize": TokenizeRequest,
        "/decode": DecodeRequest,
    }
    for path, kind in kinds.items():
        name = kind.__name__
        document["components"]["schemas"][name] = _schema(kind, context)
        document["paths"][path]["post"]["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": f"#/components/schemas/{name}"},
                    "examples": EXAMPLES[path],
                }
            },
        }


def _schema(kind: type[BaseModel], context: Context) -> dict[str, Any]:
    """The schema of a body, as narrow as the default model."""
    service = context.service
    engine = service.directory.engines[0]
    sizes = engine.manifest.output.dimensions
    text: dict[str, Any] = {"type": "string", "minLength": 1}
    token = {"type": "integer", "minimum": 0, "maximum": engine.vocab_size - 1}
    ids: dict[str, Any] = {"type": "array", "minItems": 1, "items": token}
    most = {} if service.limits.max_texts is None else {"maxItems": service.limits.max_texts}

    def several(items: dict[str, Any]) -> dict[str, Any]:
        return {"type": "array", "minItems": 1, "items": items} | most

    schema = kind.model_json_schema()
    fields: dict[str, Any] = schema["properties"]
    forms: dict[type[BaseModel], tuple[str, list[dict[str, Any]]]] = {
        EmbedRequest: ("inputs", [text, several(text), ids, several(ids)]),
        TokenizeRequest: ("inputs", [text, several(text)]),
        DecodeRequest: ("ids", [ids, several(ids)]),
    }
    name, allowed = forms[kind]
    fields[name] = {"description": fields[name]["description"], "oneOf": allowed}
    if "prompt_name" in fields:
        names = {"type": "string", "enum": list(engine.manifest.input_type_names)}
        fields["prompt_name"]["anyOf"] = [names, {"type": "null"}]
    if "dimensions" in fields:
        if sizes.cut and not service.defaults.strict_dimensions:
            size: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": sizes.native}
        else:
            known = {sizes.native, *(sizes.trained if sizes.cut else ())}
            size = {"type": "integer", "enum": sorted(known)}
        fields["dimensions"]["anyOf"] = [size, {"type": "null"}]
    schema["additionalProperties"] = context.unknown_fields == "warn"
    return schema
