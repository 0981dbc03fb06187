"""A checkpoint's own files give the manifest that a careful person would write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from tokenizers import Tokenizer

from matryo.build import arch
from matryo.build.derive.facts import read_facts
from matryo.build.derive.files import read_layout
from matryo.build.provision import build_model, derive_model
from matryo.catalog.catalog import Catalog
from matryo.catalog.manifest import Manifest
from matryo.core.errors import CheckpointMismatch, SetupError
from matryo.core.progress import SILENT
from matryo.engine import CoreUse
from matryo.engine.onnx import OnnxEngine
from matryo.store.derived import find_derived, models_folder
from matryo.store.layout import Store
from matryo.store.references import parse_reference
from tests import arch as tiny
from tests.checkpoints import EXPERTS, save_gguf, save_tensors, vocabulary
from tests.conftest import build_tiny, load_tiny
from tests.folders import change_json, make_folder, modules, write_json
from tests.recorder import Recorder
from tests.unit.build.test_ready_graphs import export

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "nomic-v1.5": ("nomic_bert", {}),
    "nomic-v2-moe": ("nomic_bert", EXPERTS),
    **tiny.variants(),
}
STATIC = frozenset({"model2vec"})


def derived(root: Path, folder: Path, recorder: Recorder | None = None) -> Manifest:
    """The manifest that a folder or a file gives, in the store `root/home`."""
    store = Store(root / "home")
    reference = parse_reference(str(folder))
    assert reference
    derive_model(store, catalog(root), reference, recorder or SILENT)
    model_id = find_derived(store.home, reference.text)
    assert model_id
    return catalog(root).manifest(model_id)


def catalog(root: Path) -> Catalog:
    """The models of the store, and no shipped ones."""
    stored = models_folder(root / "home")
    return Catalog((stored,) if any(stored.glob("*/model.toml")) else ())


def engine_of(root: Path, manifest: Manifest) -> OnnxEngine:
    """A derived model, built and loaded."""
    artifact = build_model(
        Store(root / "home"), manifest, "fp32", None, allow_unverified=False, reporter=SILENT
    )
    return OnnxEngine(manifest, artifact, CoreUse(workers=1, threads=1, lone_threads=1))


TEXTS = ["the sky is blue", "grass is green: a document", "q", "search query " * 9]


def vectors(engine: OnnxEngine, size: int) -> np.ndarray[Any, Any]:
    """Vectors of a few texts without a prompt."""
    ids = [engine.cut(text.ids) for text in engine.tokenize(TEXTS)]
    return np.stack(engine.embed(ids, [size] * len(ids)).embeddings)


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture(tmp_path: Path, kind: str) -> None:
    """A folder of each architecture gives the config, and the vectors, of a hand-written one."""
    model_type, changes = KINDS[kind]
    model, folder = make_folder(tmp_path, model_type, **changes)
    manifest = derived(tmp_path, folder)
    config = arch.validated(
        model_type, {k: v for k, v in model.config.items() if k != "model_type"}
    )
    assert arch.load(manifest)[1] == config
    by_hand = load_tiny(model, build_tiny(tmp_path / "made", model))
    size = by_hand.manifest.output.dimensions.native
    if model_type not in STATIC:
        assert np.array_equal(vectors(engine_of(tmp_path, manifest), size), vectors(by_hand, size))


class TestModules:
    """The files of sentence-transformers decide pools, layers, prompts and sizes."""

    @pytest.mark.parametrize(
        ("pooling", "steps"),
        [
            ("mean", ["mean_pool"]),
            ("cls", ["cls_pool"]),
            ("max", ["max_pool"]),
            ("lasttoken", ["last_token_pool"]),
            ("weightedmean", ["weighted_mean_pool"]),
            ("mean_sqrt_len_tokens", ["mean_sqrt_len_pool"]),
            (["mean", "cls"], ["mean_pool", "cls_pool"]),
        ],
    )
    def test_pools(self, tmp_path: Path, pooling: object, steps: list[str]) -> None:
        """Every mode of Pooling has its step; several are joined in the file's order."""
        _, folder = make_folder(tmp_path, pooling=pooling)
        manifest = derived(tmp_path, folder)
        assert list(manifest.output.steps) == [*steps, "truncate", "l2_normalize"]
        assert manifest.output.dimensions.native == 32 * len(steps)

    def test_older_form(self, tmp_path: Path) -> None:
        """The booleans of older files mean the same as the mode's name."""
        _, folder = make_folder(tmp_path)
        write_json(
            folder / "1_Pooling/config.json",
            {
                "word_embedding_dimension": 32,
                "pooling_mode_cls_token": True,
                "pooling_mode_mean_tokens": False,
            },
        )
        assert derived(tmp_path, folder).output.steps[0] == "cls_pool"

    def test_dense(self, tmp_path: Path) -> None:
        """Dense modules are steps, and their last width is the vector's."""
        _, folder = make_folder(tmp_path, dense=[(32, 20, "Tanh"), (20, 12, "GELU")])
        manifest = derived(tmp_path, folder)
        assert manifest.output.steps == (
            *("mean_pool", "dense", "dense", "truncate", "l2_normalize"),
        )
        assert [layer.activation for layer in manifest.output.dense] == ["tanh", "gelu"]
        assert manifest.output.dimensions.native == 12
        assert vectors(engine_of(tmp_path, manifest), 12).shape == (len(TEXTS), 12)

    def test_inner_folder(self, tmp_path: Path) -> None:
        """The transformer may lie in a folder of its own, as older versions have it."""
        model, folder = make_folder(tmp_path, inner="0_Transformer")
        manifest = derived(tmp_path, folder)
        assert manifest.weights == "0_Transformer/model.safetensors"
        by_hand = load_tiny(model, build_tiny(tmp_path / "made", model))
        assert np.array_equal(vectors(engine_of(tmp_path, manifest), 32), vectors(by_hand, 32))

    def test_no_modules(self, tmp_path: Path) -> None:
        """A folder of transformers alone is pooled by the mean, as sentence-transformers does."""
        _, folder = make_folder(tmp_path, pooling=None)
        assert derived(tmp_path, folder).output.steps[0] == "mean_pool"

    def test_prompts(self, tmp_path: Path) -> None:
        """Prompts keep their names; a document has the prompt that the library would take."""
        prompts = {"query": "Q: ", "passage": "P: ", "Bitext Mining": "B: "}
        _, folder = make_folder(
            tmp_path, prompts=prompts, more={"default_prompt_name": "query", "truncate_dim": 16}
        )
        recorder = Recorder()
        manifest = derived(tmp_path, folder, recorder)
        assert manifest.prompts == {
            "query": "Q: ",
            "document": "P: ",
            "passage": "P: ",
            "Bitext_Mining": "B: ",
        }
        assert manifest.default_input_type == "query"
        assert manifest.output.dimensions.default == 16
        assert 16 in manifest.output.dimensions.trained
        assert any("'Bitext Mining' is called 'Bitext_Mining'" in line for line in recorder.said)

    def test_sizes_of_the_card(self, tmp_path: Path) -> None:
        """Sizes that sentence-transformers wrote into the card are the trained ones."""
        _, folder = make_folder(tmp_path)
        card = '---\nlicense: mit\n---\n```json\n{"matryoshka_dims": [\n 32,\n 16,\n 8\n]}\n```'
        (folder / "README.md").write_text(card)
        manifest = derived(tmp_path, folder)
        assert manifest.output.dimensions.trained == (32, 16, 8)
        assert manifest.license == "mit"

    def test_limit(self, tmp_path: Path) -> None:
        """The least of the tokenizer's limit, the library's and the positions is the limit."""
        _, folder = make_folder(tmp_path)
        assert derived(tmp_path, folder).tokenizer.max_tokens == 64
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": 48})
        assert derived(tmp_path, folder).tokenizer.max_tokens == 48
        change_json(folder / "tokenizer_config.json", model_max_length=1e30)
        (folder / "sentence_bert_config.json").unlink()
        assert derived(tmp_path, folder).tokenizer.max_tokens == 1200

    def test_lower_case(self, tmp_path: Path) -> None:
        """`do_lower_case` of the library puts texts in lower case before the tokenizer."""
        _, folder = make_folder(tmp_path)
        write_json(folder / "sentence_bert_config.json", {"do_lower_case": True})
        assert not derived(tmp_path, folder).tokenizer.lowercase  # the tokenizer does it already
        tokenizer = folder / "tokenizer.json"
        facts = json.loads(tokenizer.read_text())
        facts["normalizer"]["lowercase"] = False
        write_json(tokenizer, facts)
        manifest = derived(tmp_path, folder)
        assert manifest.tokenizer.lowercase
        engine = engine_of(tmp_path, manifest)
        upper, lower = engine.tokenize(["THE SKY", "the sky"])
        assert upper.ids.tolist() == lower.ids.tolist()

    def test_static_table(self, tmp_path: Path) -> None:
        """A StaticEmbedding needs no config.json, and is cut as its tokenizer.json says."""
        model, folder = make_folder(tmp_path, "model2vec")
        (folder / "config.json").unlink()
        (folder / "tokenizer_config.json").unlink()
        static = "sentence_transformers.models.StaticEmbedding"
        write_json(
            folder / "modules.json",
            [{"idx": 0, "name": "0", "path": "", "type": static}, modules("Normalize")[1]],
        )
        manifest = derived(tmp_path, folder)
        assert manifest.architecture.config["hidden_size"] == model.config["hidden_size"]
        assert manifest.tokenizer.max_tokens == 16
        assert not manifest.tokenizer.add_special_tokens
        assert not manifest.tokenizer.drop_unknown
        assert vectors(engine_of(tmp_path, manifest), 8).shape == (len(TEXTS), 8)
        (folder / "modules.json").unlink()
        write_json(folder / "config.json", {"model_type": "model2vec"})
        assert derived(tmp_path, folder).tokenizer.drop_unknown

    def test_prompt_left_out_of_the_first_token(self, tmp_path: Path) -> None:
        """`include_prompt` changes nothing if the state of the first or last token is taken."""
        _, folder = make_folder(tmp_path, pooling="cls")
        change_json(folder / "1_Pooling/config.json", include_prompt=False)
        assert derived(tmp_path, folder).output.steps[0] == "cls_pool"

    def test_unit_length_always(self, tmp_path: Path) -> None:
        """A checkpoint without Normalize gives vectors of unit length all the same, and says so."""
        _, folder = make_folder(tmp_path, normalize=False, more={"similarity_fn_name": "dot"})
        recorder = Recorder()
        manifest = derived(tmp_path, folder, recorder)
        assert manifest.output.steps[-1] == "l2_normalize"
        assert any("no Normalize" in line for line in recorder.said)
        assert any("'dot'" in line for line in recorder.said)


class TestFolders:
    """Folders as people have them give the right vectors."""

    @pytest.fixture
    def made(self, tmp_path: Path) -> tuple[Path, Path, np.ndarray[Any, Any]]:
        """A folder, and the vectors of the model in it."""
        model, folder = make_folder(tmp_path)
        by_hand = load_tiny(model, build_tiny(tmp_path / "made", model))
        return tmp_path, folder, vectors(by_hand, 32)

    def agrees(self, made: tuple[Path, Path, np.ndarray[Any, Any]], atol: float = 0.0) -> None:
        """The folder gives the model's vectors."""
        root, folder, expected = made
        found = vectors(engine_of(root, derived(root, folder)), 32)
        assert np.abs(found - expected).max() <= atol

    def tensors(self, folder: Path) -> dict[str, np.ndarray[Any, Any]]:
        """The tensors of the folder's weights."""
        from safetensors.numpy import load_file

        return load_file(folder / "model.safetensors")

    def test_shards(self, made: tuple[Path, Path, np.ndarray[Any, Any]]) -> None:
        """Weights in several files with an index are read as one."""
        folder = made[1]
        shard(folder, 3)
        self.agrees(made)

    def test_shards_with_one_missing(self, made: tuple[Path, Path, np.ndarray[Any, Any]]) -> None:
        """The error for a missing shard names the shard."""
        root, folder, _ = made
        shard(folder, 3)
        (folder / "model-00002-of-00003.safetensors").unlink()
        with pytest.raises(CheckpointMismatch, match="needs model-00002-of-00003"):
            derived(root, folder)

    @pytest.mark.parametrize("prefix", ["bert.", ""])
    def test_heads(self, made: tuple[Path, Path, np.ndarray[Any, Any]], prefix: str) -> None:
        """Tensors of heads are ignored, and so is a prefix of all names."""
        folder = made[1]
        tensors = {f"{prefix}{name}": tensor for name, tensor in self.tensors(folder).items()}
        for name in ("cls.predictions.bias", "classifier.weight", "classifier.bias"):
            tensors[name] = np.ones((2, 32), np.float32)
        save_tensors(tensors, folder / "model.safetensors")
        self.agrees(made)

    @pytest.mark.parametrize("resized", [True, False])
    def test_added_tokens(
        self, made: tuple[Path, Path, np.ndarray[Any, Any]], *, resized: bool
    ) -> None:
        """Added tokens with rows of their own are read; without, the cause is named."""
        root, folder, _ = made
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_tokens(["<company>", "<product>"])
        tokenizer.save(str(folder / "tokenizer.json"))
        if not resized:
            with pytest.raises(
                CheckpointMismatch, match=r"2 added tokens.*resize_token_embeddings"
            ):
                engine_of(root, derived(root, folder))
            return
        tensors = self.tensors(folder)
        name = "embeddings.word_embeddings.weight"
        tensors[name] = np.concatenate([tensors[name], np.ones((2, 32), np.float32)])
        save_tensors(tensors, folder / "model.safetensors")
        change_json(folder / "config.json", vocab_size=len(tensors[name]))
        self.agrees(made)

    def test_vocabulary_alone(self, made: tuple[Path, Path, np.ndarray[Any, Any]]) -> None:
        """A tokenizer is made of a vocabulary and the files beside it, all of them pinned."""
        root, folder, _ = made
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.txt").write_text("\n".join(vocabulary()), encoding="utf-8")
        specials = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        write_json(folder / "special_tokens_map.json", specials)
        write_json(
            folder / "tokenizer_config.json",
            {"tokenizer_class": "BertTokenizer", "model_max_length": 64, **specials},
        )
        manifest = derived(root, folder)
        assert {"vocab.txt", "special_tokens_map.json"} <= manifest.files.keys()
        self.agrees(made)

    def test_suffix_in_capitals(self, made: tuple[Path, Path, np.ndarray[Any, Any]]) -> None:
        """A file whose suffix has capitals is read by its path."""
        root, folder, expected = made
        (folder / "model.safetensors").rename(folder / "MODEL.SAFETENSORS")
        found = vectors(engine_of(root, derived(root, folder / "MODEL.SAFETENSORS")), 32)
        assert np.array_equal(found, expected)

    def test_half_precision(self, made: tuple[Path, Path, np.ndarray[Any, Any]]) -> None:
        """Weights in float16 give nearly the same vectors."""
        folder = made[1]
        halves: Any = {n: t.astype(np.float16) for n, t in self.tensors(folder).items()}
        save_tensors(halves, folder / "model.safetensors")
        self.agrees(made, 0.02)


def shard(folder: Path, n_shards: int) -> None:
    """Split the weights of a folder as transformers does."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    names, table = sorted(tensors), {}
    for index in range(n_shards):
        file = f"model-{index + 1:05}-of-{n_shards:05}.safetensors"
        part = names[index::n_shards]
        save_tensors({name: tensors[name] for name in part}, folder / file)
        table |= dict.fromkeys(part, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": table})
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    """Weights as PyTorch pickles them."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def adapter(folder: Path) -> None:
    """An adapter in place of a model."""
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "config.json").rename(folder / "adapter_config.json")


def file(name: str, **values: Any) -> Callable[[Path], None]:
    """A change of a JSON file."""
    return lambda folder: change_json(folder / name, **values)


def gone(name: str) -> Callable[[Path], None]:
    """A file that is missing."""
    return lambda folder: (folder / name).unlink()


def module(kind: str) -> Callable[[Path], None]:
    """A module at the end that Matryo does not compute."""

    def change(folder: Path) -> None:
        write_json(folder / "modules.json", modules("Pooling", kind))

    return change


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (pickled, "AutoModel.from_pretrained"),
    "adapter": (adapter, "merge_and_unload"),
    "no config": (gone("config.json"), "config.json is missing"),
    "other model": (file("config.json", model_type="gpt2"), "no graph for model_type 'gpt2'"),
    "no model_type": (file("config.json", model_type=...), "has no model_type"),
    "relative positions": (
        file("config.json", position_embedding_type="relative_key"),
        "position_embedding_type is 'relative_key'",
    ),
    "decoder": (file("config.json", is_decoder=True), "is_decoder is True"),
    "activation": (file("config.json", hidden_act="relu"), "hidden_act"),
    "heads": (file("config.json", num_attention_heads=5), "num_attention_heads"),
    "a string": (file("config.json", hidden_size="32"), "hidden_size"),
    "CNN": (module("CNN"), "the module 'CNN'"),
    "LSTM": (module("LSTM"), "the module 'LSTM'"),
    "layer norm": (module("LayerNorm"), "the module 'LayerNorm'"),
    "unknown pool": (
        file("1_Pooling/config.json", pooling_mode="median"),
        "pooling_mode is 'median'",
    ),
    "prompt left out": (
        file("1_Pooling/config.json", include_prompt=False),
        "include_prompt is False",
    ),
    "no pooling file": (gone("1_Pooling/config.json"), "1_Pooling/config.json is missing"),
    "default prompt": (
        file("config_sentence_transformers.json", default_prompt_name="x"),
        "default_prompt_name is 'x'",
    ),
    "prompt of numbers": (
        file("config_sentence_transformers.json", prompts={"query": 3}),
        r"prompts\.query is 3",
    ),
    "truncate_dim": (
        file("config_sentence_transformers.json", truncate_dim="half"),
        "truncate_dim is 'half'",
    ),
    "limit": (
        file("tokenizer_config.json", model_max_length="long"),
        "model_max_length is 'long'",
    ),
    "case": (
        file("tokenizer_config.json", do_lower_case=False),
        "do_lower_case false.*lowercase true",
    ),
    "no tokenizer": (gone("tokenizer.json"), "tokenizer.json"),
    "path out of the folder": (
        lambda folder: write_json(
            folder / "modules.json", modules("Pooling", transformer="../elsewhere")
        ),
        "leads out of the folder",
    ),
    "modules of nothing": (
        lambda folder: write_json(folder / "modules.json", []),
        "names no module",
    ),
    "config of a list": (lambda folder: write_json(folder / "config.json", []), "no object"),
    "config cut off": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "be'),
        "cannot be read",
    ),
    "two GGUF files": (
        lambda folder: [
            (folder / "model.safetensors").unlink(),
            (folder / "a.gguf").write_bytes(b"GGUF"),
            (folder / "b.gguf").write_bytes(b"GGUF"),
        ],
        "several GGUF files: a.gguf, b.gguf",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    """What cannot be served is refused with the file, the key, the value and a remedy."""
    change, message = REFUSED[case]
    _, folder = make_folder(tmp_path)
    change(folder)
    with pytest.raises(SetupError, match=message):
        engine_of(tmp_path, derived(tmp_path, folder))


def test_dense_pickle(tmp_path: Path) -> None:
    """A Dense module as PyTorch pickles it is refused, with what to do."""
    _, folder = make_folder(tmp_path, dense=[(32, 16, "Tanh")])
    (folder / "2_Dense/model.safetensors").rename(folder / "2_Dense/pytorch_model.bin")
    with pytest.raises(CheckpointMismatch, match="pickles are never loaded"):
        derived(tmp_path, folder)


class TestAgain:
    """A derived model is derived once, and again when a file of the checkpoint has changed."""

    def test_once(self, tmp_path: Path) -> None:
        """The second time nothing is read but the files' stamps."""
        _, folder = make_folder(tmp_path)
        one, recorder = derived(tmp_path, folder), Recorder()
        assert derived(tmp_path, folder, recorder) == one
        assert recorder.said == []

    @pytest.mark.parametrize(
        "change",
        [
            file("config.json", layer_norm_eps=1e-5),
            file("1_Pooling/config.json", pooling_mode="cls"),
            file("config_sentence_transformers.json", prompts={"query": "Q: "}),
            lambda folder: write_json(folder / "sentence_bert_config.json", {"max_seq_length": 9}),
            gone("config_sentence_transformers.json"),
        ],
    )
    def test_after_a_change(self, tmp_path: Path, change: Callable[[Path], None]) -> None:
        """A file that changed, came, or went gives another manifest under the same id."""
        _, folder = make_folder(tmp_path, prompts={"query": "before: "})
        one = derived(tmp_path, folder)
        change(folder)
        other = derived(tmp_path, folder)
        assert one.id == other.id
        assert one.output_key != other.output_key

    def test_folder_gone(self, tmp_path: Path) -> None:
        """A model whose folder is gone is still known, since nothing contradicts it."""
        _, folder = make_folder(tmp_path)
        one = derived(tmp_path, folder)
        shutil.rmtree(folder)
        assert find_derived(tmp_path / "home", str(folder)) == one.id

    @pytest.mark.parametrize("version", [0, 99])
    def test_record_of_another_version(self, tmp_path: Path, version: int) -> None:
        """After a crash, or an upgrade, a model is derived anew and keeps its id."""
        _, folder = make_folder(tmp_path)
        one = derived(tmp_path, folder)
        path = models_folder(tmp_path / "home") / one.id / "derived.json"
        change_json(path, version=version)
        assert find_derived(tmp_path / "home", str(folder)) is None
        assert derived(tmp_path, folder) == one

    def test_nothing_is_left_of_a_refusal(self, tmp_path: Path) -> None:
        """What makes no manifest leaves no folder, and does not take the id."""
        _, folder = make_folder(tmp_path, prompts={"query": "Q: "}, more={"truncate_dim": 99})
        change_json(folder / "1_Pooling/config.json", pooling_mode=["mean"] * 70)
        with pytest.raises(SetupError):
            derived(tmp_path, folder)
        assert not list(models_folder(tmp_path / "home").glob("*"))
        change_json(folder / "1_Pooling/config.json", pooling_mode="mean")
        assert derived(tmp_path, folder).id == "my-model"

    def test_settings_under_another_name(self, tmp_path: Path) -> None:
        """A file of the library's settings counts under each of its names, also if it comes."""
        _, folder = make_folder(tmp_path)
        derived(tmp_path, folder)
        write_json(folder / "sentence_roberta_config.json", {"max_seq_length": 7})
        assert derived(tmp_path, folder).tokenizer.max_tokens == 7

    def test_two_folders_of_one_name(self, tmp_path: Path) -> None:
        """Two folders of one name are two models."""
        _, one = make_folder(tmp_path / "a")
        _, other = make_folder(tmp_path / "b", pooling="cls")
        ids = {derived(tmp_path, one).id, derived(tmp_path, other).id}
        assert ids == {"my-model", "my-model-2"}
        assert derived(tmp_path, one).output.steps[0] == "mean_pool"


def test_facts_name_their_file(tmp_path: Path) -> None:
    """Every derived fact says which file, and which key, it is from."""
    _, folder = make_folder(tmp_path)
    facts = read_facts(read_layout(folder))
    assert facts.model_type.where == "config.json: model_type"
    assert facts.output.pools.where == "1_Pooling/config.json: pooling_mode"
    assert facts.max_tokens.where == "tokenizer_config.json: model_max_length"
    assert facts.architecture["layer_norm_eps"].where == "config.json: layer_norm_eps"


class TestGguf:
    """A GGUF file alone gives a model, from its metadata and its own vocabulary."""

    @pytest.mark.parametrize(
        "kind",
        [
            name
            for name, (model_type, _) in KINDS.items()
            if model_type in ("bert", "nomic_bert") or hasattr(tiny.of(model_type), "gguf_tensors")
        ],
    )
    def test_every_architecture(self, tmp_path: Path, kind: str) -> None:
        """The metadata give the config of the file that was converted."""
        model_type, changes = KINDS[kind]
        model, _ = make_folder(tmp_path, model_type, **changes)
        path = save_gguf(model, tmp_path / "tiny-F32.gguf")
        manifest = derived(tmp_path, path)
        config = arch.load(manifest)[1].model_dump()
        expected = arch.validated(model_type, without_type(model.config)).model_dump()
        # The file has neither the length of the training nor the factor of its stretching.
        for key in ("max_trained_positions", "rotary_scaling_factor", "layer_types"):
            config.pop(key, None)
            expected.pop(key, None)
        assert config == expected
        assert manifest.output.steps[0] == "mean_pool"
        assert manifest.id == "tiny-F32"

    def test_vectors(self, tmp_path: Path) -> None:
        """The file gives the vectors of the folder that it was made of."""
        model, folder = make_folder(tmp_path)
        path = save_gguf(model, tmp_path / "tiny.gguf", metadata={"pooling_type": 2})
        manifest = derived(tmp_path, path)
        assert manifest.output.steps[0] == "cls_pool"
        change_json(folder / "1_Pooling/config.json", pooling_mode="cls")
        expected = vectors(engine_of(tmp_path, derived(tmp_path, folder)), 32)
        found = vectors(engine_of(tmp_path, manifest), 32)
        assert np.abs(found - expected).max() < 1e-6

    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            ({"pooling_type": 0}, "pooling_type is 0, but must be 1"),
            ({"pooling_type": 4}, "pooling_type is 4"),
            ({"attention.head_count": 5}, "num_attention_heads"),
        ],
    )
    def test_refused(self, tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
        """Metadata of a model that gives no vectors, or of none at all, are refused."""
        model, _ = make_folder(tmp_path)
        path = save_gguf(model, tmp_path / "tiny.gguf", metadata=metadata)
        with pytest.raises(SetupError, match=message):
            derived(tmp_path, path)


def without_type(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without its `model_type`."""
    return {key: value for key, value in config.items() if key != "model_type"}


class TestOnnx:
    """An ONNX export is served as it is, with the files around it."""

    @pytest.mark.parametrize("at", ["onnx/model.onnx", "model.onnx"])
    def test_folder(self, tmp_path: Path, at: str) -> None:
        """A folder with an export and no other weights gives the vectors of its own pooling."""
        model, folder = make_folder(tmp_path)
        expected = vectors(engine_of(tmp_path, derived(tmp_path, folder)), 32)
        graph = build_tiny(tmp_path / "made", model).graph
        (folder / at).parent.mkdir(exist_ok=True)
        for path in graph.parent.glob("model.onnx*"):
            shutil.copy(path, (folder / at).parent)
        (folder / "model.safetensors").unlink()
        manifest = derived(tmp_path, folder)
        assert manifest.architecture.model_type == "onnx"
        assert list(manifest.precisions) == ["fp32"]
        assert manifest.weights == at
        assert np.array_equal(vectors(engine_of(tmp_path, manifest), 32), expected)
        assert derived(tmp_path, folder / at).output == manifest.output

    def test_a_graph_that_pools_itself(self, tmp_path: Path) -> None:
        """A graph that gives `sentence_embedding` alone is read as one that pools itself."""
        _, folder = make_folder(tmp_path)
        (folder / "model.safetensors").unlink()
        export(
            folder / "model.onnx", names=("other", "sentence_embedding"), dtype=TensorProto.INT64
        )
        manifest = derived(tmp_path, folder)
        assert manifest.output.steps == ("given", "truncate", "l2_normalize")
        assert vectors(engine_of(tmp_path, manifest), 32).shape == (len(TEXTS), 32)

    def test_no_config(self, tmp_path: Path) -> None:
        """An export without a config.json is refused: nothing tells the width of a vector."""
        model, _ = make_folder(tmp_path)
        graph = build_tiny(tmp_path / "made", model).graph
        alone = tmp_path / "alone"
        shutil.copytree(graph.parent, alone)
        with pytest.raises(CheckpointMismatch, match="has no hidden_size"):
            derived(tmp_path, alone / "model.onnx")
