"""A model is a folder, and a wrong one says what is wrong."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from matryo.catalog.catalog import Catalog, shipped_models
from matryo.catalog.prompts import STANDARD, SYNONYMS
from matryo.catalog.reading import read_manifest
from matryo.core.errors import ManifestInvalid, ModelNotFound
from tests.fakes import MINILM, MODELS, NOMIC


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of v1.5's folder, to be broken."""
    return Path(shutil.copytree(MODELS / NOMIC.id, tmp_path / NOMIC.id))


def edit(folder: Path, old: str, new: str) -> None:
    """Replace a piece of the manifest."""
    path = folder / "model.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("model_id", Catalog([shipped_models()]).ids)
def test_every_shipped_model_reads(model_id: str) -> None:
    """Every folder under models/ is a valid manifest, with golden values beside it."""
    manifest = read_manifest(MODELS / model_id)
    assert manifest.output.dimensions.trained[0] == manifest.output.dimensions.native
    assert (MODELS / model_id / "golden.json").is_file()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("native = 768", "natve = 768", "unknown key 'output.dimensions.natve'; did you mean"),
        ("native = 768", 'native = "768"', "key 'output.dimensions.native': Input should be"),
        ("max_tokens = 8192", "", "key 'tokenizer.max_tokens' is missing; add it"),
        ("max_tokens = 8192", "max_tokens = 0", "greater than or equal to 1, got 0"),
        ('"mean_pool", "layer_norm", "truncate"', '"mean_pool", "truncate", "layer_norm"', "order"),
        ("trained = [768,", "trained = [", "trained must begin with native, 768"),
        ("trained = [768, 512, 256", "trained = [768, 256, 512", "descending"),
        ("layer_norm_eps = 1e-5\n\n", "\n\n", "both or neither"),
        ('"model.safetensors" =', '"../model.safetensors" =', "files"),
        ('"tokenizer.json" =', '"tokens.json" =', "files must list 'tokenizer.json'"),
        ("e9b6763023c676ca8431644204f50c2b100d9aab", "main", "revision"),
        ('id = "nomic-embed-text-v1.5"', 'id = "other"', "the folder is 'nomic-embed-text-v1.5'"),
        ('id = "nomic', "id = nomic", "is not TOML"),
        ('kind = "hub"', 'kind = "ftp"', "ftp"),
        (
            "revision =",
            "revison =",
            "unknown key 'sources.0.hub.revison'; did you mean 'revision'?",
        ),
        (
            "{ bytes = 711396,",
            "{ size = 711396,",
            "'files.tokenizer.json.size'; known here: bytes, sha",
        ),
        ("0.9\n", "0.9\nmincosine = 1\n", "'precisions.q4.mincosine'; did you mean 'min_cosine'?"),
        ("clustering = ", "none = ", "prompts may not name 'none'"),
        ("clustering = ", '"a b" = ', "key 'prompts.a b': String should match pattern"),
        ("clustering = ", f'"{"x" * 65}" = ', "String should match pattern"),
    ],
)
def test_faults_are_named(folder: Path, old: str, new: str, message: str) -> None:
    """A fault is answered with the file, the key, and what to do."""
    edit(folder, old, new)
    with pytest.raises(ManifestInvalid, match=re.escape(str(folder / "model.toml"))) as caught:
        read_manifest(folder)
    assert message in caught.value.message


STEPS = 'steps = ["mean_pool", "layer_norm", "truncate", "l2_normalize"]\nlayer_norm_eps = 1e-5\n'
DENSE = (
    'steps = ["mean_pool", "dense", "dense", "truncate", "l2_normalize"]\n'
    "[[output.dense]]\n"
    'file = "2_Dense/model.safetensors"\n'
    'in_features = 768\nout_features = 100\nbias = true\nactivation = "tanh"\n'
    "[[output.dense]]\n"
    'file = "3_Dense/model.safetensors"\n'
    'in_features = 100\nout_features = 768\nbias = false\nactivation = "identity"\n'
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("in_features = 100", "in_features = 99", "dense 2: in_features is 99, but the layer befo"),
        ("out_features = 768", "out_features = 700", "native is 768, but output.dense 2 gives 700"),
        ('"dense", "dense"', '"dense"', "steps has dense 1 times, but there are 2 tables"),
        ('["mean_pool"', '["mean_pool", "l2_normalize"', ""),
        ('["mean_pool"', '["given"', ""),
        ('["mean_pool"', '["mean_pool", "max_pool"', ""),
        (
            '["mean_pool"',
            '["mean_pool", "max_pool", "cls_pool", "cls_pool", "cls_pool"',
            "768, whi",
        ),
        ('"tanh"', '"ELU"', "'output.dense.0.activation': Input should be 'identity', 'tanh'"),
        ('"tanh"', '"tanh"\nuse_residual = true', "'output.dense.0.use_residual'; known here: act"),
        ('"2_Dense/', '"../2_Dense/', "key 'output.dense.0.file'"),
        ("bias = true\n", "", "key 'output.dense.0.bias' is missing; add it"),
        ("steps =", 'graph_output = ""\nsteps =', "output.graph_output"),
        ('"mean_pool", ', '"cls_pool", ' * 61, "at most 64 items"),
    ],
)
def test_dense_steps(folder: Path, old: str, new: str, message: str) -> None:
    """Dense layers are tables of their own; each takes the width that the step before gives."""
    edit(folder, STEPS, DENSE)
    edit(folder, old, new)
    if not message:
        assert read_manifest(folder).output.graph_width in (384, 768)
        return
    with pytest.raises(ManifestInvalid) as caught:
        read_manifest(folder)
    assert message in caught.value.message


def test_output_key_follows_dense_layers(folder: Path) -> None:
    """Everything that shapes a vector changes the output key: a layer's table, a named output."""
    edit(folder, STEPS, DENSE)
    keys = {read_manifest(folder).output_key}
    for old, new in (
        ('"tanh"', '"gelu"'),
        ("bias = true", "bias = false"),
        ("steps =", 'graph_output = "x"\nsteps ='),
    ):
        edit(folder, old, new)
        keys.add(read_manifest(folder).output_key)
    assert len(keys) == 4


def test_manifests_are_frozen() -> None:
    """Nobody changes a manifest once it is read."""
    with pytest.raises(ValueError, match="frozen"):
        NOMIC.id = "other"  # pyright: ignore[reportAttributeAccessIssue]


OUTPUT_KEYS = {
    "all-minilm-l6-v2": "81a9269c38433ea0",
    "all-mpnet-base-v2": "6fad8eb439f2dd81",
    "bge-base-en-v1.5": "90dda21918c7d974",
    "bge-m3": "520a03468f12e610",
    "bge-small-en-v1.5": "9d9689da703a1ac2",
    "e5-small-v2": "f1d26f29400dc7be",
    "granite-embedding-311m-multilingual-r2": "d03211ee777bcc9a",
    "granite-embedding-97m-multilingual-r2": "2bfaf326d0d68a3a",
    "gte-modernbert-base": "71f0d1cd5dfbb50f",
    "modernbert-embed-base": "3edd9c5db5404c69",
    "multilingual-e5-base": "31409794e5af3ca7",
    "multilingual-e5-large": "67acf35b449b6aff",
    "multilingual-e5-small": "97c5058edef48638",
    "mxbai-embed-large-v1": "2a883e0fade5fe00",
    "nomic-embed-text-v1": "962f784af4e17eef",
    "nomic-embed-text-v1.5": "2ab11f1042b486f5",
    "nomic-embed-text-v2-moe": "3c6e88592dee95db",
    "paraphrase-multilingual-minilm-l12-v2": "eb9742e6d182db5b",
    "potion-retrieval-32m": "5dd1b7db27a10aae",
    "qwen3-embedding-0.6b": "6d801a8246031c0a",
    "snowflake-arctic-embed-l-v2.0": "a34cbe5d690e8422",
    "snowflake-arctic-embed-m-v1.5": "354d0198a2ea9b12",
    "snowflake-arctic-embed-m-v2.0": "4ed10e510ca2ce98",
}


def test_output_keys_of_shipped_models() -> None:
    """Fingerprints of existing indexes hold these keys: they change with the vectors only."""
    catalog = Catalog([shipped_models()])
    assert {name: catalog.manifest(name).output_key for name in catalog.ids} == OUTPUT_KEYS


def test_a_copy_has_its_own_keys() -> None:
    """What was cached of a manifest is not taken over by a copy with other fields."""
    assert NOMIC.output_key == OUTPUT_KEYS[NOMIC.id]
    assert "clustering" in NOMIC.input_type_names
    copied = NOMIC.model_copy(update={"prompts": {"query": "q: "}})
    assert copied.output_key != NOMIC.output_key
    assert "clustering" not in copied.input_type_names


@pytest.mark.parametrize("key", ["add_special_tokens = false", "drop_unknown = true"])
def test_tokenizer_keys_shape_vectors(folder: Path, key: str) -> None:
    """Leaving special or unknown tokens out changes the key; saying the default does not."""
    edit(folder, "[tokenizer]\n", f"[tokenizer]\n{key}\n")
    assert read_manifest(folder).output_key != NOMIC.output_key
    name, value = key.split(" = ")
    edit(folder, key, f"{name} = {'false' if value == 'true' else 'true'}")
    assert read_manifest(folder).output_key == NOMIC.output_key


def test_prompts_of_any_name(folder: Path) -> None:
    """A model may bring names of its own; they are input types, and shape its vectors."""
    edit(folder, "clustering = ", '"code.search" = "code: "\nclustering = ')
    manifest = read_manifest(folder)
    types = ("query", "document", "classification", "code.search", "clustering", "none")
    assert manifest.input_types == types
    assert manifest.prefix("code.search") == "code: "
    assert "code: " in manifest.prefixes
    assert manifest.input_type_names["code.search"] == "code.search"
    assert manifest.output_key != NOMIC.output_key


def test_names_of_input_types(folder: Path) -> None:
    """Types and synonyms of types the model has; its own prompts win over synonyms."""
    assert NOMIC.input_type_names == {name: name for name in NOMIC.input_types} | SYNONYMS
    assert MINILM.input_type_names == NOMIC.input_type_names
    edit(folder, "query = ", "passage = ")
    assert read_manifest(folder).input_type_names == {
        "passage": "passage",
        "document": "document",
        "search_document": "document",
        "classification": "classification",
        "clustering": "clustering",
        "none": "none",
    }


def test_prompts_and_input_types() -> None:
    """A model with prompts knows their types and `none`; one without takes them all."""
    assert NOMIC.prefix("query") == "search_query: "
    assert NOMIC.prefix("none") == ""
    assert NOMIC.input_types == (*STANDARD, "none")
    moe = read_manifest(MODELS / "nomic-embed-text-v2-moe")
    assert moe.input_types == ("query", "document", "none")
    assert not MINILM.has_prompts
    assert MINILM.input_types == (*STANDARD, "none")
    assert MINILM.prefixes == ()
    bge = read_manifest(MODELS / "bge-small-en-v1.5")
    assert bge.input_types == ("query", "document", "none")
    assert (len(bge.prefixes), bge.prefix("document")) == (1, "")


def test_later_folders_win(folder: Path) -> None:
    """An operator's folder replaces a shipped manifest of the same id."""
    edit(folder, "max_tokens = 8192", "max_tokens = 2048")
    catalog = Catalog([shipped_models(), folder.parent])
    assert catalog.manifest(NOMIC.id).tokenizer.max_tokens == 2048
    assert catalog.manifest(MINILM.id) == MINILM


def test_unknown_model_is_explained(tmp_path: Path) -> None:
    """A slip of the pen gets the nearest name; a missing folder is named."""
    with pytest.raises(ModelNotFound, match=r"did you mean 'all-minilm-l6-v2'\?"):
        Catalog([shipped_models()]).folder("all-minilm-l6v2")
    with pytest.raises(ManifestInvalid, match="MATRYO_MODELS"):
        Catalog([tmp_path / "nowhere"])


def test_keys_change_with_what_they_cover(folder: Path) -> None:
    """The output key follows what shapes vectors, the checkpoint key the files."""
    before = read_manifest(folder)
    edit(folder, 'owned_by = "nomic-ai"', 'owned_by = "somebody"')
    assert read_manifest(folder).output_key == before.output_key
    edit(folder, "layer_norm_eps = 1e-5", "layer_norm_eps = 1e-6")
    changed = read_manifest(folder)
    assert changed.output_key != before.output_key
    assert changed.checkpoint_key == before.checkpoint_key
    pinned = before.files["model.safetensors"].sha256
    assert pinned
    edit(folder, pinned, "0" * 64)
    assert read_manifest(folder).checkpoint_key != before.checkpoint_key
