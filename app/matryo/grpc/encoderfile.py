"""Encoderfile's service of sentence embeddings.

A message names no model: the default one answers, or the one in the metadata `model`.
"""

from __future__ import annotations

from matryo.core import trace_names as names
from matryo.grpc.aio import Methods
from matryo.grpc.calls import Call, Door, check_given, handlers_of
from matryo.grpc.messages import Message, make
from matryo.grpc.wire import rows
from matryo.service import Options, Texts

SERVICE = "encoderfile.sentence_embedding.SentenceEmbeddingInference"
SERVICES = (SERVICE,)

_ANSWER = make("encoderfile.sentence_embedding.SentenceEmbeddingResponse")
_METADATA_ANSWER = make("encoderfile.metadata.GetModelMetadataResponse")

_SENTENCE_EMBEDDING = 4  # of ModelType


async def _predict(call: Call, message: Message) -> bytes:
    """The vectors of the texts; texts over the model's limit are cut, as Encoderfile cuts them."""
    call.service.limits.check_texts(len(message.inputs))
    texts = list(message.inputs)
    check_given(texts, "inputs")
    answer = await call.embed(Options(call.model, truncate=True), Texts(texts))
    call.lease.grow(answer.vectors.nbytes, "answer")
    with call.span.stage(names.ENCODE):
        facts = _ANSWER(model_id=answer.model, metadata=dict(message.metadata))
        return rows(1, 1, answer.vectors) + facts.SerializeToString()


async def _metadata(call: Call, _: Message) -> bytes:
    """What kind of model answers."""
    engine, _suffix = call.service.directory.resolve(call.model)
    answer = _METADATA_ANSWER(model_id=engine.manifest.id, model_type=_SENTENCE_EMBEDDING)
    return answer.SerializeToString()


def handlers(door: Door) -> dict[str, Methods]:
    """The service."""
    answers = {"Predict": _predict, "GetModelMetadata": _metadata}
    return handlers_of(door, SERVICE, answers)
