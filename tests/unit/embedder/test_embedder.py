"""`matryo.Embedder`: the server's vectors in a program, loaded where they are used."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from matryo import Embedder
from matryo.catalog.reading import read_manifest
from matryo.core.errors import (
    BadDimensions,
    ContextTooLong,
    FingerprintMismatch,
    InvalidRequest,
    ModelNotFound,
    SetupError,
)
from matryo.store.artifact import find_artifact
from matryo.store.layout import Store
from tests.checkpoints import TinyModel, make_model
from tests.conftest import build_tiny, load_tiny
from tests.contract.conftest import live_server

TEXTS = [f"the sky is {word} {n}" for n, word in enumerate(("blue", "green", "grass", "x") * 5)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the store is."""
    return tmp_path_factory.mktemp("embedder")


@pytest.fixture(scope="module")
def model(root: Path) -> TinyModel:
    """A tiny v1.5 with prompts, built."""
    model = make_model(root, "nomic_bert", layer_norm=True, prompts=True, max_tokens=120)
    build_tiny(root, model)
    return model


@pytest.fixture(autouse=True)
def own_models(model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue has the tiny model."""
    monkeypatch.setenv("MATRYO_MODELS", str(model.models))


@pytest.fixture
def embedder(root: Path, model: TinyModel) -> Iterator[Embedder]:
    """An embedder of that model, closed at the end."""
    with Embedder(model.id, home=root / "home") as embedder:
        yield embedder


def test_the_servers_vectors(root: Path, model: TinyModel, embedder: Embedder) -> None:
    """Vectors and fingerprint are the server's, bit for bit, for every input type and size."""
    manifest = read_manifest(model.models / model.id)
    engine = load_tiny(model, find_artifact(Store(root / "home"), manifest, "fp32"))
    with live_server(engine) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none")
        for input_type, dimensions in (("document", None), ("query", 16), ("none", 8)):
            chosen = Embedder(
                model.id, home=root / "home", input_type=input_type, dimensions=dimensions
            )
            raw = client.embeddings.with_raw_response.create(
                model=model.id,
                input=TEXTS,
                extra_body={"input_type": input_type}
                | ({"dimensions": dimensions} if dimensions else {}),
            )
            served = np.array([item.embedding for item in raw.parse().data], np.float32)
            with chosen:
                assert np.array_equal(chosen.embed(TEXTS), served)
                assert np.array_equal(chosen(TEXTS[:1]), served[:1])
                assert chosen.fingerprint == raw.headers["x-matryo-fingerprint"]


def test_shapes(embedder: Embedder) -> None:
    """Any number of texts, none included; rows are float32 of unit length, in order."""
    many = [f"word {n % 50}" for n in range(1100)]
    vectors = embedder.embed(many)
    assert (vectors.shape, vectors.dtype) == ((1100, 32), np.float32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.array_equal(vectors[50:100], vectors[:50])
    assert embedder.embed([]).shape == (0, 32)


def test_tokens_are_counted_as_the_server_counts_them(embedder: Embedder) -> None:
    """Prefix and special tokens are part of the count; a text over the limit is counted whole."""
    short, long = embedder.count_tokens(["a", "the " * 500])
    assert short == len(
        embedder._loaded().service.directory.engines[0].tokenize(["search_document: a"])[0].ids
    )
    assert long > 500


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one string", "texts is one string; give a list"),
        (["a", 3], r"texts\[1\] is int; each text must be a string"),
        (["a", None], r"texts\[1\] is NoneType"),
    ],
)
def test_what_is_no_list_of_texts(embedder: Embedder, texts: Any, message: str) -> None:
    """A string alone, which is a sequence of letters, is refused like any other wrong type."""
    with pytest.raises(InvalidRequest, match=message):
        embedder.embed(texts)
    with pytest.raises(InvalidRequest, match=message):
        embedder.count_tokens(texts)


def test_faults(root: Path, model: TinyModel) -> None:
    """What cannot be embedded is refused with its index, its value and the limit."""
    home = root / "home"
    with Embedder(model.id, home=home) as embedder:
        with pytest.raises(ContextTooLong) as caught:
            embedder.embed(["a"] * 600 + ["the " * 500])
        assert (caught.value.index, caught.value.max_tokens) == (600, 120)
        assert caught.value.message.endswith("pass truncate=True to have it cut.")
    with (
        Embedder(model.id, home=home, dimensions=33) as large,
        pytest.raises(BadDimensions, match="33"),
    ):
        large.embed(["a"])
    with Embedder(model.id, home=home, truncate=True) as cutting:
        assert cutting.embed(["the " * 500]).shape == (1, 32)
    with pytest.raises(ModelNotFound, match="no model 'nothing'"):
        Embedder("nothing", home=home).embed(["a"])


def test_a_build_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that cannot be fetched is an error of ours, and does not end the caller's program."""
    model = make_model(tmp_path, "bert", max_tokens=64)
    monkeypatch.setenv("MATRYO_MODELS", str(model.models))
    with pytest.raises(SetupError, match="could not be made ready"):
        Embedder(model.id, home=tmp_path / "home").embed(["a"])


def test_close_and_again(embedder: Embedder) -> None:
    """A closed embedder has no thread, and loads the model again when it is asked."""
    gc.collect()  # what earlier tests left may have threads
    threads = threading.active_count()
    first = embedder.embed(["a"])
    assert threading.active_count() > threads
    service = weakref.ref(embedder._loaded())
    embedder.close()
    gc.collect()
    assert service() is None
    assert threading.active_count() == threads
    assert np.array_equal(embedder.embed(["a"]), first)


def test_nothing_is_loaded_before_the_first_use(root: Path) -> None:
    """Making an embedder, and pickling one, costs nothing and asks for nothing."""
    pickled = pickle.dumps(Embedder("no-such-model", home=root / "nowhere"))
    embedder = pickle.loads(pickled)  # noqa: S301 - our own
    assert not (root / "nowhere").exists()
    with pytest.raises(ModelNotFound):
        embedder.embed(["a"])


def _vectors_in_a_child(embedder: Embedder, texts: list[str], pipe: Any) -> None:
    pipe.send(embedder.embed(texts))
    embedder.close()
    pipe.close()


def test_workers(embedder: Embedder, workers: Any) -> None:
    """A worker process loads the model itself, even one that was forked from a loaded parent."""
    expected = embedder.embed(TEXTS)
    ours, theirs = workers.Pipe()
    child = workers.Process(target=_vectors_in_a_child, args=(embedder, TEXTS, theirs))
    child.start()
    assert ours.poll(50)
    assert np.array_equal(ours.recv(), expected)
    child.join(30)
    assert child.exitcode == 0
    assert np.array_equal(embedder.embed(TEXTS), expected)


_LEFTOVERS = """
import gc, os, sys
from matryo import Embedder

gc.disable()
embedder = Embedder(sys.argv[1], home=sys.argv[2])
expected = embedder.embed(["a"])
for left in [Embedder(sys.argv[1], home=sys.argv[2]) for _ in range(4)]:
    left.embed(["a"])
    left.close()
    left.cycle = left
del left
child = os.fork()
if not child:
    gc.collect()  # of the embedders
    same = (embedder.embed(["a"]) == expected).all()
    gc.collect()  # of their services
    os._exit(0 if same else 1)
print("child:", os.waitpid(child, 0)[1])
"""


def test_a_forked_child_collects_what_its_parent_left(root: Path, model: TinyModel) -> None:
    """Garbage of the parent in a child's memory ends no child; an open embedder ends quietly."""
    done = subprocess.run(
        [sys.executable, "-c", _LEFTOVERS, model.id, str(root / "home")],
        env={
            "MATRYO_MODELS": str(model.models),
            "MATRYO_KERNELS": "onnxruntime",
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": ":".join(sys.path),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("child: 0\n", "", 0)


def test_threads_share_one_embedder(embedder: Embedder) -> None:
    """Calls from several threads at once get their own vectors, of one model loaded once."""
    expected = {text: Embedder.embed(embedder, [text])[0] for text in TEXTS}
    found: dict[str, Any] = {}

    def work(text: str) -> None:
        found[text] = embedder.embed([text])[0]

    threads = [threading.Thread(target=work, args=(text,)) for text in TEXTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[text], expected[text]) for text in TEXTS)


def test_builds_in_a_plain_script(tmp_path: Path) -> None:
    """A script without a main guard may embed: the build does not run the script again."""
    model = make_model(tmp_path, "bert", max_tokens=64)
    home = tmp_path / "home"
    script = tmp_path / "script.py"
    script.write_text(
        "import matryo\n"
        "print('started')\n"
        f"embedder = matryo.Embedder('{model.id}', home={str(home)!r})\n"
        "print(embedder.embed(['a']).shape)\n"
    )
    env = {
        "MATRYO_MODELS": str(model.models),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": ":".join(sys.path),
    }
    manifest = read_manifest(model.models / model.id)
    target = home / "checkpoints" / model.id / manifest.checkpoint_key
    target.parent.mkdir(parents=True)
    target.symlink_to(model.checkpoint)
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines() == ["started", "(1, 32)"]


def test_the_expected_fingerprint(root: Path, model: TinyModel, embedder: Embedder) -> None:
    """Vectors of another index are refused, wherever the embedder is unpickled."""
    fingerprint = embedder.fingerprint
    for expected in (fingerprint, f"{model.id}/fp32", f"{model.id}/"):
        with Embedder(model.id, home=root / "home", expect_fingerprint=expected) as right:
            assert np.array_equal(right.embed(TEXTS), embedder.embed(TEXTS))
    with Embedder(model.id, home=root / "home", expect_fingerprint=f"{model.id}/int8") as wrong:
        for one in (wrong, pickle.loads(pickle.dumps(wrong))):  # noqa: S301 - our own
            with pytest.raises(FingerprintMismatch, match="another precision"):
                one.embed(TEXTS)
            with pytest.raises(FingerprintMismatch):
                one({"text": TEXTS})
            assert one.fingerprint == fingerprint  # which says what it should be
            assert len(one.count_tokens(TEXTS)) == len(TEXTS)
            one.close()
    with (
        Embedder(model.id, home=root / "home", expect_fingerprint="") as unset,
        pytest.raises(InvalidRequest, match="is empty"),
    ):
        unset.embed(TEXTS)
