"""The Open Inference Protocol, with the tensors of NVIDIA's embedding NIM."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from matryo.core import trace_names as names
from matryo.core.errors import InvalidRequest, UnknownModel
from matryo.engine import Engine
from matryo.grpc.aio import Methods
from matryo.grpc.calls import Call, Door, check_given, handlers_of
from matryo.grpc.messages import Message, make
from matryo.grpc.tensors import OUTPUTS, options_of, outputs_of, texts_of
from matryo.service import Answer, Options, Texts
from matryo.service.numbers import quantize

SERVICE = "inference.GRPCInferenceService"
SERVICES = (SERVICE,)
_OPEN = ("ServerLive", "ServerReady", "ModelReady")

_LIVE = make("inference.ServerLiveResponse")
_READY = make("inference.ServerReadyResponse")
_MODEL_READY = make("inference.ModelReadyResponse")
_SERVER = make("inference.ServerMetadataResponse")
_MODEL = make("inference.ModelMetadataResponse")
_INFER = make("inference.ModelInferResponse")

_VERSION = "1"
_DATATYPES = {"float32": "FP32", "int8": "INT8", "uint8": "UINT8"}
_ODD = re.compile(r"[^a-z0-9]")


async def _live(_call: Call, _: Message) -> bytes:
    """The process answers."""
    return _LIVE(live=True).SerializeToString()


async def _ready(call: Call, _: Message) -> bytes:
    """Every model ran lately."""
    return _READY(ready=call.service.why_not_ready() is None).SerializeToString()


async def _model_ready(call: Call, message: Message) -> bytes:
    """A model ran lately."""
    try:
        engine = _find(call, message.name, message.version)[1]
    except (UnknownModel, InvalidRequest):
        return _MODEL_READY(ready=False).SerializeToString()
    return _MODEL_READY(ready=call.service.why_not_ready(engine) is None).SerializeToString()


async def _server(call: Call, _: Message) -> bytes:
    """Name and version of the server."""
    return _SERVER(name="matryo", version=call.version).SerializeToString()


async def _model(call: Call, message: Message) -> bytes:
    """The tensors of a model."""
    engine = _find(call, message.name, message.version)[1]
    native = engine.manifest.output.dimensions.native
    answer = _MODEL(
        name=message.name or engine.manifest.id,
        versions=[_VERSION],
        platform="matryo",
        inputs=[{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}],
        outputs=[
            {"name": OUTPUTS[0], "datatype": "FP32", "shape": [-1, native]},
            {"name": OUTPUTS[1], "datatype": "INT32", "shape": [-1]},
        ],
    )
    return answer.SerializeToString()


async def _infer(call: Call, message: Message) -> bytes:
    """The vectors of a tensor of texts, and the tokens of each text."""
    model = _find(call, message.model_name, message.model_version)[0]
    options = options_of(message, model)
    outputs = outputs_of(message)
    texts = texts_of(message, call.service.limits)
    check_given(texts, "text")
    answer = await call.embed(options, Texts(texts))
    call.lease.grow(answer.vectors.nbytes, "answer")
    with call.span.stage(names.ENCODE):
        return _encoded(message, answer, options, outputs)


def _encoded(message: Message, answer: Answer, options: Options, outputs: Sequence[str]) -> bytes:
    """The bytes of an answer with the asked tensors."""
    tensors = {
        OUTPUTS[0]: quantize(answer.vectors, options.embedding_type),
        OUTPUTS[1]: np.array(answer.lengths, "<i4"),
    }
    found = _INFER(
        model_name=message.model_name or answer.model,
        model_version=_VERSION,
        id=message.id,
        outputs=[
            {"name": name, "datatype": _datatype(tensors[name]), "shape": tensors[name].shape}
            for name in outputs
        ],
        raw_output_contents=[tensors[name].tobytes() for name in outputs],
    )
    return found.SerializeToString()


def _datatype(tensor: np.ndarray) -> str:
    return _DATATYPES.get(tensor.dtype.name, tensor.dtype.name.upper())


def _find(call: Call, name: str, version: str) -> tuple[str | None, Engine]:
    """The name that the service knows of a model, and its engine.

    NIM writes an id in small letters, with an underscore for every other character.

    Raises:
        UnknownModel: the model is not served.
        InvalidRequest: the version is not the only one.
    """
    if version not in ("", _VERSION):
        raise InvalidRequest(
            f"Invalid model version {version[:64]!r}. A served model has version {_VERSION} alone."
        )
    directory = call.service.directory
    for engine in directory.engines:
        if _ODD.sub("_", engine.manifest.id.lower()) == name:
            return engine.manifest.id, engine
    return name or None, directory.resolve(name or None)[0]


def handlers(door: Door) -> dict[str, Methods]:
    """The service; whether the server and its models are ready, anybody may ask."""
    answers = {
        "ServerLive": _live,
        "ServerReady": _ready,
        "ModelReady": _model_ready,
        "ServerMetadata": _server,
        "ModelMetadata": _model,
        "ModelInfer": _infer,
    }
    return handlers_of(door, SERVICE, answers, keyless=_OPEN)
