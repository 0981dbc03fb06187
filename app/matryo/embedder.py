"""`matryo.Embedder`: the server's vectors in a Python program, without a server."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from matryo.assembly.service import build_local_service
from matryo.core.choices import PrecisionChoice
from matryo.core.environment import load_settings
from matryo.core.errors import InvalidRequest, SetupError
from matryo.engine.postprocess import FloatArray
from matryo.service import LocalService, Options, Texts
from matryo.service.choices import Choices, choose
from matryo.service.limits import WINDOW_TEXTS


class Embedder:
    """A model in this process; gives the vectors of a server with the same settings, bit for bit.

    The model is loaded at the first use, in the process that uses it: pulled and built before,
    if the store lacks it. So an embedder can be pickled and sent to workers. Calls may come from
    several threads.

    Args:
        model: id of a model, for instance `nomic-embed-text-v1.5`; or the path of a checkpoint, or
            `org/name` on the hub, as `matryo serve --model` takes them.
        precision: `fp32`, `int8`, `q8`, `q4`, or `auto` (`int8` where the model offers it).
        dimensions: output size; None for the model's own.
        input_type: what the texts are for: `query`, `document`, `classification`, `clustering`,
            another prompt of the model, or `none` for no prefix.
        truncate: cut texts over the model's limit; False refuses them.
        threads: cores to use; None for all that this process may use.
        home: the store; None for `MATRYO_HOME`, or its default.

    Example:
        >>> with Embedder("all-minilm-l6-v2", dimensions=256) as embedder:
        ...     embedder.embed(["The sky is blue."]).shape
        (1, 256)
    """

    def __init__(
        self,
        model: str = "nomic-embed-text-v1.5",
        *,
        precision: PrecisionChoice = "fp32",
        dimensions: int | None = None,
        input_type: str = "document",
        truncate: bool = False,
        threads: int | None = None,
        home: str | Path | None = None,
    ) -> None:
        self._arguments: dict[str, Any] = {
            "model": model,
            "precision": precision,
            "dimensions": dimensions,
            "input_type": input_type,
            "truncate": truncate,
            "threads": threads,
            "home": home,
        }
        self._options = Options(
            input_type=input_type, dimensions=dimensions, truncate=truncate, priority="bulk"
        )
        self._lock = threading.Lock()
        self._local: LocalService | None = None
        self._pid = 0
        self._finalizer: weakref.finalize[..., Embedder] | None = None

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Vectors of texts, in order.

        Args:
            texts: any number of them; an empty text is embedded from its prefix alone.

        Returns:
            `(len(texts), D)` float32, rows of unit length.

        Raises:
            InvalidRequest: `texts` is no sequence of strings, or the model does not know the
                input type.
            BadDimensions: the model cannot give this size.
            ContextTooLong: a text is over the model's limit, and `truncate` is False.
            SetupError: the model cannot be made ready.
        """
        strings = _strings(texts)
        service = self._loaded()
        windows = (
            Texts(
                strings[start : start + WINDOW_TEXTS],
                positions=range(start, min(start + WINDOW_TEXTS, len(strings))),
            )
            for start in range(0, len(strings), WINDOW_TEXTS)
        )
        pieces = [answer.vectors for answer in service.embed_windows(self._options, windows)]
        if not pieces:
            return np.empty((0, self._choices(service).dimensions), np.float32)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """The same as `embed`."""
        return self.embed(texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as the model reads the text: uncut, prefix and special tokens too.

        Raises:
            InvalidRequest: `texts` is no sequence of strings.
            SetupError: the model cannot be made ready.
        """
        strings = _strings(texts)
        choices = self._choices(self._loaded())
        engine = choices.engine
        encoded = engine.tokenize(strings, engine.manifest.prefix(choices.input_type))
        return [text.n_tokens for text in encoded]

    @property
    def fingerprint(self) -> str:
        """Names everything that shapes the vectors; equal to the server's `x-matryo-fingerprint`.

        Raises:
            SetupError: the model cannot be made ready.
        """
        return self._choices(self._loaded()).fingerprint

    def close(self) -> None:
        """Free the model. A later call loads the model again."""
        with self._lock:
            self._local, finalizer, self._finalizer = None, self._finalizer, None
            if finalizer:
                finalizer()  # closes the service, and forgets it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """The arguments alone: whoever unpickles the embedder loads the model there."""
        return _from_arguments, (self._arguments,)

    def _choices(self, local: LocalService) -> Choices:
        return choose(self._options, local.service.directory, local.service.defaults)

    def _loaded(self) -> LocalService:
        """The running service; started in this process if it is not there yet."""
        with self._lock:
            # Threads do not survive a fork: the child starts a service of its own.
            if self._local is None or self._pid != os.getpid():
                given = self._arguments
                settings = load_settings(
                    None,  # a library reads no .env of whatever folder it runs in
                    model=(given["model"],),
                    precision=given["precision"],
                    home=given["home"],
                )
                try:
                    local = LocalService(lambda: build_local_service(settings, given["threads"]))
                except SystemExit as exc:  # a command may end here, a caller's program may not
                    raise SetupError(
                        f"{given['model']} could not be made ready; standard error says why"
                    ) from exc
                local.__enter__()
                self._local, self._pid = local, os.getpid()
                # At the interpreter's end there is nothing to free, and an event loop can no longer
                # close: executors refuse work by then.
                self._finalizer = weakref.finalize(self, _close, local, self._pid)
                self._finalizer.atexit = False
            return self._local


def _from_arguments(arguments: dict[str, Any]) -> Embedder:
    return Embedder(**arguments)


def _close(local: LocalService, pid: int) -> None:
    """End a service, in the process that started it and nowhere else."""
    if os.getpid() == pid:
        local.close()


def _strings(texts: Sequence[str]) -> Sequence[str]:
    # A bare string is a sequence of strings too: its letters would be embedded one by one.
    if isinstance(texts, str):
        raise InvalidRequest("texts is one string; give a list, such as [text]")
    for index, text in enumerate(texts):
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequest(
                f"texts[{index}] is {type(text).__name__}; each text must be a string"
            )
    return texts
