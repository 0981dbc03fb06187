"""Writes the model folder of a checkpoint: `matryo add`, and `serve` of a path or a repository."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matryo.build.checkpoint.shards import shard_files
from matryo.build.checkpoint.tokenizer import SETTINGS
from matryo.build.derive.derive import manifest_tables, summary
from matryo.build.derive.facts import Facts, read_facts
from matryo.build.derive.files import CheckpointLayout
from matryo.build.derive.said import Said, shown
from matryo.build.derive.tokens import LIBRARY_CONFIGS
from matryo.build.derive.toml import model_toml
from matryo.build.inputs import hashed
from matryo.catalog.catalog import Catalog
from matryo.catalog.manifest import VOCABULARIES, HubSource, Manifest
from matryo.catalog.names import look_up
from matryo.catalog.reading import parse_manifest
from matryo.core.errors import CheckpointMismatch, SettingsInvalid
from matryo.core.progress import Reporter
from matryo.core.untrusted import refusing
from matryo.store.derived import (
    DERIVED_FILE,
    DERIVER_VERSION,
    DerivedRecord,
    models_folder,
    read_derived,
    write_derived,
)
from matryo.store.files import make_folder, remove_file, write_atomically
from matryo.store.layout import Store
from matryo.store.references import Reference
from matryo.store.sources import SourceFile

# Files whose content, or whose absence, shapes what is derived; the modules' own come with these.
_CONSIDERED = (
    "modules.json",
    "config_sentence_transformers.json",
    "README.md",
)
_CONSIDERED_INNER = (
    *("config.json", "tokenizer.json"),
    *LIBRARY_CONFIGS,
    *sorted(VOCABULARIES),
    *SETTINGS,
)
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a checkpoint is from, for its manifest.

    Attributes:
        owner: who made the model, as far as the reference says.
        aliases: other names of the model.
        source: the table of `[[sources]]`.
    """

    owner: str
    aliases: tuple[str, ...]
    source: dict[str, Any]


def folder_origin(root: Path) -> Origin:
    """The origin of a checkpoint that stays where it lies."""
    return Origin("local", (), {"kind": "folder", "path": str(root)})


def hub_origin(catalog: Catalog, source: HubSource, model_id: str) -> Origin:
    """The origin of a checkpoint from a hub; the repository's name is an alias if it is free."""
    owner = source.repo.partition("/")[0]
    is_free = look_up(source.repo, catalog.names) in (None, model_id)
    return Origin(owner, (source.repo,) if is_free else (), source.model_dump())


def derive_from(
    layout: CheckpointLayout, origin: Origin, target: Target, reporter: Reporter
) -> tuple[Facts, tuple[SourceFile, ...], str]:
    """What a checkpoint says of itself, the files of its model, and the text of its `model.toml`.

    Raises:
        CheckpointMismatch: a fact is missing, cannot be read, or contradicts another.
        UnsupportedArchitecture: there is no graph for the model.
    """
    # One rule for whatever the files hold: one error of ours, which names the checkpoint.
    with refusing(
        lambda reason: CheckpointMismatch(
            f"{layout.root}: no model can be derived from this checkpoint's files: {reason}. Fetch "
            "the checkpoint again, or write a model.toml by hand."
        )
    ):
        facts = read_facts(layout)
        if target.sizes:
            facts = replace(facts, sizes=Said(target.sizes, "--dimensions", ""))
        paths = model_files(layout, facts)
    sources = tuple(hashed(path, reporter) for path in paths)
    files = {
        path.relative_to(layout.root).as_posix(): {
            "bytes": source.stamp[0],
            "sha256": source.sha256,
        }
        for path, source in zip(paths, sources, strict=True)
    }
    with refusing(
        lambda reason: CheckpointMismatch(
            f"{layout.root}: a value of this checkpoint's files cannot be written: {reason}. "
            "Correct the value."
        )
    ):
        tables = manifest_tables(
            facts,
            target.model_id,
            aliases=origin.aliases,
            owned_by=origin.owner,
            files=files,
            sources=[origin.source],
        )
        text = model_toml(tables, facts)
        text.encode()
    return facts, sources, text


def model_files(layout: CheckpointLayout, facts: Facts) -> list[Path]:
    """The files that a build reads, the weights first."""
    weights = layout.root / layout.weights
    dense = (layout.root / layer.file for layer in facts.output.dense)
    files = [weights, *shard_files(weights), *facts.data, *dense]
    inner = layout.root / layout.inner
    own = inner / "tokenizer.json"
    if own.is_file():
        return [*files, own]
    if layout.suffix == ".safetensors":
        made_of = (inner / name for name in (*sorted(VOCABULARIES), *SETTINGS))
        files += [path for path in made_of if path.is_file()]
    return files


@dataclass(frozen=True, slots=True)
class Target:
    """Where a derived model goes.

    Attributes:
        parent: folder of model folders.
        model_id: of the new model.
        sizes: sizes that the model was trained to be cut to, as the operator says; empty for
            those that the checkpoint's files say.
        is_own: whether the operator owns the model.toml from now on. The model is otherwise
            derived anew when a file of the checkpoint has changed.
    """

    parent: Path
    model_id: str
    sizes: tuple[int, ...] = ()
    is_own: bool = False


def write_derived_model(
    layout: CheckpointLayout,
    origin: Origin,
    reference: Reference,
    target: Target,
    reporter: Reporter,
) -> Manifest:
    """Derive a model and write its folder.

    Raises:
        CheckpointMismatch, UnsupportedArchitecture: see `derive_from`.
        ManifestInvalid: the derived values make no manifest.
    """
    facts, sources, text = derive_from(layout, origin, target, reporter)
    lines = summary(facts)
    reporter.say(f"{target.model_id}: derived from {reference.text}")
    for line in lines:
        reporter.say(f"  {line}")
    folder = target.parent / target.model_id
    manifest = parse_manifest(folder / "model.toml", text)
    make_folder(folder)
    if target.is_own:
        remove_file(folder / DERIVED_FILE)
        write_atomically(folder / "model.toml", text)
        return manifest
    absent: list[str] = []
    if reference.path:
        considered = list(_considered(layout))
        absent = [str(path) for path in considered if not path.exists()]
        known = {source.path for source in sources}
        others = (path for path in considered if path.is_file() and str(path) not in known)
        sources = (*sources, *(hashed(path, reporter) for path in others))
    else:
        sources = ()
    record = DerivedRecord(DERIVER_VERSION, reference.text, sources, tuple(absent), tuple(lines))
    # After a crash between two files the model still has its id, and is derived anew.
    write_derived(folder, replace(record, version=0))
    write_atomically(folder / "model.toml", text)
    write_derived(folder, record)
    return manifest


def reference_name(layout: CheckpointLayout, reference: Reference) -> str:
    """The name of a repository, of a folder, or of a single file without its suffix."""
    if reference.repo:
        return reference.repo.rpartition("/")[2]
    path = reference.path or layout.root
    if path.is_dir():
        parts = path.parts  # a hub's cache: models--org--name/snapshots/<commit>
        if "snapshots" in parts[-2:-1] and parts[-3].startswith("models--"):
            return parts[-3].rpartition("--")[2]
        return path.name
    if path.stem in ("model", "model.safetensors"):
        return layout.root.name
    return path.stem


def choose_id(store: Store, catalog: Catalog, name: str, reference: Reference) -> str:
    """An id for a new model: its own name, with a number if another model has that name."""
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:100] or "model"
    for number in range(1, 1000):
        model_id = base if number == 1 else f"{base}-{number}"
        folder = models_folder(store.home) / model_id
        record = read_derived(folder)
        if record and record.reference == reference.text:
            return model_id
        if look_up(model_id, catalog.names) is None and not (folder / "model.toml").is_file():
            return model_id
    raise SettingsInvalid(f"1,000 models are called {shown(base)}. Give another id with --id.")


def check_id(model_id: str) -> str:
    """The id itself, if a model may have it.

    Raises:
        SettingsInvalid: it is no id.
    """
    if not _ID.fullmatch(model_id):
        raise SettingsInvalid(
            f"--id is {shown(model_id)}, but must be 1 to 128 letters, digits, dots, hyphens and "
            "underscores, the first a letter or digit."
        )
    return model_id


def _considered(layout: CheckpointLayout) -> Iterable[Path]:
    """Files whose content, or whose absence, shapes what is derived."""
    yield from (layout.root / name for name in _CONSIDERED)
    yield from (layout.root / layout.inner / name for name in _CONSIDERED_INNER)
    for module in layout.modules or ():
        if module.path and module.path != layout.inner:
            yield layout.root / module.path / "config.json"
