"""The table of the shipped models in docs/models.md, which `make models-table` writes."""

from __future__ import annotations

from collections.abc import Sequence

from matryo.catalog.catalog import Catalog, shipped_models
from matryo.catalog.golden import read_golden
from matryo.catalog.manifest import Architecture, Manifest

BEGIN = "<!-- `make models-table` writes from here on. -->"
END = "<!-- `make models-table` writes until here. -->"

STATIC = "model2vec"
"""`model_type` of a table of vectors, which has no layers."""

_GATED = ("modernbert", "new", "qwen3")
_CLASSES = ((0, "static"), (25_000_000, "fast"), (120_000_000, "middle"))
_COLUMNS = (
    *("model", "languages", "parameters", "tokens", "sizes", "prompts", "licence", "speed"),
    *("files", "published values"),
)


def page(text: str) -> str:
    """The text of docs/models.md with the table written anew.

    Args:
        text: of the page, which has the lines `BEGIN` and `END`.

    Raises:
        ValueError: the page has not one line of each.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"docs/models.md must have one line {BEGIN} and one line {END}")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    rule = "|---" * len(_COLUMNS) + "|"
    return "\n".join((before + BEGIN, _line(_COLUMNS), rule, *_rows(), END + after))


def multiplications(architecture: Architecture) -> int:
    """Multiplications for one token in the linear layers of a transformer, without its word table.

    The MLP has two matrices, or three if it is gated. A layer with a mixture of experts counts the
    experts that compute a token.
    """
    config = architecture.config
    if architecture.model_type == STATIC:
        return 0
    hidden, n_layers = config["hidden_size"], config["num_hidden_layers"]
    head = config.get("head_dim", hidden // config["num_attention_heads"])
    query = head * config["num_attention_heads"]
    key = head * config.get("num_key_value_heads", config["num_attention_heads"])
    is_gated = architecture.model_type in _GATED or config.get("hidden_act") == "swiglu"
    mlp = (3 if is_gated else 2) * hidden * config["intermediate_size"]
    every = config.get("moe_every_n_layers", 0)
    n_mixed = n_layers // every if every else 0
    n_mlps = n_layers + n_mixed * (config.get("moe_top_k", 1) - 1)
    return n_layers * 2 * hidden * (query + key) + n_mlps * mlp


def speed(architecture: Architecture) -> str:
    """The speed class of an architecture: `static`, `fast`, `middle` or `slow`."""
    count = multiplications(architecture)
    return next((name for most, name in _CLASSES if count <= most), "slow")


def _rows() -> list[str]:
    """A row for each shipped model, in the order of their speed."""
    catalog = Catalog([shipped_models()])
    models = [catalog.manifest(model_id) for model_id in catalog.ids]
    models.sort(key=lambda model: (multiplications(model.architecture), model.id))
    return [_line(_cells(catalog, model)) for model in models]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(catalog: Catalog, model: Manifest) -> tuple[str, ...]:
    n_checks = len(read_golden(catalog.folder(model.id)).checks)
    values = f"{n_checks}, passed" if model.verified else str(n_checks)
    prompts = [name for name, text in model.prompts.items() if text]
    return (
        f"[{model.id}](../models/{model.id}/model.toml)",
        model.languages or "not known",
        f"{model.parameters / 1e6:,.0f} M" if model.parameters else "not known",
        str(model.tokenizer.max_tokens),
        ", ".join(map(str, model.output.dimensions.trained)),
        ", ".join(prompts) or "none",
        model.license,
        speed(model.architecture),
        "pinned" if model.is_pinned else "unpinned",
        values if n_checks else "none",
    )
