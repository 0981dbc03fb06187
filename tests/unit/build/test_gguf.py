"""Reading GGUF: every block type, llama.cpp's names and layouts, and hostile files."""

from __future__ import annotations

import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from matryo.build.checkpoint.gguf import GgufCheckpoint
from matryo.build.checkpoint.gguf_tokenizer import rebuild_tokenizer
from matryo.build.inputs import open_checkpoint
from matryo.build.provision import build_model
from matryo.catalog.reading import read_manifest
from matryo.core.choices import Precision
from matryo.core.errors import CheckpointMismatch
from matryo.core.progress import SILENT
from matryo.store.artifact import Artifact, find_artifact
from matryo.store.layout import Store
from tests import arch as tiny
from tests.checkpoints import EXPERTS, TinyModel, make_model, make_tokenizer, save_gguf
from tests.conftest import load_tiny
from tests.recorder import Recorder
from tests.reference import hidden_states, pooled

Q = gguf.GGMLQuantizationType
# The types of every file in the models' download tables.
TYPES = [
    *(Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q6_K, Q.Q5_K, Q.Q5_0, Q.Q5_1),
    *(Q.Q4_K, Q.Q4_0, Q.Q4_1, Q.Q3_K, Q.Q2_K),
]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "nomic-v1.5": ("nomic_bert", {}),
    "nomic-v2-moe": ("nomic_bert", EXPERTS),
} | {
    name: (model_type, changes)
    for name, (model_type, changes) in tiny.variants().items()
    if hasattr(tiny.of(model_type), "gguf_tensors")
}


def build(
    root: Path, model: TinyModel, checkpoint: Path, precision: Precision = "fp32"
) -> tuple[Artifact, list[str]]:
    """Build from a file that no manifest pins; returns the artefact and the reported lines."""
    recorder = Recorder()
    manifest = read_manifest(model.models / model.id)
    artifact = build_model(
        Store(root / "home"),
        manifest,
        precision,
        checkpoint,
        allow_unverified=True,
        reporter=recorder,
    )
    return artifact, recorder.said


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> TinyModel:
    """A tiny model of each architecture."""
    model_type, changes = VARIANTS[request.param]
    return make_model(tmp_path, model_type, **changes)


def vector(model: TinyModel, artifact: Artifact) -> Any:
    """The vector of one text."""
    return load_tiny(model, artifact).embed([np.arange(4, 24)], [32]).embeddings[0]


class TestBuild:
    """A GGUF gives the same artefact as the safetensors that it was converted from."""

    def test_floats_are_exact(self, tmp_path: Path, model: TinyModel) -> None:
        """F32 gives the vectors of the float64 forward without `experts.bias`."""
        path = save_gguf(model, tmp_path / "tiny.gguf")
        artifact, _ = build(tmp_path, model, path)
        tensors = {n: t for n, t in model.tensors.items() if not n.endswith("experts.bias")}
        hidden = hidden_states(model.config, tensors, list(range(4, 24)))
        expected = pooled(hidden, layer_norm_eps=None, dimensions=32)
        assert np.abs(vector(model, artifact) - expected).max() < 1e-5

    @pytest.mark.parametrize(
        ("qtype", "least"),
        [(Q.F16, 0.9999), (Q.BF16, 0.999), (Q.Q8_0, 0.999), (Q.Q5_1, 0.98), (Q.Q4_0, 0.9)],
    )
    def test_quantised_files(
        self, tmp_path: Path, model: TinyModel, qtype: gguf.GGMLQuantizationType, least: float
    ) -> None:
        """Vectors from quantised blocks stay near the original's."""
        exact, _ = build(tmp_path / "a", model, save_gguf(model, tmp_path / "exact.gguf"))
        near, _ = build(tmp_path / "b", model, save_gguf(model, tmp_path / "near.gguf", qtype))
        one, other = vector(model, exact), vector(model, near)
        assert float(one @ other) > least
        assert not np.array_equal(one, other)

    def test_missing_experts_bias_is_said(self, tmp_path: Path) -> None:
        """A missing `experts.bias` gives a warning, a record and another fingerprint."""
        model = make_model(tmp_path, "nomic_bert", **EXPERTS)
        artifact, said = build(tmp_path, model, save_gguf(model, tmp_path / "tiny.gguf"))
        assert any(line.startswith("warning") and "experts.bias" in line for line in said)
        assert artifact.record.lacks == ("layer.1.experts.bias",)
        manifest = read_manifest(model.models / model.id)
        assert find_artifact(Store(tmp_path / "home"), manifest, "fp32").record.lacks
        whole, said = build(tmp_path, model, model.checkpoint)
        assert not whole.record.lacks
        assert not any("warning" in line for line in said)

    def test_axes_of_one_are_dropped(self, tmp_path: Path) -> None:
        """A vector is read as the only row of token types, as llama-quantize writes it."""
        model = make_model(tmp_path, "nomic_bert", **EXPERTS)
        whole, _ = build(tmp_path / "a", model, save_gguf(model, tmp_path / "whole.gguf"))
        name = "embeddings.token_type_embeddings.weight"
        model.tensors[name] = model.tensors[name][0]
        flat, _ = build(tmp_path / "b", model, save_gguf(model, tmp_path / "flat.gguf"))
        assert np.array_equal(vector(model, whole), vector(model, flat))

    def test_unverified_is_asked_for(self, tmp_path: Path) -> None:
        """A file that no manifest pins is refused, and the error names the remedy."""
        model = make_model(tmp_path, "nomic_bert")
        path = save_gguf(model, tmp_path / "tiny.gguf")
        with pytest.raises(CheckpointMismatch, match=r"pinned to no \.gguf file.*--unverified"):
            build_model(
                Store(tmp_path / "home"),
                read_manifest(model.models / model.id),
                "fp32",
                path,
                allow_unverified=False,
                reporter=SILENT,
            )

    @pytest.mark.parametrize(("qtype", "precision"), [(Q.Q8_0, "q8"), (Q.Q4_0, "q4")])
    def test_blocks_are_kept(
        self, tmp_path: Path, qtype: gguf.GGMLQuantizationType, precision: Precision
    ) -> None:
        """Blocks of 32 reach MatMulNBits unchanged: the stored tensors dequantise to the file's."""
        model = make_model(tmp_path, "nomic_bert", **EXPERTS)
        path = save_gguf(model, tmp_path / "tiny.gguf", qtype)
        artifact, _ = build(tmp_path, model, path, precision)
        stored = initializers(artifact)
        checkpoint, bits = GgufCheckpoint(path), int(precision[1:])
        for ours, theirs, rows in (
            ("layer.0.key.weight", "blk.0.attn_qkv.weight", slice(32, 64)),
            ("layer.0.up.weight", "blk.0.ffn_up.weight", slice(None)),
            ("layer.1.expert.3.up.weight", "blk.1.ffn_up_exps.weight", slice(3, 4)),
        ):
            expected = checkpoint.read(theirs, rows)
            expected = expected.reshape(-1, expected.shape[-1])
            packed = stored[f"{ours}.values"]
            values = packed.reshape(len(expected), -1).astype(np.int64)
            if bits == 4:
                values = np.stack([values & 15, values >> 4], -1).reshape(len(expected), -1)
            scales = np.repeat(stored[f"{ours}.scales"].reshape(len(expected), -1), 32, axis=1)
            assert np.array_equal((values - (1 << (bits - 1))) * scales, expected)


def initializers(artifact: Artifact) -> dict[str, Any]:
    """All initializers of a graph."""
    import onnx

    load = cast("Any", onnx).load
    graph = load(str(artifact.graph)).graph
    to_array = cast("Any", onnx).numpy_helper.to_array
    return {tensor.name: to_array(tensor) for tensor in graph.initializer}


@pytest.mark.parametrize("qtype", TYPES, ids=lambda qtype: qtype.name)
def test_rows_of_every_type(tmp_path: Path, qtype: gguf.GGMLQuantizationType) -> None:
    """Reading some rows, or one matrix of a stack, equals slicing the whole tensor."""
    rng = np.random.default_rng(0)
    _, n_bytes = gguf.GGML_QUANT_SIZES[qtype]
    floats = {Q.F32: np.float32, Q.F16: np.float16}.get(qtype)
    if floats:
        data = rng.standard_normal((4, 6, 256)).astype(floats)
    else:
        n_blocks = 256 // gguf.GGML_QUANT_SIZES[qtype][0]
        data = rng.integers(0, 256, (4, 6, n_blocks * n_bytes), np.uint8)
        data &= 0x3F  # keeps every float16 and bfloat16 in it finite
    path = tmp_path / "some.gguf"
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_tensor("stack", data, raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(path)
    assert checkpoint.shape("stack") == (4, 6, 256)
    whole = checkpoint.read("stack")
    assert whole.dtype == np.float32
    assert np.array_equal(whole, gguf.dequantize(data, qtype).reshape(4, 6, 256))
    assert np.array_equal(checkpoint.read("stack", slice(1, 3)), whole[1:3])


class TestTokenizer:
    """The tokenizer rebuilt from GGUF metadata gives the original's ids."""

    TEXTS = ("The sky is BLUE: x", "grass_green  search query:", "[SEP] a [MASK]é", "", "zzz!?")

    def test_word_piece(self, tmp_path: Path) -> None:
        """The rebuilt WordPiece gives the ids of the original."""
        model = make_model(tmp_path, "nomic_bert")
        path = save_gguf(model, tmp_path / "tiny.gguf")
        expected: Any = make_tokenizer()
        expected.no_truncation()
        expected.no_padding()
        expected.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
        found: Any = rebuild_tokenizer(GgufCheckpoint(path))
        for text in self.TEXTS:
            assert found.encode(text).ids == expected.encode(text).ids, text

    def test_unigram(self, tmp_path: Path) -> None:
        """The rebuilt unigram model gives the pieces of XLM-R's."""
        pieces = ["<s>", "<pad>", "</s>", "<unk>", "\u2581the", "\u2581sky", "\u2581", "s", "k"]
        scores = [0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -4.0]
        path = tmp_path / "uni.gguf"
        writer = gguf.GGUFWriter(path, "nomic-bert-moe")
        writer.add_tokenizer_model("t5")
        writer.add_token_list([*pieces, "[PAD9]", "[PAD10]"])
        writer.add_token_scores([*scores, -10000.0, -10000.0])
        writer.add_token_types([3, 3, 3, 2, 1, 1, 1, 1, 1, 5, 5])
        writer.add_add_space_prefix(True)
        writer.add_remove_extra_whitespaces(True)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        expected: Any = Tokenizer(
            cast("Any", models).Unigram(list(zip(pieces, scores, strict=True)), 3)
        )
        expected.normalizer = cast("Any", normalizers).Replace("  ", " ")
        expected.pre_tokenizer = cast("Any", pre_tokenizers).Metaspace()
        found: Any = rebuild_tokenizer(GgufCheckpoint(path))
        assert found.get_vocab_size() == len(pieces)
        for text in ("the sky", "the  sky", "sky s k", "the?sky"):
            assert found.encode(text).ids == [0, *expected.encode(text).ids, 2], text

    def test_beside_the_file(self, tmp_path: Path) -> None:
        """A tokenizer.json beside the file is used instead of the metadata."""
        model = make_model(tmp_path, "nomic_bert")
        path = save_gguf(model, model.checkpoint / "tiny.gguf", tokenizer=False)
        artifact, said = build(tmp_path, model, path)
        assert said[0] == f"tokenizer: {model.checkpoint / 'tokenizer.json'}"
        assert artifact.tokenizer.read_bytes() == (model.checkpoint / "tokenizer.json").read_bytes()

    def test_none_at_all(self, tmp_path: Path) -> None:
        """The error for a file without a vocabulary says which file to add."""
        model = make_model(tmp_path, "nomic_bert")
        path = save_gguf(model, tmp_path / "tiny.gguf", tokenizer=False)
        with pytest.raises(CheckpointMismatch, match=r"tokenizer of kind None.*tokenizer\.json"):
            build(tmp_path, model, path)


def small_file(path: Path) -> bytes:
    """A complete GGUF file with a few keys and a tensor."""
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_tokenizer_model("bert")
    writer.add_token_list(["a", "b"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_tensor("w", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def header(n_tensors: int, n_keys: int, rest: bytes = b"") -> bytes:
    """A GGUF header with these counts."""
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + rest


def string(text: bytes, length: int | None = None) -> bytes:
    """A string in GGUF's format, with this length or its own."""
    return struct.pack("<Q", len(text) if length is None else length) + text


def tensor(name: bytes, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    """The description of a tensor in GGUF's format."""
    shape = struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", dim) for dim in dims)
    return string(name) + shape + struct.pack("<IQ", kind, offset)


ARRAY, STRING, UINT8 = 9, 8, 0
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "magic": b"GGML" + bytes(60),
    "version": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
    "tensors": header(1 << 60, 0),
    "keys": header(0, 1 << 60),
    "key-name": header(0, 1, string(b"x", 1 << 62)),
    "value-type": header(0, 1, string(b"k") + struct.pack("<I", 77)),
    "array-of-bytes": header(0, 1, string(b"k") + struct.pack("<IIQ", ARRAY, UINT8, 1 << 60)),
    "array-of-strings": header(0, 1, string(b"k") + struct.pack("<IIQ", ARRAY, STRING, 1 << 40)),
    "array-of-arrays": header(
        0, 1, string(b"k") + struct.pack("<IIQ", ARRAY, ARRAY, 1) * 400 + bytes(64)
    ),
    "dimensions": header(1, 0, tensor(b"w", [1] * 200)),
    "huge-tensor": header(1, 0, tensor(b"w", [1 << 40, 1 << 20]) + bytes(64)),
    "overflowing-tensor": header(1, 0, tensor(b"w", [1 << 33, 1 << 33]) + bytes(64)),
    "far-tensor": header(1, 0, tensor(b"w", [4], offset=1 << 62) + bytes(64)),
    "no-axes": header(1, 0, tensor(b"w", []) + bytes(64)),
    "tensor-type": header(1, 0, tensor(b"w", [4], kind=999) + bytes(64)),
    "twins": header(2, 0, tensor(b"w", [4]) + tensor(b"w", [4]) + bytes(128)),
    "bad-name": header(1, 0, tensor(b"\xff\xfe", [4]) + bytes(64)),
    "alignment": header(0, 1, string(b"general.alignment") + struct.pack("<II", 4, 0) + bytes(64)),
}


class TestHostileFiles:
    """A hostile file gives an error, quickly and in little memory."""

    @pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
    def test_lies(self, tmp_path: Path, content: bytes) -> None:
        """Absurd counts, lengths, types and offsets are refused without allocating memory."""
        path = tmp_path / "odd.gguf"
        path.write_bytes(content)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(CheckpointMismatch, match="not a whole GGUF file"):
            GgufCheckpoint(path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB

    def test_cut_anywhere(self, tmp_path: Path) -> None:
        """A file that ends too early is refused."""
        whole = small_file(tmp_path / "whole.gguf")
        path = tmp_path / "cut.gguf"
        for n_bytes in range(0, len(whole), 7):
            path.write_bytes(whole[:n_bytes])
            with pytest.raises(CheckpointMismatch, match="not a whole GGUF file"):
                GgufCheckpoint(path)

    @given(at=st.integers(0, 511), new=st.integers(0, 255))
    @settings(max_examples=150, deadline=None)
    def test_overwritten_weights(
        self, tmp_path_factory: pytest.TempPathFactory, at: int, new: int
    ) -> None:
        """A changed byte among the weights gives another weight, or an error if it is not finite."""
        path = tmp_path_factory.mktemp("gguf") / "odd.gguf"
        content = bytearray(small_file(path))
        content[len(content) - 512 + at] = new
        path.write_bytes(content)
        expected = np.frombuffer(content[-512:], "<f4").reshape(4, 32)
        checkpoint = GgufCheckpoint(path)
        if np.isfinite(expected).all():
            assert np.array_equal(checkpoint.read("w"), expected)
        else:
            with pytest.raises(CheckpointMismatch, match="tensor 'w' holds NaN or infinity"):
                checkpoint.read("w")

    def test_overwritten_header(self, tmp_path: Path) -> None:
        """A file with a changed byte in a name, count, length, type or offset is refused."""
        whole = small_file(tmp_path / "whole.gguf")
        path = tmp_path / "odd.gguf"
        accepted: list[int] = []
        for at in range(len(whole) - 512):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
            try:
                GgufCheckpoint(path).read("w")
            except CheckpointMismatch as exc:
                assert str(path) in exc.message  # noqa: PT017 - all but `accepted`
            else:
                accepted.append(at)
        first = whole.index(b"bert")
        vocabulary = whole.index(b"tokens") + len("tokens") + 16 + 8  # type, type, count; length
        numbers = whole.index(b"numbers") + len("numbers") + 16
        padding = whole.rindex(b"w") + 1 + 4 + 2 * 8 + 4 + 8  # axes, shape, type, offset
        values = [
            *range(first, first + 4),
            *range(whole.index(b"bert", first + 1), whole.index(b"bert", first + 1) + 4),
            *(vocabulary, vocabulary + 9),
            *range(numbers, numbers + 12),
            *range(padding, len(whole) - 512),
        ]
        assert accepted == values

    def test_infinite_scales(self, tmp_path: Path) -> None:
        """A block whose scale is not finite is refused."""
        data = gguf.quantize(np.ones((4, 32), np.float32), Q.Q8_0)
        data[2, :2] = np.frombuffer(np.array(np.inf, np.float16).tobytes(), np.uint8)
        path = tmp_path / "inf.gguf"
        writer = gguf.GGUFWriter(path, "bert")
        writer.add_tensor("w", data, raw_dtype=Q.Q8_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        checkpoint = GgufCheckpoint(path)
        reads: list[Callable[[], object]] = [
            lambda: checkpoint.read("w"),
            lambda: checkpoint.blocks("w", slice(None), 8),
        ]
        for read in reads:
            with pytest.raises(CheckpointMismatch, match="NaN or infinity"):
                read()
