"""An encoder as a torch module, from which other engines make their graphs.

Attention is `scaled_dot_product_attention` and rotation is written as transformers writes it:
OpenVINO knows both patterns and has operations of its own for them.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Spec:
    """What another engine needs to know of a model.

    Attributes:
        architecture: the manifest's table of that name.
        layer_norm_eps: of the layer norm after the mean; None for a model without one.
        weights: `model.safetensors`.
        tokenizer: `tokenizer.json`.
        texts: file with token ids of real texts, a list of lists.
        cache: folder for what the engine makes of the weights.
        cores: cores to use.
    """

    architecture: Mapping[str, Any]
    layer_norm_eps: float | None
    weights: Path
    tokenizer: Path
    texts: Path
    cache: Path
    cores: int

    @classmethod
    def read(cls, path: Path) -> Self:
        """The spec in a JSON file."""
        facts = json.loads(path.read_text("utf-8"))
        for name in ("weights", "tokenizer", "texts", "cache"):
            facts[name] = Path(facts[name])
        return cls(**facts)


def make_module(spec: Spec, *, masked: bool) -> Any:  # noqa: ANN401 - torch has no types here
    """A torch module that gives unit vectors `(B, H)` of token ids `(B, T)`.

    Args:
        spec: the model; its type must be bert, or nomic_bert without experts.
        masked: whether the module takes an attention mask `(B, T)` as well. A graph without one
            is faster, and suits texts of equal length only.

    Raises:
        SystemExit: the model is of another type.
    """
    torch: Any = importlib.import_module("torch")
    load: Any = importlib.import_module("safetensors.torch").load_file
    f: Any = torch.nn.functional
    architecture = spec.architecture
    kind = str(architecture["model_type"])
    if kind not in ("bert", "nomic_bert"):
        raise SystemExit(f"{kind} models have no torch module here; choose a bert or nomic_bert")
    nomic = kind == "nomic_bert"
    hidden, heads = int(architecture["hidden_size"]), int(architecture["num_attention_heads"])
    size, eps = hidden // heads, float(architecture["layer_norm_eps"])
    w: dict[str, Any] = {name: value.float() for name, value in load(str(spec.weights)).items()}

    def linear(x: Any, name: str) -> Any:  # noqa: ANN401
        return f.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x: Any, name: str) -> Any:  # noqa: ANN401
        return f.layer_norm(x, (hidden,), w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def rotate(x: Any, cos: Any, sin: Any) -> Any:  # noqa: ANN401
        half = torch.cat((-x[..., size // 2 :], x[..., : size // 2]), dim=-1)
        return x * cos + half * sin

    def split(x: Any) -> Any:  # noqa: ANN401
        return x.view(x.shape[0], x.shape[1], heads, size).transpose(1, 2)

    def embeddings(ids: Any) -> Any:  # noqa: ANN401
        x = f.embedding(ids, w["embeddings.word_embeddings.weight"])
        x = x + w["embeddings.token_type_embeddings.weight"][0]
        if nomic:
            return norm(x, "emb_ln")
        x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        return norm(x, "embeddings.LayerNorm")

    def layer(x: Any, index: int, mask: Any, cos: Any, sin: Any) -> Any:  # noqa: ANN401
        if nomic:
            at = f"encoder.layers.{index}."
            q, k, v = (split(part) for part in linear(x, at + "attn.Wqkv").chunk(3, dim=-1))
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        else:
            at = f"encoder.layer.{index}."
            names = ("query", "key", "value")
            q, k, v = (split(linear(x, f"{at}attention.self.{name}")) for name in names)
        y = f.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y = y.transpose(1, 2).reshape(x.shape[0], x.shape[1], hidden)
        if nomic:
            x = norm(x + linear(y, at + "attn.out_proj"), at + "norm1")
            y = linear(x, at + "mlp.fc11") * f.silu(linear(x, at + "mlp.fc12"))
            return norm(x + linear(y, at + "mlp.fc2"), at + "norm2")
        y = linear(y, at + "attention.output.dense")
        x = norm(x + y, at + "attention.output.LayerNorm")
        y = f.gelu(linear(x, at + "intermediate.dense"))
        return norm(x + linear(y, at + "output.dense"), at + "output.LayerNorm")

    def forward(ids: Any, attention_mask: Any = None) -> Any:  # noqa: ANN401
        mask, cos, sin = None, None, None
        if masked:
            mask = attention_mask[:, None, None, :].to(torch.bool)
        if nomic:
            base = float(architecture["rope_theta"])
            steps = 1.0 / base ** (torch.arange(0, size, 2).float() / size)
            angles = torch.arange(ids.shape[1]).float()[:, None] * steps[None]
            angles = torch.cat((angles, angles), dim=-1)[None, None]
            cos, sin = angles.cos(), angles.sin()
        x = embeddings(ids)
        for index in range(int(architecture["num_hidden_layers"])):
            x = layer(x, index, mask, cos, sin)
        if masked:
            kept = attention_mask[:, :, None].float()
            x = (x * kept).sum(1) / kept.sum(1)
        else:
            x = x.mean(1)
        if spec.layer_norm_eps is not None:
            x = f.layer_norm(x, (hidden,), eps=spec.layer_norm_eps)
        return f.normalize(x, dim=-1)

    class Masked(torch.nn.Module):
        def forward(self, ids: Any, attention_mask: Any) -> Any:  # noqa: ANN401
            return forward(ids, attention_mask)

    class Unmasked(torch.nn.Module):
        def forward(self, ids: Any) -> Any:  # noqa: ANN401
            return forward(ids)

    return (Masked() if masked else Unmasked()).eval()
