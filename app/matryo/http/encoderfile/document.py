"""Encoderfile's part of the OpenAPI document: the body of `/predict`, with examples."""

from __future__ import annotations

from typing import Any

from matryo.http.context import Context
from matryo.http.encoderfile.wire import PredictRequest

EXAMPLES: dict[str, dict[str, Any]] = {
    "several": {
        "summary": "Two texts",
        "value": {"inputs": ["The sky is blue.", "Grass is green."]},
    },
    "metadata": {
        "summary": "Strings that come back",
        "value": {"inputs": ["The sky is blue."], "metadata": {"source": "page 1"}},
    },
}

PATHS = ("/predict", "/model")
"""Encoderfile's routes in the document."""


def describe(document: dict[str, Any], context: Context) -> None:
    """Put the body of `/predict` into the document.

    Args:
        document: of the application; changed.
        context: the limits of a request.
    """
    schema = PredictRequest.model_json_schema()
    inputs = schema["properties"]["inputs"]
    text: dict[str, Any] = {"type": "string", "minLength": 1}
    several: dict[str, Any] = {"type": "array", "minItems": 1, "items": text}
    if (most := context.service.limits.max_texts) is not None:
        several["maxItems"] = most
    schema["properties"]["inputs"] = {
        "description": inputs["description"],
        "oneOf": [several, text],
    }
    schema["additionalProperties"] = context.unknown_fields == "warn"
    document["components"]["schemas"]["PredictRequest"] = schema
    document["paths"]["/predict"]["post"]["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/PredictRequest"},
                "examples": EXAMPLES,
            }
        },
    }
