"""`matryo embed`: the server's vectors without a server, and held against others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from matryo.catalog.reading import read_manifest
from matryo.cli import main
from matryo.commands.compare import compare
from matryo.engine.postprocess import FloatArray, l2_normalize
from matryo.store.artifact import find_artifact
from matryo.store.layout import Store
from tests.checkpoints import TinyModel, make_model
from tests.conftest import build_tiny, load_tiny
from tests.contract.conftest import Live, live_server

TEXTS = [f"the sky is {word}" for word in ("blue", "green", "grass", "x", "y z", "the sky") * 3]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the store is."""
    return tmp_path_factory.mktemp("embed")


@pytest.fixture(scope="module")
def model(root: Path) -> TinyModel:
    """A tiny v1.5 with prompts, built in fp32 and int8."""
    model = make_model(root, "nomic_bert", layer_norm=True, prompts=True, max_tokens=120)
    for precision in ("fp32", "int8"):
        build_tiny(root, model, precision)
    return model


@pytest.fixture(scope="module")
def live(root: Path, model: TinyModel) -> Iterator[Live]:
    """It, behind a server."""
    manifest = read_manifest(model.models / model.id)
    engine = load_tiny(model, find_artifact(Store(root / "home"), manifest, "fp32"))
    with live_server(engine) as server:
        yield server


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A file of lines."""
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


def embed(root: Path, model: TinyModel, *flags: object, text: str | None = None) -> Result:
    """Run the command."""
    env = {"MATRYO_HOME": str(root / "home"), "MATRYO_MODELS": str(model.models)}
    return CliRunner().invoke(main, ["embed", model.id, *map(str, flags)], env=env, input=text)


def expected(root: Path, model: TinyModel, prefix: str, size: int = 32) -> FloatArray:
    """What the engine gives for the texts."""
    manifest = read_manifest(model.models / model.id)
    engine = load_tiny(model, find_artifact(Store(root / "home"), manifest, "fp32"))
    ids = [encoded.ids for encoded in engine.tokenize([prefix + text for text in TEXTS])]
    return np.array(engine.embed(ids, [size] * len(ids)).embeddings)


class TestOutput:
    """Vectors in order, in every format."""

    def test_json_lines(self, root: Path, model: TinyModel) -> None:
        """From standard input to standard output, documents by default."""
        done = embed(root, model, text="\n".join(TEXTS))
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert [row["index"] for row in rows] == list(range(len(TEXTS)))
        found = np.array([row["embedding"] for row in rows], np.float32)
        assert np.array_equal(found, expected(root, model, "search_document: "))

    def test_npy(self, root: Path, model: TinyModel, texts: Path, tmp_path: Path) -> None:
        """Queries, cut to 16; nothing half-written is left."""
        out = tmp_path / "v.npy"
        flags = ("--input-type", "query", "--dimensions", 16, "--output", out)
        assert embed(root, model, texts, *flags).exit_code == 0
        found = np.load(out)
        assert found.dtype == np.float32
        assert np.array_equal(found, expected(root, model, "search_query: ", 16))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.txt", "v.npy"]

    def test_parquet_and_ids(self, root: Path, model: TinyModel, tmp_path: Path) -> None:
        """An id goes through as it came."""
        import pyarrow.parquet as pq

        out = tmp_path / "v.parquet"
        rows = [{"text": text, "id": f"k{n}"} for n, text in enumerate(TEXTS)]
        lines = "\n".join(map(json.dumps, rows))
        assert embed(root, model, "-", "--output", out, text=lines).exit_code == 0
        table: Any = pq.read_table(out).to_pydict()  # pyright: ignore[reportUnknownMemberType]
        assert table["id"] == [row["id"] for row in rows]
        found = np.array(table["embedding"], np.float32)
        assert np.array_equal(found, expected(root, model, "search_document: "))

    @pytest.mark.parametrize(
        ("text", "flags", "message"),
        [
            ("a\n" + "the " * 160, (), "line 2 has"),
            ('{"text": "a"}\nnope', (), "line 2: not a JSON object"),
            ("a", ("--output", "v.csv"), "unknown format '.csv'"),
            ("a", ("--dimensions", "33"), "'dimensions': 33"),
            ("a", ("--input-type", "x"), "'input_type': 'x'"),
        ],
    )
    def test_faults(
        self, root: Path, model: TinyModel, text: str, flags: tuple[str, ...], message: str
    ) -> None:
        """Each names the place or the flag's value."""
        done = embed(root, model, "-", *flags, text=text)
        assert done.exit_code == 1
        assert message in done.stderr

    def test_truncate(self, root: Path, model: TinyModel) -> None:
        """Long texts are cut when asked."""
        done = embed(root, model, "--truncate", text="the " * 160)
        assert len(done.stdout.splitlines()) == 1


class TestCompare:
    """Whether vectors may share an index, by the vectors."""

    def facts(self, done: Result) -> Any:
        """What --json prints."""
        return json.loads(done.stdout)

    def test_own_server(self, root: Path, model: TinyModel, texts: Path, live: Live) -> None:
        """The same model behind a server gives the same vectors, and the same fingerprint."""
        url = f"{live.url}/v1"
        done = embed(root, model, texts, "--compare", url, "--json")
        facts = self.facts(done)
        assert (done.exit_code, facts["verdict"]) == (0, "identical")
        assert facts["fingerprints"][0] == facts["fingerprints"][1]
        assert facts["same_neighbours"] == 1
        blank = embed(root, model, "-", "--compare", url, "--json", text="a\n\nb\n")
        assert (blank.exit_code, self.facts(blank)["texts"]) == (0, 2)
        words = embed(root, model, "--compare", url)
        assert "identical: the same vectors" in words.stdout

    def test_other_prefix(self, root: Path, model: TinyModel, texts: Path, live: Live) -> None:
        """A server asked for queries gives what the fingerprint says it gives."""
        flags = (texts, "--compare", f"{live.url}/v1", "--json")
        facts = self.facts(embed(root, model, "--input-type", "query", *flags))
        assert facts["verdict"] == "identical"
        assert facts["fingerprints"][1].split("/")[3] == "query"

    def test_other_precision(self, root: Path, model: TinyModel, texts: Path) -> None:
        """int8 is near, and not the same."""
        facts = self.facts(embed(root, model, texts, "--compare", "int8", "--json"))
        assert facts["verdict"] != "identical"
        assert 0.98 < facts["cosine_min"] < 1 - 1e-6
        assert "/int8/" in facts["fingerprints"][1]

    def test_files(self, root: Path, model: TinyModel, texts: Path, tmp_path: Path) -> None:
        """Vectors kept from before, in both formats."""
        for name in ("v.npy", "v.jsonl"):
            kept = tmp_path / name
            embed(root, model, texts, "--output", kept)
            done = embed(root, model, texts, "--compare", kept, "--json")
            assert (done.exit_code, self.facts(done)["verdict"]) == (0, "identical")
            done = embed(root, model, texts, "--dimensions", 16, "--compare", kept)
            assert done.exit_code == 1
            assert "16 and 32" in done.stdout
        done = embed(root, model, "-", "--compare", tmp_path / "v.npy", text="a\nb")
        assert f"{len(TEXTS)} vectors for 2 texts" in done.stderr

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            ("http://127.0.0.1:1/v1", "no answer"),
            ("fp64", "neither a URL (http://...), nor a precision"),
            ("none.npy", "not a file of vectors"),
        ],
    )
    def test_faults(self, root: Path, model: TinyModel, target: str, message: str) -> None:
        """Each says what was expected."""
        done = embed(root, model, "--compare", target)
        assert done.exit_code == 1
        assert message in done.stderr

    def test_endpoint_refuses(self, root: Path, model: TinyModel, live: Live) -> None:
        """Its own words are shown."""
        flags = ("--compare", f"{live.url}/v1", "--compare-model", "gpt-4")
        done = embed(root, model, *flags)
        assert "status 404" in done.stderr
        assert "`gpt-4` does not exist" in done.stderr

    def test_verdicts(self) -> None:
        """By the least cosine; lengths do not matter, directions do."""
        rng = np.random.default_rng(0)
        one = l2_normalize(rng.standard_normal((40, 64)).astype(np.float32))

        def moved(by: float) -> FloatArray:
            other = rng.standard_normal(one.shape).astype(np.float32)
            other -= (other * one).sum(1, keepdims=True) * one
            return (one + l2_normalize(other) * by).astype(np.float32) * np.float32(3)

        verdicts = [compare(one, moved(by)).verdict for by in (0, 0.02, 0.1, 0.5)]
        assert verdicts == ["identical", "interchangeable", "close", "different"]
        near, far = compare(one, moved(0.02)), compare(one, moved(3))
        assert near.same_neighbours is not None
        assert far.same_neighbours is not None
        assert near.same_neighbours > far.same_neighbours + 0.3
