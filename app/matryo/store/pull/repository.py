"""What a repository on a hub holds at one commit, and the files of a checkpoint among it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from matryo.core.errors import PullFailed
from matryo.store.pull.download import without_credentials
from matryo.store.references import Reference

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PLAIN = re.compile(r"(\w[\w.-]*/)*\w[\w.-]*")
_BESIDE = frozenset(
    (
        *("config.json", "modules.json", "config_sentence_transformers.json"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json"),
        *("sentencepiece.bpe.model", "spiece.model", "README.md"),
    )
)
_MODULE = re.compile(r"\d+_\w+/(config\.json|model\.safetensors|tokenizer\.json)")


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at one commit.

    Attributes:
        repo: `org/name`.
        commit: 40 hex digits.
        sizes: bytes of each file, by its path; None if the hub does not say.
    """

    repo: str
    commit: str
    sizes: Mapping[str, int | None]


def look_at(reference: Reference) -> Repository:
    """Resolve a repository's branch, tag or commit, and list its files.

    With HF_HUB_OFFLINE the hub's cache on this machine is listed.

    Raises:
        PullFailed: the hub does not answer, refuses, or has no such repository or revision.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return _in_cache(Path(constants.HF_HUB_CACHE), reference)
    endpoint = without_credentials(constants.ENDPOINT)
    try:
        info = cast("Any", HfApi(endpoint=constants.ENDPOINT)).model_info(
            reference.repo, revision=reference.revision, files_metadata=True, timeout=30
        )
    except Exception as exc:  # the library's errors have many kinds, of which all mean this
        raise PullFailed(
            f"the hub at {endpoint} does not tell what {reference.text} holds: "
            f"{' '.join(str(exc).split())[:300]}. Check the name, set HF_TOKEN for a private "
            "repository, or give the path of a folder."
        ) from exc
    commit = str(info.sha or "")
    if not _COMMIT.fullmatch(commit):
        raise PullFailed(
            f"the hub at {endpoint} names no commit of {reference.text}, so that nothing can be "
            "pinned. Give the path of a folder."
        )
    sizes = {str(file.rfilename): cast("int | None", file.size) for file in info.siblings or ()}
    return Repository(reference.repo, commit, sizes)


def _in_cache(cache: Path, reference: Reference) -> Repository:
    """A repository as the hub's cache on this machine holds it."""
    from huggingface_hub import file_download

    name = file_download.repo_folder_name(repo_id=reference.repo, repo_type="model")
    folder, revision = cache / name, reference.revision or "main"
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except OSError:
            commit = ""
    snapshot = folder / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
        raise PullFailed(
            f"HF_HUB_OFFLINE is set, and the cache of the hub in {cache} has no {reference.text}. "
            "Unset HF_HUB_OFFLINE, set HF_HOME to the cache that has the repository, or give the "
            "path of a folder."
        )
    files = (path for path in snapshot.rglob("*") if path.is_file())
    sizes = {path.relative_to(snapshot).as_posix(): path.stat().st_size for path in files}
    return Repository(reference.repo, commit, sizes)


def checkpoint_files(names: Iterable[str]) -> list[str]:
    """The files of a repository that a checkpoint is made of, the weights last.

    Weights are taken in safetensors, whole or in shards; without these, an ONNX graph.

    Args:
        names: of every file in the repository.
    """
    plain = sorted(name for name in names if _PLAIN.fullmatch(name) and ".." not in name)
    beside = [
        name
        for name in plain
        if (
            name.rpartition("/")[2] in _BESIDE
            and (name.count("/") == 0 or name.startswith("0_Transformer/"))
        )
        or _MODULE.fullmatch(name)
        or re.fullmatch(r"(0_Transformer/)?sentence_\S+_config\.json", name)
    ]
    weights: list[str] = []
    for prefix in ("", "0_Transformer/"):
        for pattern in (
            r"model\.safetensors",
            r"model(-\d+-of-\d+\.safetensors|\.safetensors\.index\.json)",
        ):
            weights = [name for name in plain if re.fullmatch(re.escape(prefix) + pattern, name)]
            if weights:
                return [*(name for name in beside if name not in weights), *weights]
    graphs = [name for name in ("onnx/model.onnx", "model.onnx") if name in plain][:1]
    for graph in graphs:
        at = graph.rpartition("/")[0]
        data = [
            name for name in plain if name.startswith(f"{graph}_data") or name == f"{graph}.data"
        ]
        weights = [graph, *(name for name in data if name.rpartition("/")[0] == at)]
    return [*beside, *weights]
