"""`matryo info`: what a bundle holds, and whether every byte is what was written."""

from __future__ import annotations

import json
from pathlib import Path

import click

from matryo.core.errors import SettingsInvalid
from matryo.store.bundle import Bundle, read_bundle, running, running_check


def run(file: Path | None, *, as_json: bool) -> None:
    """Check a bundle, and print what it holds.

    Args:
        file: the bundle; None for the one that this process runs from.
        as_json: print one JSON object in place of a table.

    Raises:
        SettingsInvalid: no file was named, and this process does not run from a bundle.
        ArtifactDamaged: the file is no bundle, or a byte is not what was written.
    """
    bundle = read_bundle(file) if file else running()
    if bundle is None:
        raise SettingsInvalid("this is no bundle; name the file of one: matryo info FILE")
    check = None if file else running_check()
    if check:
        check.result()
    else:
        bundle.check()
    facts = _facts(bundle)
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        click.echo(f"{name:<12} {value}")


def _facts(bundle: Bundle) -> dict[str, str]:
    index = bundle.index
    facts = {
        "file": str(bundle.file),
        "matryo": f"{index.version} for {index.platform}",
        "model": index.model_id,
        "precision": index.precision,
        "fingerprint": index.fingerprint,
        "settings": ", ".join(f"{name}={value}" for name, value in index.settings.items()),
        "locked": ", ".join(index.locked) or "nothing",
        "code in": str(bundle.folder or "not unpacked by this process"),
    }
    for part in index.parts:
        facts[part.name] = f"{part.bytes / 1e6:.1f} MB, sha256 {part.sha256}"
    return facts | {"checked": "every byte is what was written"}
