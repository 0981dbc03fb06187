"""Who is asked for facts and vectors: a server, or the model on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any, Protocol, Self, cast
from urllib.parse import quote

import orjson
from pydantic import ValidationError

import matryo
from matryo.assembly.models import resolve_models
from matryo.assembly.service import build_local_service, local_defaults
from matryo.commands.endpoint import Endpoint, Reply
from matryo.commands.guard.facts import Asked, Canary, Facts
from matryo.commands.others import TEXTS_OF_REQUEST, Others, ask_endpoint
from matryo.commands.sources.item import Item
from matryo.core.errors import SettingsInvalid
from matryo.core.progress import TerminalReporter
from matryo.core.settings import Settings
from matryo.core.untrusted import reason_of
from matryo.service import LocalService, Options, Service, Texts
from matryo.service.canary import VERSION
from matryo.service.choices import choose

_NONE_HERE = frozenset({404, 405, 501})  # what servers answer that have no such route
_TRIES, _PAUSE_S = 5, 2.0
_SHOWN_MODELS = 10


class Source(Protocol):
    """A model that can be asked."""

    def facts(self, *, canary: bool) -> Facts | None:
        """What the model says of itself; None for a server that says nothing.

        Args:
            canary: wait for the digests of the canary's vectors. Without, they may be there.

        Raises:
            SetupError: no answer, or one that cannot be read.
        """
        ...

    def embed(self, texts: Sequence[str], asked: Asked, *, truncate: bool = False) -> Others:
        """Vectors of texts, and their fingerprint.

        Args:
            texts: none of them empty.
            asked: what to ask for.
            truncate: have texts cut that are too long, as a server of ours can.

        Raises:
            MatryoError: the model gives none.
        """
        ...


class Server:
    """A server's model.

    Args:
        endpoint: the server, entered.
        model: its name there; None for the server's default model.

    Raises:
        SettingsInvalid: the server does not say which model is its default.
    """

    def __init__(self, endpoint: Endpoint, model: str | None) -> None:
        self._endpoint = endpoint
        self._n_texts: int | None = None  # of a request, as far as the server says
        self.model = model or self._default()

    def _default(self) -> str:
        """The only model of a server, or the first of one of ours."""
        reply = self._endpoint.get("models")
        if reply.status not in _NONE_HERE and not reply.is_ok:
            self._endpoint.refuse(reply)
        try:
            ids = [str(one["id"]) for one in reply.json()["data"]]
        except (ValueError, KeyError, TypeError):
            ids = []
        if len(ids) == 1 or (ids and self._facts(ids[0])):
            return ids[0]
        has = f" It has {', '.join(ids[:_SHOWN_MODELS])}." if ids else ""
        raise SettingsInvalid(
            f"{self._endpoint.called}: the server does not say which model is its default; name "
            f"one with --model.{has}"
        )

    def facts(self, *, canary: bool) -> Facts | None:
        """See `Source`; asks again for a while where the server is too busy for the canary."""
        for last in range(_TRIES):
            found = self._facts(self.model)
            if found is None or found.canary or not canary:
                return found
            if last < _TRIES - 1:
                time.sleep(_PAUSE_S)
        raise SettingsInvalid(
            f"{self._endpoint.called}: no canary: the server has no room for one now, or a run of "
            "the model fails. Try again when it has less to do, or look at its log"
        )

    def _facts(self, model: str) -> Facts | None:
        reply = self._endpoint.get(f"models/{quote(model, safe='/', errors='surrogateescape')}")
        if reply.status in _NONE_HERE:
            return None
        if not reply.is_ok:
            self._endpoint.refuse(reply)
        return self._read(reply)

    def _read(self, reply: Reply) -> Facts | None:
        """The facts of an answer; None if these are another server's words."""
        try:
            given = reply.json()
        except ValueError:
            return None
        if not isinstance(given, dict) or "fingerprint" not in given:
            return None
        try:
            facts = Facts.model_validate_json(reply.content)
        except ValidationError as exc:
            raise SettingsInvalid(
                f"{self._endpoint.called}: what the server says of its model cannot be read "
                f"({reason_of(exc)}). Use the server's own version of Matryo"
            ) from exc
        self._n_texts = facts.limits.n_texts if facts.limits else None
        return facts

    def embed(self, texts: Sequence[str], asked: Asked, *, truncate: bool = False) -> Others:
        """See `Source`."""
        items = [Item(line, text) for line, text in enumerate(texts, 1)]
        options = _options(asked, truncate=truncate)
        most = min(self._n_texts or TEXTS_OF_REQUEST, TEXTS_OF_REQUEST)
        return ask_endpoint(self._endpoint, items, self.model, options, most)


class Local(AbstractContextManager["Local"]):
    """The first model of settings, in this process; enter it to ask.

    Args:
        settings: as for a server.
    """

    def __init__(self, settings: Settings) -> None:
        settings = resolve_models(settings.model_copy(update={"model": settings.model[:1]}))
        self.model = settings.model[0]
        self.local = LocalService(
            lambda: build_local_service(
                settings, defaults=local_defaults(settings), reporter=TerminalReporter()
            )
        )

    @property
    def service(self) -> Service:
        """The service of the model."""
        return self.local.service

    def __enter__(self) -> Self:
        """Load the model; pull and build it first, if the store lacks it.

        Raises:
            SetupError: the model cannot be made ready.
        """
        self.local.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Unload the model."""
        self.local.__exit__(kind, exc, trace)

    def facts(self, *, canary: bool = True) -> Facts:  # noqa: ARG002 - it always has one
        """See `Source`."""
        made = self.local.canary()
        digests = {kind: {"sha256": made.sha256(kind)} for kind in made.vectors}
        shown = {
            "version": VERSION,
            "dimensions": self.service.directory.engines[0].manifest.output.dimensions.native,
            "vectors": digests,
        }
        return self.described().model_copy(update={"canary": Canary.model_validate(shown)})

    def described(self) -> Facts:
        """The facts without a canary, which nothing is computed for."""
        facts = self.service.facts(self.service.directory.engines[0], matryo.__version__)
        return Facts.model_validate_json(orjson.dumps(asdict(facts)))

    def meant(self, asked: Asked) -> Asked:
        """The same wishes with the model's own name of the input type.

        Raises:
            RequestError: the model cannot give what is asked for.
        """
        service = self.service
        chosen = choose(_options(asked, truncate=False), service.directory, service.defaults)
        return replace(asked, input_type=asked.input_type and chosen.input_type)

    def embed(self, texts: Sequence[str], asked: Asked, *, truncate: bool = False) -> Others:
        """See `Source`."""
        options, service = _options(asked, truncate=truncate), self.service
        fingerprint = choose(options, service.directory, service.defaults).fingerprint
        answer = self.local.embed(options, Texts(texts))
        return Others(answer.vectors, fingerprint)


def _options(asked: Asked, *, truncate: bool) -> Options:
    return Options(
        input_type=asked.input_type,
        dimensions=asked.dimensions,
        embedding_type=cast("Any", asked.embedding_type),
        truncate=truncate,
        priority="bulk",
    )
