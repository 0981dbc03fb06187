"""Fields of other servers: taken where they mean ours, ignored where they change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from matryo.core.errors import InvalidRequest
from matryo.http.openai.field_rules import RULES
from matryo.http.openai.fields import UnknownFields, page
from matryo.http.openai.parsing import options_of, parse_request
from matryo.http.openai.wire import EmbeddingRequest
from matryo.service import Options
from matryo.service.limits import RequestLimits


def parse(unknown: UnknownFields = "warn", **fields: Any) -> tuple[Options, tuple[str, ...]]:
    """The options of a body with these fields, and its warnings."""
    body = json.dumps({"input": "a"} | fields).encode()
    request, _, warnings = parse_request(body, RequestLimits(), unknown)
    return options_of(request, None), warnings


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"truncate_prompt_tokens": -1}, Options(truncate=True)),
        ({"truncation": True}, Options(truncate=True)),
        ({"truncation": False}, Options()),
        ({"truncate": "end"}, Options(truncate=True)),
        ({"truncate": "none"}, Options()),
        ({"long_text_mode": "truncate"}, Options(truncate=True)),
        ({"prompt_name": "query"}, Options(input_type="query")),
        ({"task": "retrieval.passage"}, Options(input_type="document")),
        ({"task_type": "RETRIEVAL_QUERY"}, Options(input_type="query")),
        ({"task_type": "search_document"}, Options(input_type="search_document")),
        ({"text_type": "query"}, Options(input_type="query")),
        ({"output_dimension": 256}, Options(dimensions=256)),
        ({"dimensionality": 64, "dimensions": 64}, Options(dimensions=64)),
        ({"output_dtype": "ubinary"}, Options(embedding_type="ubinary")),
        ({"embedding_types": ["int8"]}, Options(embedding_type="int8")),
        ({"embedding_type": "base64"}, Options()),
        ({"normalize": True, "normalized": True, "embd_normalize": 2}, Options()),
        ({"stream": False, "late_chunking": False, "add_special_tokens": True}, Options()),
        ({"modality": ["text"]}, Options()),
        ({"modality": "text", "truncation_side": "RIGHT"}, Options()),
        ({"normalize": None, "late_chunking": None, "whatever": None}, Options()),
    ],
)
def test_taken(fields: dict[str, Any], options: Options) -> None:
    """Other words for what is offered need no warning."""
    assert parse(**fields) == (options, ())


@pytest.mark.parametrize(
    "fields",
    [
        {"drop_params": True, "metadata": {"a": 1}, "proxy_server_request": {}},
        {"priority": 0, "request_id": "x"},
        {"litellm_call_id": "x"},
        {"keep_alive": "5m", "options": {"num_ctx": 2048}},
        {"colour": "blue", "\U0001f600\n\r: x": 1},
    ],
)
def test_ignored(fields: dict[str, Any]) -> None:
    """What changes nothing is ignored, and named in one line of printable ASCII."""
    options, (warning,) = parse(**fields)
    assert options == Options()
    assert warning.startswith("ignored: ")
    assert warning.isascii()
    assert warning.isprintable()
    assert all(name in warning for name in fields if name.isascii())


@pytest.mark.parametrize(
    "fields",
    [
        {"late_chunking": True},
        {"normalize": False},
        {"normalized": 0},
        {"truncate_prompt_tokens": 100},
        {"truncate_prompt_tokens": True},
        {"truncation_direction": "left"},
        {"long_text_mode": "mean"},
        {"add_special_tokens": False},
        {"embedding_types": ["float", "int8"]},
        {"instruction": "x"},
        {"prompt": "x"},
        {"stream": True},
        {"modality": ["image"]},
        {"endianness": "big"},
        {"dimensions": 64, "output_dimension": 128},
        {"input_typ": "query"},
        {"inputType": "query"},
        {"embeddingtype": "int8"},
        {"Dimensions": 64},
        {"normalise": False},
        {"truncate": "START"},
        {"truncate": "LEFT"},
    ],
)
def test_refused(fields: dict[str, Any]) -> None:
    """What would change the vectors is refused whatever the operator chose, and so is a slip."""
    for unknown in ("warn", "refuse"):
        with pytest.raises(InvalidRequest) as caught:
            parse(unknown, **fields)
        assert list(fields)[-1] in caught.value.message


def test_all_refused_fields_are_named_at_once() -> None:
    """A caller mends a request once."""
    with pytest.raises(InvalidRequest) as caught:
        parse(late_chunking=True, normalize=False, input_typ="query", metadata={})
    message = caught.value.message
    assert all(name in message for name in ("late_chunking", "normalize", "input_typ"))
    assert "did you mean 'input_type'?" in message
    assert "metadata" not in message


def test_a_flood_of_fields() -> None:
    """A body with more fields than any client sends is refused in one short message."""
    for n_fields, message in ((3000, "has 3000 fields"), (100_000, "at most 4096 are read")):
        with pytest.raises(InvalidRequest, match=message) as caught:
            parse("warn", **dict.fromkeys((f"f{n}" for n in range(n_fields)), "x"))
        assert len(caught.value.message) < 400


def test_the_table_is_whole() -> None:
    """No field has two rules, none of ours has one, and the page is the table's."""
    names = [name for rule in RULES for name in rule.names]
    assert len(names) == len(set(names))
    assert not set(names) & set(EmbeddingRequest.model_fields)
    written = (Path(__file__).parents[3] / "docs/fields.md").read_text(encoding="utf-8")
    assert written == page(), "run: make fields"
