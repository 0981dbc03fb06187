"""A request and its answer, whatever door they use."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from matryo.engine import Side
from matryo.engine.postprocess import FloatArray
from matryo.scheduler import Priority, Tenant
from matryo.service.allowance import Allowance

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary"]
"""Numbers that a caller may ask for; `matryo.service.numbers` makes them of the float32 matrix."""

_ITEM_BYTES = 8  # of an item of a list
_ID_BYTES, _ARRAY_BYTES = 40, 64  # of an integer in a list; of a list of them


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller may choose. None leaves the choice to the server.

    Attributes:
        model: id or alias of a served model; a suffix such as `-query` chooses the input type.
        input_type: what the texts are for, or a synonym; wins over the suffix.
        dimensions: output size, at least 1.
        truncate: cut texts over the model's limit; False refuses them.
        keep: the end of a text that is kept where the text is cut.
        normalize: give vectors of unit length; False gives what the model has before its last
            step, `l2_normalize`.
        embedding_type: numbers of the answer. `Answer.vectors` are float32 all the same.
        priority: `bulk` lets every online query pass.
        deadline_s: seconds after which nobody waits for the answer any more.
        expect: a fingerprint, or a leading part of one, as `check_expected` takes it: vectors of
            another one are refused. None for any vectors.
    """

    model: str | None = None
    input_type: str | None = None
    dimensions: int | None = None
    truncate: bool = False
    keep: Side = "start"
    normalize: bool = True
    embedding_type: EmbeddingType = "float"
    priority: Priority = "online"
    deadline_s: float | None = None
    expect: str | None = None


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of one request: strings, or arrays of token ids.

    Attributes:
        strings: the texts; empty where they come as ids.
        token_arrays: the ids of each text, at least one id each; an id may be any integer.
        is_list: False for a bare text, which errors call `input` and not `input[0]`.
        positions: where each text stood in its source, for instance its line; empty where that
            is its index here.
        own_ids: whether the ids are the served model's own, whatever the operator chose for ids.
    """

    strings: Sequence[str] = ()
    token_arrays: Sequence[Sequence[int]] = ()
    is_list: bool = True
    positions: Sequence[int] = ()
    own_ids: bool = False

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self.strings) or len(self.token_arrays)

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that the texts take."""
        if self.strings:
            return sum(_ITEM_BYTES + sys.getsizeof(text) for text in self.strings)
        return sum(_ARRAY_BYTES + _ID_BYTES * len(ids) for ids in self.token_arrays)

    def position(self, index: int) -> int | None:
        """Where the text at `index` stood in its source; None for a bare text."""
        if self.positions:
            return self.positions[index]
        return index if self.is_list else None


@dataclass(frozen=True, slots=True)
class Answer:
    """The vectors of a request, and what shaped them.

    Attributes:
        vectors: `(n, D)` float32, C-contiguous, rows in the order of the texts: unit vectors,
            unless the caller chose otherwise.
        model: id of the model.
        input_type: what the texts were taken for.
        n_tokens: of all texts, prefixes and special tokens included.
        lengths: tokens of each text.
        truncated: positions of the texts that were cut.
        unknown: positions of the texts with characters or words that the model cannot read.
        fingerprint: names everything that shaped the vectors.
        warnings: sentences for the caller.
    """

    vectors: FloatArray
    model: str
    input_type: str
    n_tokens: int
    lengths: tuple[int, ...]
    truncated: tuple[int, ...]
    unknown: tuple[int, ...]
    fingerprint: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        name: of the key that the caller showed; None where no key is asked for.
        weight: the caller's share of a busy server, in proportion to that of others; over 0.
        allowance: the key's limits, and what is used of them; None where no key is asked for.
    """

    name: str | None = None
    weight: float = 1.0
    allowance: Allowance | None = field(default=None, compare=False, repr=False)

    def check_model(self, model_id: str) -> None:
        """Refuse a model that the caller may not use.

        Raises:
            ModelForbidden: the caller's key has models, and this is none of them.
        """
        if self.allowance:
            self.allowance.check_model(model_id)

    def may_use(self, model_id: str) -> bool:
        """Whether the caller may use a model."""
        models = self.allowance and self.allowance.limits.models
        return models is None or model_id in models

    @property
    def tenant(self) -> Tenant:
        """The caller as the scheduler knows it."""
        return Tenant(self.name, self.weight)


OPEN = Caller()
"""The caller of a server without keys, and of a service in one's own process."""
