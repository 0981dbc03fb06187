"""Checkpoint folders as people have them: a tiny model's weights, and the files around these."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matryo.build import arch
from tests.checkpoints import HIDDEN, TinyModel, make_model, save_tensors

# What a model_type of ours is called in config.json, where the two differ.
_THEIRS = {"xlm_roberta": "xlm-roberta"}

TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
_AT = "sentence_transformers.sentence_transformer.modules"


def hub_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of a model, from the manifest's `[architecture]`."""
    model_type = config["model_type"]
    found: dict[str, Any] = {"model_type": _THEIRS.get(model_type, model_type)}
    for ours, key in arch.module(model_type).HUB_KEYS.items():
        if ours not in config:
            continue
        table, *names = found, *key.names[0].split(".")
        for name in names[:-1]:
            table = table.setdefault(name, {})
        meant = [value for value, meaning in key.meanings.items() if meaning == config[ours]]
        table[names[-1]] = meant[0] if meant else config[ours]
    return found


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def modules(*kinds: str, transformer: str = "") -> list[dict[str, Any]]:
    """The content of a `modules.json`: the transformer, and these modules after it."""
    found = [{"idx": 0, "name": "0", "path": transformer, "type": TRANSFORMER}]
    for number, kind in enumerate(kinds, 1):
        path = f"{number}_{kind}"
        found.append({"idx": number, "name": str(number), "path": path, "type": f"{_AT}.{kind}"})
    return found


def make_folder(
    root: Path,
    model_type: str = "bert",
    *,
    name: str = "my-model",
    pooling: object = "mean",
    prompts: Mapping[str, str] | None = None,
    normalize: bool = True,
    dense: Sequence[tuple[int, int, str]] = (),
    inner: str = "",
    more: Mapping[str, Any] | None = None,
    **changes: Any,
) -> tuple[TinyModel, Path]:
    """A folder that sentence-transformers 6 might have saved, and the tiny model in it.

    Args:
        root: where the folder is made.
        model_type: of the tiny model.
        name: of the folder.
        pooling: `pooling_mode` of the Pooling module; None for no files of sentence-transformers.
        prompts: by name.
        normalize: end with a Normalize module.
        dense: in, out and activation of each Dense module.
        inner: folder of the transformer.
        more: further keys of `config_sentence_transformers.json`.
        changes: of the tiny config.
    """
    model = make_model(root / "made", model_type, model_id=name, **changes)
    folder = root / name
    shutil.copytree(model.checkpoint, folder / inner if inner else folder)
    base = folder / inner
    write_json(base / "config.json", hub_config(model.config))
    if model.config.get("pad_token_id"):  # the tiny tokenizer has [PAD] as token 0
        path = base / "tokenizer.json"
        facts = json.loads(path.read_text().replace('"[PAD]"', '"[ZERO]"'))
        write_json(path, facts | {"padding": None})
    write_json(base / "tokenizer_config.json", {"model_max_length": 64})
    if pooling is None:
        return model, folder
    kinds = ["Pooling", *("Dense" for _ in dense), *(["Normalize"] if normalize else [])]
    write_json(folder / "modules.json", modules(*kinds, transformer=inner))
    width = model.config.get("hidden_size", HIDDEN)
    write_json(
        folder / "1_Pooling/config.json",
        {"embedding_dimension": width, "pooling_mode": pooling, "include_prompt": True},
    )
    rng = np.random.default_rng(7)
    for number, (into, out, activation) in enumerate(dense, 2):
        at = folder / f"{number}_Dense"
        write_json(
            at / "config.json",
            {
                "in_features": into,
                "out_features": out,
                "bias": True,
                "activation_function": f"torch.nn.modules.activation.{activation}",
            },
        )
        save_tensors(
            {
                "linear.weight": rng.standard_normal((out, into)).astype(np.float32),
                "linear.bias": rng.standard_normal(out).astype(np.float32),
            },
            at / "model.safetensors",
        )
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {"query": "", "document": "", **(prompts or {})},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
            **(more or {}),
        },
    )
    return model, folder


def change_json(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; a value of `...` takes the key out."""
    found = json.loads(path.read_text(encoding="utf-8")) | values
    write_json(path, {key: value for key, value in found.items() if value is not ...})
