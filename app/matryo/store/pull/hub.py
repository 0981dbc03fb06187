"""A repository on a Hugging Face hub as a source of files."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from matryo.catalog.manifest import HubSource
from matryo.core.errors import PullFailed
from matryo.core.progress import Reporter, Together
from matryo.store.files import make_folder
from matryo.store.pull.download import DownloadFailed, download, without_credentials
from matryo.store.pull.folder import from_folder
from matryo.store.pull.sizes import Sizes


def from_hub(
    source: HubSource,
    model_id: str,
    into: Path,
    files: Sizes,
    reporter: Reporter,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Download the named files of the pinned revision to `into`.

    With HF_HUB_OFFLINE they are copied from the hub's cache on this machine.

    Raises:
        PullFailed: the hub does not answer, refuses, or has no such file.
    """
    # Imported here: it reads HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN when imported.
    from huggingface_hub import constants, utils

    library = cast("Any", utils)
    by_hand = (
        f"Or fetch {', '.join(files)} of {source.repo} at revision {source.revision} on another "
        f"machine and run: matryo pull {model_id} --from FOLDER"
    )
    if constants.HF_HUB_OFFLINE:
        _from_cache(Path(constants.HF_HUB_CACHE), source, into, files, reporter, by_hand)
        return
    with _bar_of_all(files, reporter) as telling:
        for name, n_bytes in files.items():
            telling.say(f"fetching {name} of {source.repo} from the hub")
            url = f"{constants.ENDPOINT}/{source.repo}/resolve/{source.revision}/{name}"
            path = into / name
            make_folder(path.parent)
            try:
                # The library knows the caller's token. It does not resume what an earlier process
                # left; `download` does.
                headers = library.build_hf_headers()
                download(url, path, n_bytes=n_bytes, reporter=telling, headers=headers, sleep=sleep)
            except DownloadFailed as exc:
                endpoint = without_credentials(constants.ENDPOINT)
                reason = f"the hub at {endpoint} does not give us {name} of {source.repo}"
                if exc.status is None:
                    reason = f"the hub at {endpoint} does not answer"
                advice = _advice(exc, has_token=library.get_token() is not None)
                raise PullFailed(f"{reason}: {exc.message}. {advice} {by_hand}") from exc


@contextmanager
def _bar_of_all(files: Sizes, reporter: Reporter) -> Generator[Reporter, None, None]:
    """A reporter that also shows how far all files are, if there are several of known sizes."""
    sizes = [n_bytes for n_bytes in files.values() if n_bytes is not None]
    if len(files) == 1 or len(sizes) < len(files):
        yield reporter
        return
    with reporter.bar(f"{len(files)} files", sum(sizes)) as advance:
        yield Together(reporter, advance)


def _advice(exc: DownloadFailed, *, has_token: bool) -> str:
    """What to do about a failed download from the hub."""
    private = "private or gated"
    match exc.status:
        case None:
            return "What has arrived is kept. Check the network, or set HF_ENDPOINT to a mirror."
        case 401 | 403 if has_token:
            return (
                f"If the repository is {private}, HF_TOKEN must be of an account that may read it."
            )
        case 401 | 403:
            return f"If the repository is {private}, set HF_TOKEN."
        case 404 if exc.code in ("EntryNotFound", "RevisionNotFound"):
            return "The repository has no such file or revision; check model.toml."
        case 404 if has_token:
            return "There is no such repository, or the account of HF_TOKEN may not read it."
        case 404:
            return f"There is no such repository; if it is {private}, set HF_TOKEN."
        case 429:
            return "The hub has had too many requests from this address; try again later."
        case _:
            return "Try again later."


def _from_cache(
    cache: Path,
    source: HubSource,
    into: Path,
    files: Sizes,
    reporter: Reporter,
    by_hand: str,
) -> None:
    """Copy the named files of a snapshot in the hub's cache on this machine.

    Raises:
        PullFailed: the cache lacks one of them.
    """
    from huggingface_hub import file_download

    folder = file_download.repo_folder_name(repo_id=source.repo, repo_type="model")
    snapshot = cache / folder / "snapshots" / source.revision
    if missing := [name for name in files if not (snapshot / name).is_file()]:
        raise PullFailed(
            f"HF_HUB_OFFLINE is set, and the cache of the hub lacks {', '.join(missing)} in "
            f"{snapshot}. Unset HF_HUB_OFFLINE, or set HF_HOME to the cache that has them. "
            f"{by_hand}"
        )
    from_folder(snapshot, into, files, reporter)
