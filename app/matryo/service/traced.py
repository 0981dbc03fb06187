"""What the span of a request says of embeddings, by the conventions for GenAI."""

from __future__ import annotations

from matryo.core import trace_names as names
from matryo.core.tracing import NO_SPAN, Span
from matryo.service.choices import Choices
from matryo.service.request import Options, Texts


def describe_span(span: Span, options: Options, texts: Texts, choices: Choices) -> None:
    """Put into a span what a request asks for, before any of the work is done.

    Args:
        span: of the request.
        options: what the caller chose.
        texts: of the request.
        choices: what the options mean.
    """
    if span is NO_SPAN:
        return
    model = choices.engine.manifest.id
    span.set(
        {
            names.OPERATION: names.EMBEDDINGS,
            names.PROVIDER: names.PROVIDER_VALUE,
            names.REQUEST_MODEL: _requested(options.model or model, model),
            names.RESPONSE_MODEL: model,
            names.DIMENSIONS: choices.dimensions,
            names.TEXTS: len(texts),
            names.INPUT_TYPE: choices.input_type,
            names.FINGERPRINT: choices.fingerprint,
        }
    )


def _requested(name: str, model: str) -> str:
    """The served name that a caller used, in one spelling: a metric must have few of them."""
    return model if name.lower() == model.lower() else name.lower()
