"""OpenAI's model objects: the list of what is served, and one model with its facts and canary."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

import orjson
from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from matryo.catalog.manifest import Manifest
from matryo.core.errors import CapacityError, EngineError
from matryo.engine import Engine
from matryo.http.context import Context, context_of
from matryo.http.openai.wire import Model, ModelDetails, ModelLimits
from matryo.service import Caller, Service
from matryo.service.canary import TEXTS, VERSION, Canary

# An answer waits so long for the canary, which is computed to its end all the same.
_CANARY_S = 5.0


def models_of(request: Request) -> Response:
    """The served models that the caller may use, the default first."""
    caller: Caller = request.scope["state"]["caller"]
    manifests = [engine.manifest for engine in context_of(request).service.directory.engines]
    models = [_model(one).model_dump() for one in manifests if caller.may_use(one.id)]
    return _json({"object": "list", "data": models})


async def details_of(request: Request) -> Response:
    """One served model, by id or alias, with everything that shapes its vectors."""
    model: str = request.path_params["model"]
    if not model:
        raise HTTPException(404)
    context = context_of(request)
    engine, _ = context.service.directory.resolve(model, param="model")
    caller: Caller = request.scope["state"]["caller"]
    caller.check_model(engine.manifest.id)
    details = _details(engine, context, request.app.version).model_dump()
    canary = await _canary(engine, context.service)
    return _json(details | {"canary": canary and _shown(canary, engine)})


def _model(manifest: Manifest) -> Model:
    return Model(
        id=manifest.id,
        object="model",
        created=manifest.created_s,
        owned_by=manifest.owned_by,
    )


def _details(engine: Engine, context: Context, version: str) -> ModelDetails:
    """A model with its facts, and without its canary."""
    service = context.service
    facts = asdict(service.facts(engine, version))
    limits = ModelLimits(
        max_tokens=facts.pop("max_tokens"),
        max_inputs=service.limits.max_texts,
        max_request_tokens=service.limits.max_tokens,
        max_body_bytes=context.body.max_bytes,
    )
    described = _model(engine.manifest).model_dump() | facts
    return ModelDetails(**described, limits=limits, canary=None)


async def _canary(engine: Engine, service: Service) -> Canary | None:
    """The canary of a model; None if there is no room for it now."""
    try:
        async with asyncio.timeout(_CANARY_S):
            return await service.canary(engine)
    except (TimeoutError, CapacityError, EngineError):
        return None


def _shown(canary: Canary, engine: Engine) -> dict[str, Any]:
    """A canary as `wire.Canary` has it. Components stay float32, which JSON then has exactly."""
    return {
        "version": VERSION,
        "texts": TEXTS,
        "dimensions": engine.manifest.output.dimensions.native,
        "vectors": {
            kind: {"sha256": canary.sha256(kind), "components": canary.components(kind)}
            for kind in canary.vectors
        },
    }


def _json(data: dict[str, Any]) -> Response:
    content = orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, media_type="application/json")
