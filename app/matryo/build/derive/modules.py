"""Output steps and prompts, as the files of sentence-transformers have them.

Source: sentence-transformers 6, `base/model.py`, `sentence_transformer/model.py`, and the modules
`Pooling`, `Dense` and `Normalize`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from matryo.build.derive.files import CheckpointLayout, Module
from matryo.build.derive.said import JsonFile, Said, shown
from matryo.core.errors import CheckpointMismatch
from matryo.core.untrusted import read_bytes

# The newer files list the modes in the order in which their results are joined. Older files have a
# flag for each, in the order of this table.
_POOLS = (
    ("cls", "pooling_mode_cls_token", "cls_pool"),
    ("max", "pooling_mode_max_tokens", "max_pool"),
    ("mean", "pooling_mode_mean_tokens", "mean_pool"),
    ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_pool"),
    ("weightedmean", "pooling_mode_weightedmean_tokens", "weighted_mean_pool"),
    ("lasttoken", "pooling_mode_lasttoken", "last_token_pool"),
)
_ENDS = frozenset({"cls_pool", "last_token_pool"})
_ACTIVATIONS = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "Sigmoid": "sigmoid",
    "SiLU": "silu",
}
_PROMPT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
# Names that sentence-transformers takes for the prompt of a document, and of a query.
_STANDARD = {
    "query": ("query", "search_query"),
    "document": ("document", "passage", "corpus", "search_document"),
}
_CARD_BYTES = 1 << 24
_ANY_EXPORT = "Serve an ONNX export of the model that gives the vectors themselves"


@dataclass(frozen=True, slots=True)
class Dense:
    """One linear layer after the pools.

    Attributes:
        file: of its weights, relative to the checkpoint's folder.
    """

    file: str
    in_features: int
    out_features: int
    bias: bool
    activation: str
    said: Said

    @property
    def table(self) -> dict[str, object]:
        """The layer's table in `model.toml`."""
        return {
            "file": self.file,
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias,
            "activation": self.activation,
        }


@dataclass(frozen=True, slots=True)
class OutputFacts:
    """What the modules after the transformer do.

    Attributes:
        pools: names of pool steps, in order.
        later: names of the steps between the pools and the cut, in order.
        dense: the linear layers, in the order of the `dense` steps.
        normalized: whether the last module gives vectors unit length.
    """

    pools: Said
    later: tuple[str, ...] = ()
    dense: tuple[Dense, ...] = ()
    normalized: bool = False

    @property
    def steps(self) -> list[str]:
        """The manifest's output steps."""
        return [*self.pools.value, *self.later, "truncate", "l2_normalize"]


@dataclass(frozen=True, slots=True)
class PromptFacts:
    """Prompts by name, and what else the file of sentence-transformers says.

    Attributes:
        prompts: the text of each prompt, by a name that a manifest may have.
        default: name of the prompt of a text that comes without one; None for no prompt.
        renamed: names of the file that a manifest cannot have, and the names in their place.
        dimensions: size of a vector that nobody asked another size of; None for the native size.
        similarity: how the vectors were trained to be compared; None if the file does not say.
    """

    prompts: dict[str, Said] = field(default_factory=dict[str, Said])
    default: Said | None = None
    renamed: dict[str, str] = field(default_factory=dict[str, str])
    dimensions: Said | None = None
    similarity: Said | None = None


def output_facts(layout: CheckpointLayout, *, causal: bool) -> OutputFacts:
    """The steps that `modules.json` and the modules' own files describe.

    Args:
        layout: the checkpoint.
        causal: whether the model is a decoder, whose default is the last token's state.

    Raises:
        CheckpointMismatch: a module, or a value of a module, that Matryo does not compute.
    """
    modules = layout.modules
    if modules is None:
        kind = "last_token_pool" if causal else "mean_pool"
        said = Said((kind,), "(no modules.json)", "sentence-transformers' default")
        return OutputFacts(said)
    first, *rest = modules
    if first.kind == "StaticEmbedding":
        pools = Said(("mean_pool",), "modules.json", "StaticEmbedding")
    elif first.kind != "Transformer":
        raise _refused(layout, first, "as the first module")
    elif rest and rest[0].kind == "Pooling":
        pools = _pools(layout.json(_within(rest[0], "config.json")))
        rest = rest[1:]
    else:
        where = f"{layout.root / 'modules.json'} has no Pooling after the Transformer"
        raise CheckpointMismatch(f"{where}: it gives no vector of a text. {_ANY_EXPORT}.")
    later: list[str] = []
    dense: list[Dense] = []
    for module in rest:
        match module.kind:
            case "Dense":
                later.append("dense")
                dense.append(_dense(layout, module))
            case "Normalize":
                config = layout.json(_within(module, "config.json"))
                _own_input(config)
                later.append("l2_normalize")
            case "Dropout":  # it does nothing outside of training
                continue
            case _:
                raise _refused(layout, module, "after the pools")
    normalized = bool(later) and later[-1] == "l2_normalize"
    while later and later[-1] == "l2_normalize":
        later.pop()  # the last step of every model
    return OutputFacts(pools, tuple(later), tuple(dense), normalized)


def _refused(layout: CheckpointLayout, module: Module, where: str) -> CheckpointMismatch:
    return CheckpointMismatch(
        f"{layout.root / 'modules.json'} has the module {shown(module.kind)} {where}, which Matryo "
        f"does not compute. {_ANY_EXPORT}."
    )


def _within(module: Module, name: str) -> str:
    return f"{module.path}/{name}" if module.path else name


def _pools(config: JsonFile) -> Said:
    """The pool steps of a `Pooling` module, in the older or the newer form of its file."""
    if not config.exists:
        raise CheckpointMismatch(f"{config.path} is missing, but modules.json names the module.")
    said = config.said("pooling_mode")
    if said is None:
        keys = [old for _, old, _ in _POOLS if config.values.get(old) is True]
        modes = [mode for mode, old, _ in _POOLS if old in keys] or ["mean"]
        said = Said(modes, config.name, ", ".join(keys) or "(none is true)")
    listed = cast("list[object]", said.value if isinstance(said.value, list) else [said.value])
    known = {mode for mode, _, _ in _POOLS}
    if not listed or not all(isinstance(mode, str) and mode in known for mode in listed):
        raise config.refuse(said, f"must be one or several of {', '.join(sorted(known))}")
    names = {mode: step for mode, _, step in _POOLS}
    steps = tuple(names[str(mode)] for mode in listed)
    prompt = config.said("include_prompt")
    # The states of the first and of the last token are the same with and without the prompt's own.
    if prompt is not None and prompt.value is not True and not _ENDS.issuperset(steps):
        raise config.refuse(prompt, f"Matryo pools over the prompt too. {_ANY_EXPORT}")
    return Said(steps, said.file, said.key)


def _own_input(config: JsonFile) -> None:
    """Refuse a module that reads or writes anything but the vector of a text."""
    for name in ("module_input_name", "module_output_name"):
        said = config.said(name)
        if said is not None and said.value not in ("sentence_embedding", None):
            raise config.refuse(said, f"must be 'sentence_embedding'. {_ANY_EXPORT}")


def _dense(layout: CheckpointLayout, module: Module) -> Dense:
    config = layout.json(_within(module, "config.json"))
    _own_input(config)
    residual = config.said("use_residual")
    if residual is not None and residual.value is not False:
        raise config.refuse(residual, f"must be false. {_ANY_EXPORT}")
    values = {name: config.said(name) for name in ("in_features", "out_features")}
    sizes: list[int] = []
    for name, said in values.items():
        if said is None or type(said.value) is not int or said.value < 1:
            raise CheckpointMismatch(
                f"{config.path} has no {name}, a number of 1 or more. Fetch the file again."
            )
        sizes.append(said.value)
    bias = config.said("bias")
    activation = config.said("activation_function")
    name = str(activation.value if activation else "Tanh").rsplit(".", 1)[-1]
    if name not in _ACTIVATIONS:
        assert activation
        raise config.refuse(activation, f"must be one of {', '.join(_ACTIVATIONS)}")
    file = _within(module, "model.safetensors")
    if not (layout.root / file).is_file():
        raise CheckpointMismatch(
            f"{layout.root / file} is missing, but modules.json names the module. If the folder "
            "holds pytorch_model.bin, load the model with sentence-transformers and save it again: "
            "pickles are never loaded."
        )
    has_bias = bias is None or bias.value is not False
    in_features, out_features = sizes
    said = Said(None, config.name, "in_features")
    return Dense(file, in_features, out_features, has_bias, _ACTIVATIONS[name], said)


def prompt_facts(layout: CheckpointLayout) -> PromptFacts:
    """What `config_sentence_transformers.json` says.

    Raises:
        CheckpointMismatch: the file holds anything else.
    """
    file = layout.json("config_sentence_transformers.json")
    found = file.said("prompts")
    texts: dict[str, object] = {}
    if found and isinstance(found.value, dict):
        texts = cast("dict[str, object]", found.value)
    prompts, renamed = _prompts(file, texts)
    default = file.said("default_prompt_name")
    if default is not None and default.value is not None:
        if not isinstance(default.value, str) or default.value not in texts:
            raise file.refuse(default, f"must be one of the prompts, {', '.join(texts) or 'none'}")
        default = Said(renamed.get(default.value, default.value), default.file, default.key)
    size = file.said("truncate_dim")
    if size is not None and size.value is not None and type(size.value) is not int:
        raise file.refuse(size, "must be a number of components")
    similarity = file.said("similarity_fn_name")
    return PromptFacts(
        prompts,
        default if default and default.value in prompts else None,
        renamed,
        size if size and size.value else None,
        similarity if similarity and similarity.value else None,
    )


def _prompts(file: JsonFile, texts: Mapping[str, object]) -> tuple[dict[str, Said], dict[str, str]]:
    """The prompts under names that a manifest may have, and the names that had to change.

    The result has no prompt if none has a text.
    """
    prompts: dict[str, Said] = {}
    renamed: dict[str, str] = {}
    for name, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise file.refuse(Said(text, file.name, f"prompts.{name}"), "must be a text")
        ours = name
        if not _PROMPT_NAME.fullmatch(name) or name == "none":
            ours = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"p_{name}" if name == "none" else name)[:64]
            if not _PROMPT_NAME.fullmatch(ours) or ours in texts:
                raise file.refuse(Said(name, file.name, "prompts"), "must be a name of letters")
            renamed[name] = ours
        prompts[ours] = Said(text or "", file.name, f"prompts.{name}")
    if not any(said.value for said in prompts.values()):
        return {}, {}
    for standard, names in _STANDARD.items():
        if not (standard in prompts and prompts[standard].value):
            same = (prompts[name] for name in names if name in prompts and prompts[name].value)
            prompts[standard] = next(same, Said("", file.name, "prompts"))
    return prompts, renamed


def trained_sizes(layout: CheckpointLayout) -> Said | None:
    """Sizes that the model was trained to be cut to, where a file has them as data.

    They are `matryoshka_dimensions` or `matryoshka_dims` in `config.json`, or the parameters of
    `MatryoshkaLoss` that sentence-transformers writes into the model's card.
    """
    config = layout.inner_json("config.json")
    said = config.said("matryoshka_dimensions", "matryoshka_dims")
    if said is not None and (sizes := _sizes(said.value)):
        return Said(sizes, said.file, said.key)
    card = layout.root / "README.md"
    try:
        text = read_bytes(card, _CARD_BYTES).decode("utf-8", errors="replace")
    except (OSError, ValueError):
        return None
    for found in re.finditer(r'"matryoshka_dims"\s*:\s*(\[[\d\s,]{1,400}\])', text):
        if sizes := _sizes([int(size) for size in re.findall(r"\d+", found[1])]):
            return Said(sizes, card.name, "matryoshka_dims")
    return None


def _sizes(value: object) -> Sequence[int]:
    """Distinct sizes, largest first; empty if the value is no list of sizes."""
    if not isinstance(value, list):
        return ()
    sizes = cast("list[Any]", value)
    if not all(type(size) is int and size > 0 for size in sizes):
        return ()
    return tuple(sorted(set(cast("list[int]", sizes)), reverse=True))
