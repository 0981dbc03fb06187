"""A checkpoint as a GGUF file in Q8_0, for llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import safetensors.numpy

from tests.checkpoints import Tensors, gguf_metadata, gguf_tensors

_NAMES: Mapping[str, str] = {"bert": "bert", "nomic_bert": "nomic-bert"}


def write_gguf(config: Mapping[str, Any], weights: Path, path: Path) -> None:
    """Write a GGUF without a vocabulary: token ids are given.

    Matrices are in Q8_0, as llama.cpp's own conversion has them.

    Args:
        config: the manifest's `[architecture]`, of a bert or a nomic_bert without experts.
        weights: `model.safetensors`.
        path: of the new file.
    """
    own = _NAMES[config["model_type"]]
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, own)
    for key, value in gguf_metadata(config).items():
        if isinstance(value, float):
            writer.add_float32(f"{own}.{key}", value)
        else:
            writer.add_uint32(f"{own}.{key}", value)
    writer.add_bool(f"{own}.attention.causal", val=False)
    writer.add_uint32(f"{own}.pooling_type", gguf.PoolingType.MEAN)
    writer.add_uint32(f"{own}.vocab_size", config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_token_type_count(config["type_vocab_size"])
    tensors = cast("Tensors", cast("Any", safetensors.numpy).load_file(weights))
    for name, tensor in gguf_tensors(config, tensors).items():
        matrix = tensor.ndim > 1 and "position" not in name and "types" not in name
        kind = gguf.GGMLQuantizationType.Q8_0 if matrix else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(np.ascontiguousarray(tensor, np.float32), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)
