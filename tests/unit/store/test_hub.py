"""A hub that refuses, limits or breaks off: what is tried again, what is said, and the cache."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from huggingface_hub import constants

from matryo.catalog.manifest import HubSource
from matryo.catalog.reading import read_manifest
from matryo.core.errors import CheckpointMismatch, PullFailed
from matryo.core.progress import SILENT
from matryo.store.layout import Store
from matryo.store.pull import checkpoint as module
from matryo.store.pull.download import DownloadFailed, download, without_credentials
from matryo.store.pull.hub import from_hub
from tests.checkpoints import TinyModel, make_model
from tests.recorder import Counter, Recorder
from tests.standins import COMMIT, StandIn, hub_files, serving

REPO = "acme/tiny"
NAMES = ("model.safetensors", "tokenizer.json")
SOURCE = HubSource(kind="hub", repo=REPO, revision=COMMIT)
WAY_OUT = "matryo pull tiny --from FOLDER"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """A hub, empty at first, and no token or cache on this machine."""
    with serving() as state:
        monkeypatch.setattr(constants, "ENDPOINT", state.url)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        yield state


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """A tiny model whose manifest names the hub."""
    source = f'[[sources]]\nkind = "hub"\nrepo = "{REPO}"\nrevision = "{COMMIT}"'
    return make_model(tmp_path, "bert", sources=source)


def fetch(tmp_path: Path) -> tuple[str, list[float]]:
    """The message of a pull from the hub that fails, and the waits before that."""
    waits: list[float] = []
    with pytest.raises(PullFailed) as caught:
        from_hub(SOURCE, "tiny", tmp_path, dict.fromkeys(NAMES), SILENT, sleep=waits.append)
    return caught.value.message, waits


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_token_helps(
    tmp_path: Path, hub: StandIn, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Where the repository may be private, HF_TOKEN is named, at once and with the way out."""
    hub.status = status
    message, waits = fetch(tmp_path)
    assert "set HF_TOKEN" in message
    assert message.endswith(WAY_OUT)
    assert waits == []
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    message, _ = fetch(tmp_path)
    assert "set HF_TOKEN" not in message
    assert "may read it" in message or "may not read it" in message
    assert "hf_secret" not in message


@pytest.mark.parametrize("code", ["EntryNotFound", "RevisionNotFound"])
def test_a_file_that_is_not_there(tmp_path: Path, hub: StandIn, code: str) -> None:
    """A repository that can be seen and lacks a file is not private."""
    hub.headers = {"x-error-code": code}
    message, _ = fetch(tmp_path)
    assert "HF_TOKEN" not in message
    assert message.endswith(WAY_OUT)


def test_bars(tmp_path: Path, hub: StandIn, model: TinyModel) -> None:
    """Each file has a bar, and all have one, which counts no byte twice after a broken connection."""
    hub.files = hub_files(REPO, model.checkpoint, NAMES)
    hub.drop_after = 2000
    sizes = {name: (model.checkpoint / name).stat().st_size for name in NAMES}
    reporter = Counter()
    from_hub(SOURCE, "tiny", tmp_path, sizes, reporter, sleep=_no_wait)
    assert len(hub.requests) == 3
    bars = {f"fetching {name}": n_bytes for name, n_bytes in sizes.items()}
    assert reporter.counted == bars | {"2 files": sum(sizes.values())}

    some: list[dict[str, int | None]] = [dict.fromkeys(NAMES), {NAMES[1]: sizes[NAMES[1]]}]
    for unknown in some:
        reporter = Counter()
        from_hub(SOURCE, "tiny", tmp_path, unknown, reporter)
        assert reporter.counted.keys() == {f"fetching {name}" for name in unknown}


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_tried_again(tmp_path: Path, hub: StandIn, model: TinyModel, status: int) -> None:
    """Faults that pass are tried again, each wait twice the last; a token is no remedy."""
    hub.status = status
    message, waits = fetch(tmp_path)
    assert waits == [1, 2, 4, 8]
    assert "HF_TOKEN" not in message
    assert f"{status}" in message
    assert message.endswith(WAY_OUT)

    hub.files = hub_files(REPO, model.checkpoint, NAMES)

    def recover(_: float) -> None:
        hub.status = None

    hub.requests.clear()
    from_hub(SOURCE, "tiny", tmp_path, dict.fromkeys(NAMES), SILENT, sleep=recover)
    assert (tmp_path / NAMES[0]).read_bytes() == (model.checkpoint / NAMES[0]).read_bytes()
    assert len(hub.requests) == 3


@pytest.mark.parametrize("kind", ["seconds", "date"])
def test_retry_after(tmp_path: Path, hub: StandIn, kind: str) -> None:
    """The server's own wait is kept, and one beyond reason is given up at once."""
    for seconds, expected in ((7, [7, 7, 7, 8]), (3600, [])):
        when = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
        hub.status = 429
        hub.headers = {"retry-after": f"{seconds}" if kind == "seconds" else when}
        message, waits = fetch(tmp_path)
        assert waits == pytest.approx(expected, abs=1.5)
        assert ("asks to wait 3," in message) == (seconds > 60)
        assert message.endswith(WAY_OUT)


def test_no_answer(tmp_path: Path, hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that cannot be reached is said at once, without a word of tokens or credentials."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:pass@127.0.0.1:9")
    message, waits = fetch(tmp_path)
    assert "does not answer" in message
    assert "HF_TOKEN" not in message
    assert "pass" not in message
    assert message.endswith(WAY_OUT)
    assert waits == []


def test_a_part_that_fits_nothing(tmp_path: Path, hub: StandIn) -> None:
    """A part that the server refuses to go on from is dropped, and the file fetched whole."""
    hub.files = {"/file": b"content"}
    (tmp_path / "file.part").write_bytes(b"longer than the content")
    hub.unsatisfiable = True
    download(f"{hub.url}/file", tmp_path / "file", n_bytes=None, reporter=SILENT, sleep=_no_wait)
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_part_that_is_whole(tmp_path: Path, hub: StandIn) -> None:
    """What was fetched to its end before a kill is not fetched again."""
    hub.files = {"/file": b"content"}
    (tmp_path / "file.part").write_bytes(b"content")
    hub.unsatisfiable = True
    download(f"{hub.url}/file", tmp_path / "file", n_bytes=None, reporter=SILENT, sleep=_no_wait)
    assert (tmp_path / "file").read_bytes() == b"content"
    assert len(hub.requests) == 1


def test_waits_are_said(tmp_path: Path, hub: StandIn) -> None:
    """Before each wait there is a sentence, without the credentials of a URL."""
    hub.status = 503
    recorder = Recorder()
    url = hub.url.replace("//", "//user:pass@")
    with pytest.raises(DownloadFailed) as caught:
        download(f"{url}/x", tmp_path / "x", n_bytes=None, reporter=recorder, sleep=_no_wait)
    assert [line.rsplit("; ")[-1] for line in recorder.said] == [
        f"trying again in {n} s" for n in (1, 2, 4, 8)
    ]
    assert "pass" not in "".join((*recorder.said, caught.value.message))
    assert without_credentials("see 'https://a:b@c/d' and e@f") == "see 'https://c/d' and e@f"


def _no_wait(_: float) -> None:
    """Wait for nothing."""


class TestOffline:
    """HF_HUB_OFFLINE: the cache of the hub, or nothing."""

    @pytest.fixture
    def snapshot(self, hub: StandIn, model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The cache's snapshot of the pinned revision, with both files as links."""
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        base = Path(constants.HF_HUB_CACHE) / "models--acme--tiny"
        folder = base / "snapshots" / COMMIT
        (base / "blobs").mkdir(parents=True)
        folder.mkdir(parents=True)
        for name in NAMES:
            (base / "blobs" / name).write_bytes((model.checkpoint / name).read_bytes())
            (folder / name).symlink_to(base / "blobs" / name)
        return folder

    def pull(self, tmp_path: Path, model: TinyModel) -> Path:
        """Pull the model."""
        manifest = read_manifest(model.models / model.id)
        return module.pull(Store(tmp_path / "home"), manifest, None, SILENT)

    def test_snapshot(self, tmp_path: Path, hub: StandIn, model: TinyModel, snapshot: Path) -> None:
        """Files of the snapshot are copied and verified; the hub is not asked."""
        folder = self.pull(tmp_path, model)
        for name in NAMES:
            assert (folder / name).read_bytes() == (model.checkpoint / name).read_bytes()
            assert not (folder / name).is_symlink()
        assert hub.requests == []

    def test_lacking(self, tmp_path: Path, model: TinyModel, snapshot: Path) -> None:
        """What the snapshot lacks is named, with the folder and the way out."""
        (snapshot / "tokenizer.json").unlink()
        with pytest.raises(PullFailed, match=r"lacks tokenizer\.json in") as caught:
            self.pull(tmp_path, model)
        assert str(snapshot) in caught.value.message
        assert "HF_HOME" in caught.value.message
        assert caught.value.message.endswith(WAY_OUT)

    def test_damaged(self, tmp_path: Path, model: TinyModel, snapshot: Path) -> None:
        """A cached file is hashed like every other."""
        (snapshot.parent.parent / "blobs/model.safetensors").write_bytes(b"rubbish")
        with pytest.raises(CheckpointMismatch, match="came with sha256") as caught:
            self.pull(tmp_path, model)
        assert caught.value.message.endswith(WAY_OUT)
