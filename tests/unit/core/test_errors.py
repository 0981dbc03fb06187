"""Errors travel between processes."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from matryo.core import errors
from matryo.core.errors import ContextTooLong, MatryoError


def kinds(kind: type[MatryoError] = MatryoError) -> Iterator[type[MatryoError]]:
    """Every class of the tree."""
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from kinds(below)


def made(kind: type[MatryoError]) -> MatryoError:
    """An error of a class, made of some value for each argument."""
    named: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.default is inspect.Parameter.empty:
            kind_of_value = str(parameter.annotation)
            named[name] = (
                ("a", "b") if "[" in kind_of_value else "s" if "str" in kind_of_value else 3
            )
    return kind(**named)


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
def test_pickle(kind: type[MatryoError]) -> None:
    """A pool or a cluster can raise an error of a worker in the caller, whatever it was made of."""
    error = made(kind)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(copy) is kind
    assert (str(copy), copy.message) == (str(error), error.message)
    assert vars(copy) == vars(error)


def test_attributes() -> None:
    """What code reads of an error is there on the other side."""
    error = ContextTooLong(index=7, n_tokens=600, max_tokens=512)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (copy.index, copy.n_tokens, copy.max_tokens) == (7, 600, 512)
