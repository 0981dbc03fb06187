"""Fetches the checkpoint of a repository on a hub that no model names yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matryo.catalog.manifest import HubSource, Manifest
from matryo.core.errors import PullFailed
from matryo.core.progress import Reporter
from matryo.store.files import make_folder, replace_folder, room_for
from matryo.store.layout import Store
from matryo.store.pull.hub import from_hub
from matryo.store.pull.repository import Repository, checkpoint_files, look_at
from matryo.store.references import Reference
from matryo.store.unread import explain_file


@dataclass(frozen=True, slots=True)
class Fetched:
    """The files of a repository in the store.

    Attributes:
        folder: of the files.
        source: the repository and its commit.
    """

    folder: Path
    source: HubSource


def fetch_repository(store: Store, reference: Reference, reporter: Reporter) -> Fetched:
    """Fetch the checkpoint of a repository into the store, where it has no final name yet.

    Call under the store's lock of derivations.

    Raises:
        PullFailed: the hub does not answer, or the repository has no weights that Matryo reads.
    """
    repository = look_at(reference)
    names = checkpoint_files(repository.sizes)
    _check_weights(repository, names)
    reporter.say(f"{reference.text} is at commit {repository.commit}")
    source = HubSource(kind="hub", repo=repository.repo, revision=repository.commit)
    # One folder for a commit, whatever id the model gets: the next try resumes.
    folder = (
        store.home / "fetched" / f"{reference.repo.replace('/', '--')}-{repository.commit[:16]}"
    )
    with room_for(store.home):
        make_folder(folder)
    missing = {name: repository.sizes[name] for name in names if not (folder / name).is_file()}
    if missing:
        with room_for(store.home, sum(size or 0 for size in missing.values())):
            from_hub(source, reference.text, folder, missing, reporter)
    return Fetched(folder, source)


def publish(store: Store, fetched: Fetched, manifest: Manifest) -> None:
    """Give a fetched checkpoint its final name, which its manifest tells."""
    final = store.checkpoint(manifest.id, manifest.checkpoint_key)
    with room_for(store.home):
        make_folder(final.parent)
        replace_folder(fetched.folder, final)


def _check_weights(repository: Repository, names: list[str]) -> None:
    """Refuse a repository without weights that Matryo reads, by what it holds in their place."""
    if any(name.endswith((".safetensors", ".onnx")) and "_Dense/" not in name for name in names):
        return
    hints = (explain_file(Path(name)) for name in sorted(repository.sizes))
    hint = next((hint for hint in hints if hint), "")
    raise PullFailed(
        f"{repository.repo} has no model.safetensors and no onnx/model.onnx at commit "
        f"{repository.commit}. {hint}".rstrip()
    )
