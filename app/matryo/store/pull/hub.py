"""A repository on a Hugging Face hub as a source of files."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import httpx2

from matryo.catalog.manifest import HubSource
from matryo.core.errors import PullFailed
from matryo.core.progress import Reporter
from matryo.store.files import make_folder
from matryo.store.pull.download import download


def from_hub(
    source: HubSource, model_id: str, into: Path, names: Collection[str], reporter: Reporter
) -> None:
    """Download the named files of the pinned revision to `into`.

    Raises:
        PullFailed: the hub does not answer, refuses, or has no such file.
    """
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
        reporter.say(f"fetching {name} of {source.repo} from the hub")
        url = hf_hub_url(source.repo, name, revision=source.revision)
        try:
            # The library knows the caller's token, the file's size and what a refusal means.
            # It does not resume what an earlier process left; `download` does.
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
        make_folder(path.parent)
        headers = hub.utils.build_hf_headers()
        download(url, path, n_bytes=n_bytes, reporter=reporter, headers=headers)
