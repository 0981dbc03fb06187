"""The errors that reach a caller or an operator, as one tree; and `CallerGone`, which nobody reads.

    MatryoError
    ├─ RequestError    the caller can fix it
    │   ├─ InvalidRequest      body, type or value that the contract does not allow
    │   │   └─ TooManyTexts       more inputs than one request may have
    │   ├─ ContextTooLong      one input over the model's token limit
    │   ├─ TooManyTokens       more tokens than all inputs of one request may have
    │   ├─ BadDimensions       output size the model cannot give
    │   ├─ Unauthorized        no API key, or a wrong one
    │   ├─ UnknownModel        name that nothing here serves
    │   ├─ BodyTooLarge        more bytes than the server reads
    │   ├─ BodyTimeout         body that did not arrive in time
    │   ├─ DeadlinePassed      answer that was not ready when the caller stopped waiting
    │   └─ UnsupportedMedia    body that is not plain JSON
    ├─ CapacityError   try again later
    │   ├─ Overloaded          the queue has no room for the whole request
    │   └─ NotReady            starting, draining, or without a live worker
    ├─ EngineError     our fault
    │   └─ InferenceFailed     the run raised, or gave values that are not finite
    └─ SetupError      the operator can fix it, before anything is served
        ├─ SettingsInvalid, ManifestInvalid, ModelNotFound
        ├─ PullFailed, CheckpointMismatch, StoreFull, StoreUnwritable
        └─ UnsupportedArchitecture, BuildFailed, ArtifactMissing, ArtifactDamaged

Facts are fields; the message says what was wrong, the value, the limit and the
remedy. Only `matryo.http.errors` knows which HTTP status an error becomes.
"""

from __future__ import annotations


class MatryoError(Exception):
    """Base of every error above; `str()` is a message fit for its reader."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class CallerGone(Exception):
    """The caller left before the answer: nobody reads an error, so this one has no message."""


# --- the caller can fix it


class RequestError(MatryoError):
    """A request that can never succeed as it is.

    Attributes:
        param: the body's field at fault, in OpenAI's error object.
        code: OpenAI's machine-readable code, where it has one.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class InvalidRequest(RequestError):
    """A field, type or value that the contract does not allow."""


class ContextTooLong(RequestError):
    """One input has more tokens than the model takes.

    Both of OpenAI's sentences are kept, because clients parse either.

    Attributes:
        index: place of the input in the request; None if it came as a bare string.
        n_tokens: its tokens, with prefix and special tokens.
        exact: False when counting stopped early, so that there are at least `n_tokens`.
        max_tokens: the model's limit.
    """

    def __init__(
        self, *, index: int | None, n_tokens: int, max_tokens: int, exact: bool = True
    ) -> None:
        name = "input" if index is None else f"input[{index}]"
        count = f"{n_tokens}" if exact else f"at least {n_tokens}"
        super().__init__(
            f"Invalid '{name}': maximum input length is {max_tokens} tokens. "
            f"This model's maximum context length is {max_tokens} tokens, however you requested "
            f"{count} tokens ({count} in your prompt; 0 for the completion). "
            'Please reduce your prompt, or send "truncate": true to have it cut.'
        )
        self.index = index
        self.n_tokens = n_tokens
        self.exact = exact
        self.max_tokens = max_tokens


class TooManyTexts(InvalidRequest):
    """One request has too many inputs.

    Attributes:
        n_texts: how many it has.
        max_texts: how many it may have.
    """

    def __init__(self, *, n_texts: int, max_texts: int) -> None:
        super().__init__(
            f"Invalid 'input': array too long. Expected an array with maximum length {max_texts}, "
            f"but got an array with length {n_texts} instead. Send the inputs in several requests.",
            param="input",
            code="array_above_max_length",
        )
        self.n_texts = n_texts
        self.max_texts = max_texts


class TooManyTokens(RequestError):
    """The inputs of one request have too many tokens together."""

    def __init__(self, *, n_tokens: int, max_tokens: int, exact: bool = True) -> None:
        count = f"{n_tokens}" if exact else f"at least {n_tokens}"
        super().__init__(
            f"Requested {count} tokens, max {max_tokens} tokens per request. "
            "Send the inputs in several requests.",
            code="max_tokens_per_request",
        )
        self.n_tokens = n_tokens
        self.max_tokens = max_tokens


class BadDimensions(RequestError):
    """An output size that the model cannot, or may not, give."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="dimensions", code="invalid_value")


class Unauthorized(RequestError):
    """No API key, or one that is not among the server's."""


class UnknownModel(RequestError):
    """A model name that is neither served nor an alias."""

    def __init__(self, name: str, *, served: tuple[str, ...], param: str | None = None) -> None:
        super().__init__(
            f"The model `{name}` does not exist or you do not have access to it. "
            f"This server serves: {', '.join(served)}.",
            param=param,
            code="model_not_found",
        )
        self.name = name


class BodyTooLarge(RequestError):
    """A body of more bytes than the server reads."""

    def __init__(self, *, max_bytes: int) -> None:
        super().__init__(
            f"The request body is larger than {max_bytes} bytes, the most this server reads. "
            "Send the inputs in several requests, or raise MATRYO_MAX_BODY_BYTES.",
            code="request_too_large",
        )
        self.max_bytes = max_bytes


class BodyTimeout(RequestError):
    """A body that did not arrive whole in time."""

    def __init__(self, *, timeout_s: float) -> None:
        super().__init__(
            f"The request body did not arrive within {timeout_s:g} s. Send it again.",
            code="request_timeout",
        )


class DeadlinePassed(RequestError):
    """A request that was not done when its caller stopped waiting."""

    def __init__(self, *, timeout_s: float) -> None:
        super().__init__(
            f"The request was not done within {timeout_s:g} s, the read timeout that its client "
            "announced (x-stainless-read-timeout). Send fewer texts at once, or wait longer.",
            code="request_timeout",
        )


class UnsupportedMedia(RequestError):
    """A body that is not plain `application/json`."""


# --- try again later


class CapacityError(MatryoError):
    """A request that may succeed a little later.

    Attributes:
        retry_after_s: whole seconds to wait, 1 to 60: the official clients give up
            above 60 (openai-python 1.x) or 120 (2.x, 3.x).
    """

    def __init__(self, message: str, *, retry_after_s: float = 1) -> None:
        super().__init__(message)
        self.retry_after_s = min(60, max(1, int(retry_after_s + 0.999)))


class Overloaded(CapacityError):
    """The queue has no room for the whole request.

    Attributes:
        resource: what there is too little of, such as `queued tokens`.
        requested: how much of it the request takes.
        used: how much is taken.
        limit: how much there is.
    """

    def __init__(
        self, *, resource: str, requested: int, used: int, limit: int, retry_after_s: float
    ) -> None:
        super().__init__("", retry_after_s=retry_after_s)
        self.resource = resource
        self.requested = requested
        self.used = used
        self.limit = limit
        self.message = (
            f"Rate limit reached on {resource}: Limit {limit}, Used {used}, "
            f"Requested {requested}. Please try again in {self.retry_after_s}s."
        )
        self.args = (self.message,)


class NotReady(CapacityError):
    """The service is starting, draining, or has no live worker."""


# --- our fault


class EngineError(MatryoError):
    """A fault of the server; the caller sees only a request id."""


class InferenceFailed(EngineError):
    """A run raised, or gave values that are not finite."""


# --- the operator can fix it


class SetupError(MatryoError):
    """A fault of settings, files or disk, met before anything is served."""


class SettingsInvalid(SetupError):
    """A setting with a value that cannot be used."""


class ManifestInvalid(SetupError):
    """A `model.toml` that does not say what a model needs."""


class ModelNotFound(SetupError):
    """A model id for which there is no folder."""


class PullFailed(SetupError):
    """A checkpoint that could not be fetched."""


class CheckpointMismatch(SetupError):
    """A checkpoint file that is not what the manifest, or its own header, says."""


class StoreFull(SetupError):
    """Not enough room on the disk of the store."""


class StoreUnwritable(SetupError):
    """A store that this user may not write."""


class UnsupportedArchitecture(SetupError):
    """A `model_type` or config value for which there is no graph."""


class BuildFailed(SetupError):
    """A graph that was built but does not compute what the checkpoint says."""


class ArtifactMissing(SetupError):
    """No artefact for this model and precision."""


class ArtifactDamaged(SetupError):
    """An artefact whose files are not the ones that were built."""
