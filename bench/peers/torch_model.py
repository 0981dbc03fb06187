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

Tensor = Any
Module = Any
"""Of torch, which has no types here."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What another engine needs to know of a model.

    Attributes:
        path: the JSON file that says all this.
        architecture: the manifest's table of that name.
        layer_norm_eps: of the layer norm after the mean; None for a model without one.
        weights: `model.safetensors`.
        tokenizer: `tokenizer.json`.
        texts: file with token ids of real texts, a list of lists.
        cache: folder for what the engine makes of the weights.
        cores: cores to use.
    """

    path: Path
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
        return cls(path=path, **facts)


class _Encoder:
    """The forward pass of a bert, or of a nomic_bert without experts.

    Args:
        spec: the model.
        masked: whether attention and mean leave out what the mask leaves out.

    Raises:
        SystemExit: the model is of another type.
    """

    def __init__(self, spec: Spec, *, masked: bool) -> None:
        self._torch: Tensor = importlib.import_module("torch")
        self._f: Tensor = self._torch.nn.functional
        load: Tensor = importlib.import_module("safetensors.torch").load_file
        kind = str(spec.architecture["model_type"])
        if kind not in ("bert", "nomic_bert"):
            raise SystemExit(
                f"{kind} models have no torch module here; choose a bert or nomic_bert"
            )
        self._spec, self._masked, self._nomic = spec, masked, kind == "nomic_bert"
        self._hidden = int(spec.architecture["hidden_size"])
        self._heads = int(spec.architecture["num_attention_heads"])
        self._size = self._hidden // self._heads
        self._w: dict[str, Any] = {
            name: value.float() for name, value in load(str(spec.weights)).items()
        }

    def __call__(self, ids: Tensor, attention_mask: Tensor = None) -> Tensor:
        x, mask = self._embeddings(ids), None
        if self._masked:
            mask = attention_mask[:, None, None, :].to(self._torch.bool)
        angles = self._angles(ids.shape[1]) if self._nomic else None
        layer = self._nomic_layer if self._nomic else self._bert_layer
        for index in range(int(self._spec.architecture["num_hidden_layers"])):
            x = layer(x, index, mask, angles)
        if self._masked:
            kept = attention_mask[:, :, None].float()
            x = (x * kept).sum(1) / kept.sum(1)
        else:
            x = x.mean(1)
        if self._spec.layer_norm_eps is not None:
            x = self._f.layer_norm(x, (self._hidden,), eps=self._spec.layer_norm_eps)
        return self._f.normalize(x, dim=-1)

    def _embeddings(self, ids: Tensor) -> Tensor:
        x = self._f.embedding(ids, self._w["embeddings.word_embeddings.weight"])
        x = x + self._w["embeddings.token_type_embeddings.weight"][0]
        if self._nomic:
            return self._norm(x, "emb_ln")
        x = x + self._w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        return self._norm(x, "embeddings.LayerNorm")

    def _angles(self, n_tokens: Tensor) -> Tensor:
        """Cosines and sines of the rotation, `(1, 1, T, D)` each."""
        torch, base = self._torch, float(self._spec.architecture["rope_theta"])
        steps = 1.0 / base ** (torch.arange(0, self._size, 2).float() / self._size)
        angles = torch.arange(n_tokens).float()[:, None] * steps[None]
        angles = torch.cat((angles, angles), dim=-1)[None, None]
        return angles.cos(), angles.sin()

    def _nomic_layer(self, x: Tensor, index: int, mask: Tensor, angles: Tensor) -> Tensor:
        at = f"encoder.layers.{index}."
        q, k, v = (self._split(part) for part in self._linear(x, at + "attn.Wqkv").chunk(3, -1))
        q, k = self._rotate(q, *angles), self._rotate(k, *angles)
        y = self._linear(self._attention(q, k, v, mask), at + "attn.out_proj")
        x = self._norm(x + y, at + "norm1")
        gate = self._f.silu(self._linear(x, at + "mlp.fc12"))
        y = self._linear(self._linear(x, at + "mlp.fc11") * gate, at + "mlp.fc2")
        return self._norm(x + y, at + "norm2")

    def _bert_layer(self, x: Tensor, index: int, mask: Tensor, angles: Tensor) -> Tensor:
        del angles  # positions are in the embeddings
        at = f"encoder.layer.{index}."
        names = ("query", "key", "value")
        q, k, v = (self._split(self._linear(x, f"{at}attention.self.{name}")) for name in names)
        y = self._linear(self._attention(q, k, v, mask), at + "attention.output.dense")
        x = self._norm(x + y, at + "attention.output.LayerNorm")
        y = self._f.gelu(self._linear(x, at + "intermediate.dense"))
        return self._norm(x + self._linear(y, at + "output.dense"), at + "output.LayerNorm")

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        y = self._f.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], self._hidden)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return self._f.linear(x, self._w[f"{name}.weight"], self._w.get(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        eps = float(self._spec.architecture["layer_norm_eps"])
        weight, bias = self._w[f"{name}.weight"], self._w[f"{name}.bias"]
        return self._f.layer_norm(x, (self._hidden,), weight, bias, eps)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = self._size // 2
        return x * cos + self._torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self._heads, self._size).transpose(1, 2)


def make_module(spec: Spec, *, masked: bool) -> Module:
    """A torch module that gives unit vectors `(B, H)` of token ids `(B, T)`.

    Args:
        spec: the model; its type must be bert, or nomic_bert without experts.
        masked: whether the module takes an attention mask `(B, T)` as well. A graph without one
            is faster, and suits texts of equal length only.

    Raises:
        SystemExit: the model is of another type.
    """
    encoder, torch = _Encoder(spec, masked=masked), importlib.import_module("torch")

    class Masked(torch.nn.Module):
        def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
            return encoder(ids, attention_mask)

    class Unmasked(torch.nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return encoder(ids)

    return (Masked() if masked else Unmasked()).eval()
