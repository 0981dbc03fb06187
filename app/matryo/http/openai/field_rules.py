"""What becomes of fields that other servers have and OpenAI does not: the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast


@dataclass(frozen=True, slots=True)
class Taken:
    """A value that means the same as some of our fields.

    Attributes:
        fields: ours; empty where the value asks for what is done anyway.
    """

    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Ignored:
    """A value that changes nothing here; the caller is told by a warning."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A value that would change the vectors or the answer in a way that is not offered.

    Attributes:
        reason: what the value asks for.
    """

    reason: str


_LONG_ENOUGH = 6  # shorter names are near too many others

Outcome = Taken | Ignored | Refused
Judge = Callable[[Any], Outcome]


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of some fields.

    Attributes:
        names: of the fields.
        senders: who sends them.
        meaning: what becomes of them, for the documentation.
        judge: the outcome of a value that is not null.
    """

    names: tuple[str, ...]
    senders: str
    meaning: str
    judge: Judge


def _ignored(_: object) -> Outcome:
    return Ignored()


def _refused(reason: str) -> Judge:
    return lambda _: Refused(reason)


def _as_field(field: str, words: Mapping[str, str] | None = None) -> Judge:
    """The value is one of our field `field`, some of its words in ours."""

    def judge(value: object) -> Outcome:
        if isinstance(value, str) and words:
            value = words.get(value.lower(), value)
        return Taken({field: value})

    return judge


def _only(allowed: Sequence[object], reason: str) -> Judge:
    """The value must ask for what is done anyway."""

    def judge(value: object) -> Outcome:
        plain = value.lower() if isinstance(value, str) else value
        same = any(plain == one and type(plain) is type(one) for one in allowed)
        return Taken({}) if same else Refused(reason)

    return judge


def _one_type(value: object) -> Outcome:
    kinds = cast("list[object]", value) if isinstance(value, list) else [value]
    if len(kinds) != 1:
        return Refused("several types in one answer; ask for one")
    return Taken({"embedding_type": kinds[0]})


def _modality(value: object) -> Outcome:
    kinds = cast("list[object]", value) if isinstance(value, list) else [value]
    return (
        Taken({}) if all(kind == "text" for kind in kinds) else Refused("only texts are embedded")
    )


def _cut_at(value: object) -> Outcome:
    if value == -1 and value is not True:
        return Taken({"truncate": True})
    return Refused("only -1, the model's own limit, is offered")


def _long_text_mode(value: object) -> Outcome:
    if value == "truncate":
        return Taken({"truncate": True})
    return Refused("only 'truncate' is offered")


_TASKS = {
    "retrieval.query": "query",
    "retrieval.passage": "document",
    "retrieval_query": "query",
    "retrieval_document": "document",
}

RULES: tuple[Rule, ...] = (
    Rule(
        ("task", "task_type", "prompt_name", "text_type"),
        "Jina, Gemini, Nomic, sentence-transformers, TEI, DashScope",
        "taken as `input_type`; `retrieval.query` and `retrieval.passage` are understood",
        _as_field("input_type", _TASKS),
    ),
    Rule(
        ("output_dimension", "output_dimensionality", "dimensionality", "dimension"),
        "Voyage, Cohere, Gemini, Nomic, DashScope",
        "taken as `dimensions`",
        _as_field("dimensions"),
    ),
    Rule(("output_dtype",), "Voyage", "taken as `embedding_type`", _as_field("embedding_type")),
    Rule(("embedding_types",), "Cohere", "one type is taken as `embedding_type`", _one_type),
    Rule(
        ("truncation",),
        "Voyage, sentence-transformers",
        "taken as `truncate`",
        _as_field("truncate"),
    ),
    Rule(
        ("truncate_prompt_tokens",),
        "vLLM",
        "-1 is taken as `truncate: true`; other values are refused",
        _cut_at,
    ),
    Rule(
        ("long_text_mode",),
        "Nomic",
        "`truncate` is taken as `truncate: true`; `mean` is refused",
        _long_text_mode,
    ),
    Rule(
        ("normalize", "normalized", "normalize_embeddings"),
        "TEI, Jina, Infinity",
        "true is what is done anyway; false is refused",
        _only([True], "vectors always have unit length"),
    ),
    Rule(
        ("embd_normalize",),
        "llama.cpp",
        "2 (L2) is what is done anyway; other values are refused",
        _only([2], "vectors always have unit length in L2"),
    ),
    Rule(
        ("truncation_side", "truncation_direction"),
        "vLLM, TEI",
        "`right` is what is done anyway; `left` is refused",
        _only(["right"], "texts are cut at their end"),
    ),
    Rule(
        ("add_special_tokens",),
        "vLLM",
        "true is what is done anyway; false is refused",
        _only([True], "special tokens are always added"),
    ),
    Rule(
        ("embed_dtype",),
        "vLLM",
        "`float32` is what is done anyway; others are refused",
        _only(["float32", "float"], "floats have 32 bits; see embedding_type"),
    ),
    Rule(
        ("endianness",),
        "vLLM",
        "`native` and `little` are what is done anyway; `big` is refused",
        _only(["native", "little"], "bytes are little-endian"),
    ),
    Rule(
        ("late_chunking", "return_multivector", "late_interaction"),
        "Jina, vLLM",
        "false is what is done anyway; true is refused",
        _only([False], "each text gets one vector of its own"),
    ),
    Rule(
        ("stream",),
        "LiteLLM and gateways",
        "false is what is done anyway; true is refused",
        _only([False], "an answer comes whole"),
    ),
    Rule(
        ("modality", "modalities"),
        "NIM",
        "`text`, alone or in a list, is what is done anyway; others are refused",
        _modality,
    ),
    Rule(
        (
            "prompt",
            "instruction",
            "instruct",
            "pooling",
            "pooling_type",
            "messages",
            "images",
            "chat_template",
            "chat_template_kwargs",
            "softmax",
            "activation",
            "use_activation",
            "layer",
            "adapter",
            "lora",
        ),
        "vLLM, Instructor, Infinity and others",
        "refused: they would change the vectors",
        _refused("it would change the vectors in a way that is not offered"),
    ),
    Rule(
        (
            "metadata",
            "drop_params",
            "additional_drop_params",
            "allowed_openai_params",
            "proxy_server_request",
            "model_info",
            "custom_llm_provider",
            "litellm_params",
            "api_version",
            "extra_headers",
            "extra_query",
            "timeout",
            "max_retries",
            "priority",
            "request_id",
            "cache_salt",
            "mm_processor_kwargs",
            "keep_alive",
            "options",
            "safety_identifier",
            "prompt_cache_key",
            "service_tier",
            "store",
            "stream_options",
            "tags",
            "id",
            "caching",
            "cache",
            "no_cache",
            "temperature",
            "max_tokens",
            "n",
            "logprobs",
            "echo",
        ),
        "LiteLLM (Dify and other gateways), vLLM's bench, RAGFlow, Ollama's clients, OpenAI's SDKs",
        "ignored, with `x-matryo-warning`",
        _ignored,
    ),
)

IGNORED_PREFIXES = ("litellm_", "x-", "x_")
"""Fields whose names begin so are ignored, too."""


def weighty() -> tuple[str, ...]:
    """Names whose misspelling would change vectors."""
    others = (name for rule in RULES if rule.judge is not _ignored for name in rule.names)
    return tuple(name for name in others if len(name) >= _LONG_ENOUGH)
