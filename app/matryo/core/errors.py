"""The errors that a caller or an operator may see, as one tree, and `CallerGone`.

    MatryoError
    ├─ RequestError    the caller must change the request
    │   ├─ InvalidRequest      a field, type or value that the API does not allow
    │   │   ├─ TooManyTexts       more inputs than a request may have
    │   │   ├─ EmptyInput         no input, or an input without a character or an id
    │   │   └─ NotJson            a body that is not JSON
    │   ├─ ContextTooLong      an input over the model's token limit
    │   ├─ TooManyTokens       more tokens than the inputs of a request may have together
    │   ├─ BadDimensions       an output size that the model cannot give
    │   ├─ FingerprintMismatch vectors of another fingerprint than the caller expects
    │   ├─ Unauthorized        no API key, or a wrong one
    │   ├─ UnknownModel        a model that the server does not serve
    │   ├─ ModelForbidden      a model that the caller's key may not use
    │   ├─ UnknownFile, UnknownBatch   an id of the Batch API that the caller does not have
    │   ├─ FileTooLarge        a file of more bytes than the Batch API takes
    │   ├─ BatchConflict       a batch whose status forbids what the caller wants
    │   ├─ BatchOff            a route of the Batch API on a server without it
    │   ├─ BodyTooLarge        a body of more bytes than the server reads
    │   ├─ BodyTimeout         a body that did not arrive in time
    │   │   └─ UploadTooSlow      a file that came too slowly
    │   ├─ RangeNotSatisfiable a part of a file that begins behind its end
    │   ├─ DeadlinePassed      a request not finished when its caller stopped waiting
    │   └─ UnsupportedMedia    a body that is not plain JSON
    ├─ CapacityError   the caller may try again later
    │   ├─ Overloaded          the queue has no room for the whole request
    │   │   └─ WaitTooLong        the answer would come too late
    │   ├─ LimitReached        a limit of the caller's key is used up
    │   │   ├─ RequestRateReached  too many requests in a minute
    │   │   ├─ TokenRateReached    too many tokens in a minute
    │   │   ├─ TooManyForRate      more tokens at once than the key has in a minute
    │   │   ├─ QuotaReached        too many tokens in a day
    │   │   └─ StorageQuotaReached too many bytes, files or batches of the Batch API
    │   ├─ StorageFull         the disk or the database of the Batch API has no room
    │   └─ NotReady            the service is starting or draining, or has no live worker
    │       ├─ StorageUnavailable  the database or the store of the Batch API does not answer
    │       ├─ Stopping            the service is shutting down
    │       └─ Abandoned           the service shut down before the request was done
    ├─ EngineError     a fault of the server
    │   ├─ InferenceFailed     a run raised, or gave values that are not finite
    │   └─ StorageDamaged      the Batch API's store lacks bytes that its database knows
    └─ SetupError      the operator must change a setting, a file or the disk
        ├─ SettingsInvalid, ManifestInvalid, ModelNotFound
        ├─ PullFailed, CheckpointMismatch, StoreFull, StoreUnwritable
        └─ UnsupportedArchitecture, BuildFailed, ArtifactMissing, ArtifactDamaged

A message says what was wrong, the value, the limit and the remedy. Values that code may need are
attributes. Only `matryo.http.errors` maps an error to an HTTP status, and only
`matryo.grpc.errors` to a gRPC code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from matryo.core.printable import cut, escaped


class MatryoError(Exception):
    """Base of every error above.

    Attributes:
        message: a text for the caller or the operator; `str()` gives it too.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        """Message and attributes: a process may raise what another one has caught.

        By itself Python calls the class with the message alone, which few of these classes take.
        """
        return _rebuilt, (type(self), self.message, vars(self))


def _rebuilt(kind: type[MatryoError], message: str, attributes: dict[str, Any]) -> MatryoError:
    error = kind.__new__(kind, message)
    error.__dict__ |= attributes
    return error


class CallerGone(Exception):
    """The caller disconnected before the answer. Nobody can read a message, so there is none."""


# --- the caller must change the request


class RequestError(MatryoError):
    """A request that cannot succeed unless the caller changes it.

    Attributes:
        param: `param` of OpenAI's error object, the field of the body that is wrong.
        code: `code` of OpenAI's error object; None if OpenAI has no code for the error.
        model: what the request calls the model, empty for the default one; None where the request
            cannot be read that far.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.model: str | None = None


class InvalidRequest(RequestError):
    """A field, type or value that the API does not allow."""


class EmptyInput(InvalidRequest):
    """A request without an input, or with an input that has no character and no id."""


class NotJson(InvalidRequest):
    """A body that is not JSON."""


class ContextTooLong(RequestError):
    """An input has more tokens than the model's limit, or more characters than are read.

    Attributes:
        index: index of the input in the request; None if the request's input is a bare string.
        n_tokens: tokens of the input, with prefix and special tokens.
        exact: False if counting stopped early. The input then has at least `n_tokens`.
        max_tokens: the model's limit.
    """

    def __init__(
        self,
        *,
        index: int | None,
        n_tokens: int,
        max_tokens: int,
        exact: bool = True,
        max_chars: int | None = None,
        remedy: str = 'Please reduce your prompt, or send "truncate": true to have it cut.',
    ) -> None:
        name = "input" if index is None else f"input[{index}]"
        count = f"{n_tokens}" if exact else f"at least {n_tokens}"
        # OpenAI's API has used both sentences, and clients parse either of them.
        message = (
            f"Invalid '{name}': maximum input length is {max_tokens} tokens. "
            f"This model's maximum context length is {max_tokens} tokens, however you requested "
            f"{count} tokens ({count} in your prompt; 0 for the completion). {remedy}"
        )
        if n_tokens <= max_tokens:  # the tokens that were counted are few: blanks, or one word
            message = (
                f"Invalid '{name}': maximum input length is {max_chars} characters, but the input "
                f"has more. This model's maximum context length is {max_tokens} tokens. {remedy}"
            )
        super().__init__(message)
        self.index = index
        self.n_tokens = n_tokens
        self.exact = exact
        self.max_tokens = max_tokens
        self._max_chars = max_chars

    def advising(self, remedy: str) -> ContextTooLong:
        """The same error with another remedy, for a caller who sends no JSON."""
        return ContextTooLong(
            index=self.index,
            n_tokens=self.n_tokens,
            max_tokens=self.max_tokens,
            exact=self.exact,
            max_chars=self._max_chars,
            remedy=remedy,
        )


class TooManyTexts(InvalidRequest):
    """A request has too many inputs.

    Attributes:
        n_texts: number of inputs, as far as they were counted.
        max_texts: most inputs of a request.
    """

    def __init__(self, *, n_texts: int, max_texts: int, exact: bool = True) -> None:
        found = f"an array with length {n_texts} instead" if exact else f"at least {n_texts} items"
        super().__init__(
            f"Invalid 'input': array too long. Expected an array with maximum length {max_texts}, "
            f"but got {found}. Send the inputs in several requests.",
            param="input",
            code="array_above_max_length",
        )
        self.n_texts = n_texts
        self.max_texts = max_texts


class TooManyTokens(RequestError):
    """The inputs of a request have too many tokens together.

    Attributes:
        n_tokens: tokens of all inputs, as far as they were counted.
        max_tokens: most tokens of a request.
    """

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
    """An output size that the model cannot give, or that the operator does not allow."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="dimensions", code="invalid_value")


class FingerprintMismatch(RequestError):
    """A request whose vectors would have another fingerprint than its caller expects.

    Attributes:
        expected: what the caller sent, whole.
        fingerprint: of the vectors that the server would give.
    """

    def __init__(
        self, *, expected: str, fingerprint: str, differing: Sequence[str], by_request: bool
    ) -> None:
        what = " and ".join(differing)
        remedy = "Use the model, precision and build that the index was made with"
        if not differing:
            what, remedy = "number of parts", "Expect what x-matryo-fingerprint says of a vector"
        elif by_request:
            remedy = "Ask for the input type, dimensions and number type of the index"
        super().__init__(
            f"Expected vectors with the fingerprint '{cut(escaped(expected), 256)}', "
            f"but they would have '{fingerprint}': another {what}. {remedy}; or embed the index "
            "again, and expect the new fingerprint.",
            code="fingerprint_mismatch",
        )
        self.expected = expected
        self.fingerprint = fingerprint


class Unauthorized(RequestError):
    """A request without an API key, or with a key that the server does not know."""


class UnknownModel(RequestError):
    """A model name that is neither a served model nor an alias of one.

    Attributes:
        name: the name in the request.
    """

    def __init__(self, name: str, *, served: tuple[str, ...], param: str | None = None) -> None:
        super().__init__(
            f"The model `{name}` does not exist or you do not have access to it. "
            f"This server serves: {', '.join(served)}.",
            param=param,
            code="model_not_found",
        )
        self.name = name


class ModelForbidden(RequestError):
    """A model that the server has and that the caller's key may not use.

    OpenAI's API answers 403 with the same words and code for a project without access.
    """

    def __init__(self, model_id: str, *, key: str, allowed: Sequence[str]) -> None:
        models = ", ".join(allowed) or "no model that this server serves"
        super().__init__(
            f"The API key `{key}` does not have access to model `{model_id}`. It may use: "
            f"{models}.",
            param="model",
            code="model_not_found",
        )


class UnknownFile(RequestError):
    """An id that is no file of the caller's, whether another caller has it or nobody."""

    def __init__(self, file_id: str, *, param: str | None = "id") -> None:
        super().__init__(f"No such File object: {file_id}", param=param)


class UnknownBatch(RequestError):
    """An id that is no batch of the caller's, whether another caller has it or nobody."""

    def __init__(self, batch_id: str, *, param: str | None = None) -> None:
        super().__init__(f"No batch found with id '{batch_id}'.", param=param)


class FileTooLarge(RequestError):
    """A file of more bytes than the Batch API takes."""

    def __init__(self, *, max_bytes: int) -> None:
        super().__init__(
            f"The file is larger than {max_bytes} bytes, the most this server takes. Upload its "
            "lines as several files, or raise MATRYO_BATCH_MAX_FILE_BYTES.",
            param="file",
            code="file_too_large",
        )


class BatchConflict(RequestError):
    """A batch whose status forbids what the caller wants."""

    def __init__(self, status: str) -> None:
        super().__init__(f"Cannot cancel a batch with status '{status}'.")


class BodyTooLarge(RequestError):
    """A body of more bytes than the server reads.

    Attributes:
        max_bytes: most bytes that the server reads.
    """

    def __init__(self, *, max_bytes: int) -> None:
        super().__init__(
            f"The request body is larger than {max_bytes} bytes, the most this server reads. "
            "Send the inputs in several requests, or raise MATRYO_MAX_BODY_BYTES.",
            code="request_too_large",
        )
        self.max_bytes = max_bytes


class BatchOff(RequestError):
    """A route of the Batch API on a server whose operator has not turned that API on."""

    def __init__(self) -> None:
        super().__init__(
            "The Batch API, /v1/files and /v1/batches, is off on this server. Its operator turns "
            "the API on with MATRYO_BATCH=true.",
            code="batch_off",
        )


class RangeNotSatisfiable(RequestError):
    """A part of a file that begins behind the file's end.

    Attributes:
        n_bytes: of the file.
    """

    def __init__(self, *, n_bytes: int) -> None:
        super().__init__(
            f"The header Range asks for bytes behind the end of the file, which has {n_bytes} "
            "bytes. Ask for bytes before the end, or leave the header out.",
            code="range_not_satisfiable",
        )
        self.n_bytes = n_bytes


class BodyTimeout(RequestError):
    """A body that did not arrive completely in time."""

    def __init__(self, message: str = "", *, timeout_s: float) -> None:
        super().__init__(
            message or f"The request body did not arrive within {timeout_s:g} s. Send it again.",
            code="request_timeout",
        )


class UploadTooSlow(BodyTimeout):
    """A file that came too slowly, or stopped to come."""

    def __init__(self, *, timeout_s: float, min_rate: int) -> None:
        super().__init__(
            f"The file came at less than {min_rate} bytes a second (MATRYO_MIN_READ_RATE), or "
            f"nothing of the file came for {timeout_s:g} s (MATRYO_BODY_TIMEOUT_S). Send the file "
            "again over a faster connection, or in parts.",
            timeout_s=timeout_s,
        )


class DeadlinePassed(RequestError):
    """A request that was not finished when its caller stopped waiting."""

    def __init__(self, *, timeout_s: float) -> None:
        super().__init__(
            f"The request was not done within {timeout_s:g} s, the time that its client announced "
            "(x-stainless-read-timeout, or a gRPC deadline). Send fewer texts at once, or wait "
            "longer.",
            code="request_timeout",
        )


class UnsupportedMedia(RequestError):
    """A body that is not plain `application/json`."""


# --- the caller may try again later


class CapacityError(MatryoError):
    """A request that may succeed if the caller sends it again later.

    Attributes:
        retry_after_s: whole seconds to wait, 1 to 60. The official clients ignore larger values:
            openai-python 1.x above 60, 2.x and 3.x above 120.
        reason: what the request was refused for, as a label of `matryo_rejections_total`; empty
            where the request was not refused for want of room.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1, reason: str = "") -> None:
        super().__init__(message)
        self.retry_after_s = min(60, max(1, int(retry_after_s + 0.999)))
        self.reason = reason


class Overloaded(CapacityError):
    """The queue has no room for the whole request.

    Attributes:
        resource: the resource that is used up, such as `queued tokens`.
        requested: amount that the request needs.
        used: amount that other requests hold.
        limit: amount that exists.
    """

    def __init__(
        self,
        *,
        resource: str,
        requested: int,
        used: int,
        limit: int,
        retry_after_s: float,
        reason: str = "",
    ) -> None:
        super().__init__("", retry_after_s=retry_after_s, reason=reason)
        self.resource = resource
        self.requested = requested
        self.used = used
        self.limit = limit
        self.message = (
            f"Rate limit reached on {resource}: Limit {limit}, Used {used}, "
            f"Requested {requested}. Please try again in {self.retry_after_s}s."
        )
        self.args = (self.message,)


class WaitTooLong(Overloaded):
    """A request whose answer would come later than the server, or its caller, allows.

    Attributes:
        expected_s: seconds until the answer, by the measured speed of the models.
        limit_s: most seconds that are allowed.
    """

    def __init__(
        self, *, expected_s: float, limit_s: float, by_caller: bool, retry_after_s: float
    ) -> None:
        super().__init__(
            resource="seconds of wait",
            requested=round(expected_s),
            used=0,
            limit=round(limit_s),
            retry_after_s=retry_after_s,
        )
        self.expected_s = expected_s
        self.limit_s = limit_s
        limit = (
            f"its client waits at most {limit_s:.3g} s (x-stainless-read-timeout, or a gRPC "
            "deadline)"
            if by_caller
            else f"the limit is {limit_s:.3g} s (MATRYO_MAX_WAIT_S)"
        )
        self.message = (
            f"The answer to this request is expected in {expected_s:.3g} s, and {limit}. "
            f"Please try again in {self.retry_after_s}s, or send fewer texts at once."
        )
        self.args = (self.message,)


class LimitReached(CapacityError):
    """A limit of the caller's key is used up.

    Attributes:
        retry_after_ms: milliseconds until the same request would pass, if the key has no other
            caller; None if it never would.
        code: `code` of OpenAI's error object.
        is_worth_retrying: whether a client should send the request again by itself.
    """

    code = "rate_limit_exceeded"
    is_worth_retrying = True

    def __init__(self, message: str, *, wait_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_ms = None if wait_s is None else max(1, math.ceil(wait_s * 1000))
        # A bucket is full after a minute. Only a quota has a longer wait, and nobody should retry.
        self.retry_after_s = max(1, math.ceil((wait_s or 0) - 1e-6))


class RequestRateReached(LimitReached):
    """The key has no request left."""

    def __init__(self, *, key: str, limit: int, used: int, requested: int, wait_s: float) -> None:
        super().__init__(_reached("requests", key, limit, used, requested, wait_s), wait_s=wait_s)


class TokenRateReached(LimitReached):
    """The key has fewer tokens left than the request has."""

    def __init__(self, *, key: str, limit: int, used: int, requested: int, wait_s: float) -> None:
        super().__init__(_reached("tokens", key, limit, used, requested, wait_s), wait_s=wait_s)


def _reached(
    what: Literal["requests", "tokens"],
    key: str,
    limit: int,
    used: int,
    requested: int,
    wait_s: float,
) -> str:
    """OpenAI's sentence, which clients read."""
    short = {"requests": "RPM", "tokens": "TPM"}[what]
    return (
        f"Rate limit reached for API key `{key}` on {what} per min ({short}): Limit {limit}, "
        f"Used {used}, Requested {requested}. Please try again in "
        f"{math.ceil(wait_s * 1000) / 1000:g}s."
    )


class TooManyForRate(LimitReached):
    """The request has more tokens than the key may use in a minute: it can never pass."""

    is_worth_retrying = False

    def __init__(self, *, key: str, limit: int, requested: int) -> None:
        super().__init__(
            f"Request too large for API key `{key}` on tokens per min (TPM): Limit {limit}, "
            f"Requested {requested}. Send the inputs in several requests.",
            wait_s=None,
        )


class QuotaReached(LimitReached):
    """The key has fewer tokens left for the day than the request has."""

    code = "insufficient_quota"
    is_worth_retrying = False

    def __init__(self, *, key: str, limit: int, used: int, requested: int, wait_s: float) -> None:
        super().__init__(
            f"You exceeded your current quota of tokens per day, of API key `{key}`: Limit "
            f"{limit}, Used {used}, Requested {requested}. The quota begins anew at midnight UTC; "
            "ask the operator for more.",
            wait_s=wait_s,
        )


class StorageQuotaReached(LimitReached):
    """The key has no room left for a file or a batch."""

    code = "insufficient_quota"
    is_worth_retrying = False

    def __init__(
        self,
        *,
        what: Literal["bytes of files", "files", "unfinished batches"],
        key: str,
        limit: int,
        used: int,
        requested: int,
    ) -> None:
        whose = f" of API key `{key}`" if key else ""
        remedy = (
            "Cancel batches, or wait until they end"
            if what == "unfinished batches"
            else "Delete files that you no longer need"
        )
        super().__init__(
            f"You exceeded your current quota of {what}{whose}: Limit {limit}, Used {used}, "
            f"Requested {requested}. {remedy}, or ask the operator for more.",
            wait_s=None,
        )


class StorageFull(CapacityError):
    """The disk, or the database, of the Batch API has no room.

    The operator must make room, thus a client should not send the bytes again by itself.
    """

    def __init__(self) -> None:
        super().__init__(
            "The server has no room to store this. Please try again later; the operator of this "
            "server must make room.",
            retry_after_s=60,
        )


class NotReady(CapacityError):
    """The service is starting, draining, or has no live worker."""


class StorageUnavailable(NotReady):
    """The database, or the store of bytes, of the Batch API does not answer."""

    def __init__(self) -> None:
        super().__init__(
            "The storage of this server's Batch API does not answer at the moment. Please try "
            "again.",
            retry_after_s=5,
        )


class Stopping(NotReady):
    """The service is shutting down, and admits nothing more."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down. Please try again on another one.")


class Abandoned(NotReady):
    """The service shut down before a request that it had taken was done."""

    def __init__(self) -> None:
        super().__init__("The server shut down before this request's turn.")


# --- a fault of the server


class EngineError(MatryoError):
    """A fault of the server. The caller sees only the id of the request."""


class InferenceFailed(EngineError):
    """A run raised, or gave values that are not finite."""


class StorageDamaged(EngineError):
    """The Batch API's store lacks bytes that its database knows, or has others."""


# --- the operator must change a setting, a file or the disk


class SetupError(MatryoError):
    """A fault of a setting, a file or the disk, found before the service starts.

    A message may quote names from a file. Characters that could change a terminal are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_printable(message))


def _printable(message: str) -> str:
    """The message with every character escaped that is neither printable nor a line's end."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in message)


class SettingsInvalid(SetupError):
    """A setting whose value is not allowed."""


class ManifestInvalid(SetupError):
    """A `model.toml` with a missing, unknown or wrong entry."""


class ModelNotFound(SetupError):
    """A model id that the catalog does not have."""


class PullFailed(SetupError):
    """A file that could not be downloaded."""


class CheckpointMismatch(SetupError):
    """A checkpoint file that differs from what the manifest or its own header says."""


class StoreFull(SetupError):
    """The disk of the store has too little free space."""


class StoreUnwritable(SetupError):
    """A store that this process may not write to."""


class UnsupportedArchitecture(SetupError):
    """A `model_type`, or a value of the config, that no architecture module can build."""


class BuildFailed(SetupError):
    """A graph that ONNX Runtime cannot run, or that does not compute what the checkpoint says."""


class ArtifactMissing(SetupError):
    """The store has no artefact of a model in a precision."""


class ArtifactDamaged(SetupError):
    """An artefact with a file that is not the one that was built, or that cannot be loaded."""
