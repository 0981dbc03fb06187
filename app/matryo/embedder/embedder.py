"""A model in this process, for programs and for the workers of frameworks."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

import numpy as np

from matryo.assembly.models import NotPrepared, resolve_models
from matryo.assembly.service import build_local_service
from matryo.catalog.catalog import open_catalog
from matryo.core.choices import PrecisionChoice
from matryo.core.environment import load_settings
from matryo.core.errors import ContextTooLong, InvalidRequest, SetupError
from matryo.core.settings import Settings
from matryo.embedder.columns import (
    Nulls,
    TextColumn,
    column_of,
    is_batch,
    read_texts,
    with_columns,
)
from matryo.embedder.cores import given_cores
from matryo.engine.postprocess import FloatArray
from matryo.service import LocalService, Options, request
from matryo.service.choices import Choices, Defaults, choose, choose_dimensions
from matryo.service.limits import WINDOW_TEXTS

Texts = Any  # a list of strings, or a column of them of any library

_KEPT = 4  # embedders that a process keeps for tasks to come; one that uses more models is rare


class Embedder:
    """A model in this process; gives the vectors of a server with the same settings, bit for bit.

    The model is loaded at the first use, in the process that uses the model: pulled and built
    before, if the store lacks it. Therefore an embedder can be pickled and sent to workers. All
    equal embedders that a process unpickles are one object, which keeps its model: a framework that
    sends the embedder with every task loads the model once for each process. Calls may come from
    several threads. Workers of one machine share the weights, which are mapped from the store.

    Args:
        model: id of a model, for instance `nomic-embed-text-v1.5`; or the path of a checkpoint, or
            `org/name` on the hub, as `matryo serve --model` takes them.
        precision: `fp32`, `int8`, `q8`, `q4`, or `auto` (`int8` where the model offers it).
        dimensions: output size; None for the model's own.
        input_type: what the texts are for: `query`, `document`, `classification`, `clustering`,
            another prompt of the model, or `none` for no prefix.
        truncate: cut texts over the model's limit; False refuses them.
        threads: cores to use; None for those that this process was given, by the rule in
            `matryo.embedder.cores`.
        home: the store; None for `MATRYO_HOME`, or its default.
        text_column: of batches, the column of texts.
        vector_column: of batches, the new column of vectors.
        fingerprint_column: of batches, the new column that repeats the fingerprint; None for none.
        expect_fingerprint: of the index that the vectors are for, or a leading part of it that ends
            where a `/` stands; vectors of another one are refused. None for any.
        nulls: `refuse` a text that is null, or `keep` it as a vector that is null.

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
        text_column: str = "text",
        vector_column: str = "embedding",
        fingerprint_column: str | None = None,
        expect_fingerprint: str | None = None,
        nulls: Nulls = "refuse",
    ) -> None:
        if nulls not in get_args(Nulls):
            raise InvalidRequest(f"nulls is {nulls!r}; give one of {get_args(Nulls)}")
        self._arguments: dict[str, Any] = {
            "model": model,
            "precision": precision,
            "dimensions": dimensions,
            "input_type": input_type,
            "truncate": truncate,
            "threads": threads,
            "home": home,
            "text_column": text_column,
            "vector_column": vector_column,
            "fingerprint_column": fingerprint_column,
            "expect_fingerprint": expect_fingerprint,
            "nulls": nulls,
        }
        self._options = Options(
            input_type=input_type,
            dimensions=dimensions,
            truncate=truncate,
            priority="bulk",
            expect=expect_fingerprint,
        )
        self._nulls: Nulls = nulls
        self._columns = (vector_column, fingerprint_column)
        self._lock = threading.Lock()
        self._local: LocalService | None = None
        self._pid = 0
        self._finalizer: weakref.finalize[..., Embedder] | None = None

    def embed(self, texts: Texts) -> FloatArray:
        """Vectors of texts, in order.

        Args:
            texts: any number of strings: a list, or a column of NumPy, Arrow, pandas, Polars or
                Daft. An empty text is embedded from its prefix alone.

        Returns:
            `(len(texts), D)` float32, rows of unit length; with `nulls="keep"`, a row of NaN for
            each null.

        Raises:
            InvalidRequest: `texts` is no sequence of strings, or the model does not know the
                input type.
            BadDimensions: the model cannot give this size.
            ContextTooLong: a text is over the model's limit, and `truncate` is False.
            FingerprintMismatch: the vectors are not those that `expect_fingerprint` names.
            SetupError: the model cannot be made ready.
        """
        column = read_texts(texts, self._nulls)
        return column.spread(self._vectors(column))

    def embed_arrow(self, texts: Texts) -> Any:  # noqa: ANN401 - pyarrow is optional
        """The same as `embed`, as a `pyarrow.FixedSizeListArray`.

        With `nulls="keep"` a `pyarrow.ListArray`, with a null for each null text: Arrow cannot read
        fixed-size lists with nulls from Parquet.
        """
        column = read_texts(texts, self._nulls)
        return column.to_arrow(self._vectors(column))

    def __call__(self, batch: Any) -> Any:  # noqa: ANN401 - of any library
        """A batch with its column of vectors; of a column or a list, what `embed` returns.

        Args:
            batch: a dict of arrays, an Arrow table or record batch, or a pandas data frame, with
                the column `text_column`.

        Returns:
            A batch of the same type with the column `vector_column`, and with
            `fingerprint_column` if that has a name. In a dict, the vectors are an array `(n, D)`
            of float32, with a row of NaN for a null. In a table or a data frame, they are the lists
            of `embed_arrow`.

        Raises:
            InvalidRequest: the batch has no column of texts, or has one of the new columns.
            MatryoError: what `embed` raises.
        """
        if not is_batch(batch):
            return self.embed(batch)
        given: str = self._arguments["text_column"]
        column = read_texts(column_of(batch, given), self._nulls)
        vectors = self._vectors(column)
        fingerprint = self.fingerprint if column.n_rows and self._columns[1] else ""
        return with_columns(batch, column, vectors, self._columns, fingerprint)

    def make_predict_fn(self) -> Callable[[Any], Any]:
        """What `pyspark.ml.functions.predict_batch_udf` wants: a function of one array of texts.

        Returns:
            A function that returns what `embed` returns; or, if `fingerprint_column` has a name,
            a dict of the two new columns, for a struct.
        """
        vector_column, fingerprint_column = self._columns

        def predict(texts: Any) -> Any:  # noqa: ANN401 - the types of Spark's function
            vectors = self.embed(texts)
            if fingerprint_column is None:
                return vectors
            fingerprints = np.full(len(vectors), self.fingerprint)
            return {vector_column: vectors, fingerprint_column: fingerprints}

        return predict

    def count_tokens(self, texts: Texts) -> list[int]:
        """Tokens of each text as the model reads the text: uncut, prefix and special tokens too.

        Raises:
            InvalidRequest: `texts` is no sequence of strings.
            SetupError: the model cannot be made ready.
        """
        strings = read_texts(texts, "refuse").strings
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

    @property
    def dimensions(self) -> int:
        """Components of a vector. The model need not be in the store of this machine.

        Raises:
            BadDimensions: the model cannot give this size.
            SetupError: there is no such model.
        """
        with _named(self._arguments["model"]):
            settings = resolve_models(self._settings())
            manifest = open_catalog(settings).manifest(settings.model[0])
        return choose_dimensions(self._options.dimensions, manifest, Defaults())[0]

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
        return _of_this_process, (type(self), tuple(self._arguments.items()))

    def _vectors(self, column: TextColumn) -> FloatArray:
        """The vectors of the strings of a column."""
        if not column.strings:  # a framework tries an empty batch to learn types
            return np.empty((0, self.dimensions), np.float32)
        windows = (
            request.Texts(
                column.strings[start : start + WINDOW_TEXTS],
                positions=column.rows[start : start + WINDOW_TEXTS],
            )
            for start in range(0, len(column.strings), WINDOW_TEXTS)
        )
        answers = self._loaded().embed_windows(self._options, windows)
        try:
            pieces = [answer.vectors for answer in answers]
        except ContextTooLong as exc:
            raise exc.advising("Split the text, or pass truncate=True to have it cut.") from None
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _choices(self, local: LocalService) -> Choices:
        return choose(self._options, local.service.directory, local.service.defaults)

    def _settings(self) -> Settings:
        given = self._arguments
        # A library reads no .env of whatever folder it runs in.
        return load_settings(
            None, model=(given["model"],), precision=given["precision"], home=given["home"]
        )

    def _loaded(self) -> LocalService:
        """The running service; started in this process if it is not there yet."""
        with self._lock:
            # Threads do not survive a fork: the child starts a service of its own.
            if self._local is None or self._pid != os.getpid():
                settings = self._settings()
                cores = self._arguments["threads"] or given_cores()
                with _named(self._arguments["model"]):
                    local = LocalService(lambda: build_local_service(settings, cores))
                local.__enter__()
                self._local, self._pid = local, os.getpid()
                # At the interpreter's end there is nothing to free, and an event loop can no longer
                # close: executors refuse work by then.
                self._finalizer = weakref.finalize(self, _close, local, self._pid)
                self._finalizer.atexit = False
            return self._local


@functools.lru_cache(maxsize=_KEPT)
def _of_this_process(cls: type[Embedder], arguments: tuple[tuple[str, Any], ...]) -> Embedder:
    """The one embedder of these arguments that this process has unpickled."""
    made = cls.__new__(cls)
    Embedder.__init__(made, **dict(arguments))
    return made


@contextmanager
def _named(model: str) -> Generator[None]:
    """Turn the end of a command into an error: a caller's program goes on.

    Raises:
        SetupError: the model could not be made ready.
    """
    try:
        yield
    except SystemExit as exc:
        reason = exc.reason if isinstance(exc, NotPrepared) else "standard error says why"
        raise SetupError(f"{model} could not be made ready: {reason}") from exc


def _close(local: LocalService, pid: int) -> None:
    """End a service, in the process that started it and nowhere else."""
    if os.getpid() == pid:
        local.close()
