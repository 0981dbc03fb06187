"""Writes a bundle, and starts it once before the file gets its name."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import zipfile
from pathlib import Path

from matryo.build.bundle.freeze import (
    bundle_platform,
    compile_launcher,
    freeze,
    missing_doors,
)
from matryo.build.bundle.stage import file_records, find_weights, stage_artifact, stage_extras
from matryo.core.errors import BuildFailed
from matryo.core.progress import Reporter
from matryo.store.artifact import Artifact
from matryo.store.bundle import CODE, HOME_FOLDER, WEIGHTS, BundleWriter, Index, read_bundle
from matryo.store.files import TEMPORARY, publish_file
from matryo.store.layout import Store

_START_S = 120


def write_bundle(
    output: Path,
    artifact: Artifact,
    store: Store,
    model: Path,
    settings: dict[str, str],
    locked: tuple[str, ...],
    version: str,
    reporter: Reporter,
) -> None:
    """Write the bundle of an artefact; `output` is replaced once the new file has started.

    Args:
        output: the file.
        artifact: the artefact; its files must have been checked.
        store: the artefact's store.
        model: the folder of the model's manifest.
        settings: values to fix, by setting.
        locked: names of the settings that no request may change.
        version: of Matryo.
        reporter: takes each step.

    Raises:
        BuildFailed: the code cannot be collected, or the file does not start.
    """
    kind = bundle_platform()
    aside = output.with_name(f"{output.name}{TEMPORARY}-{os.getpid()}")
    with contextlib.ExitStack() as end:
        folder = Path(end.enter_context(tempfile.TemporaryDirectory(prefix="matryo-bundle-")))
        for sentence in missing_doors():
            reporter.say(sentence)
        reporter.say("collecting interpreter and libraries; this takes about a minute")
        with reporter.step("collecting"):
            code = freeze(folder, model)
        reporter.say("compiling the launcher; the first time takes about a minute")
        with reporter.step("compiling"):
            compile_launcher(folder / "launcher")
        end.callback(aside.unlink, missing_ok=True)
        writer = BundleWriter(aside)
        end.callback(writer.close)
        writer.add("launcher", [folder / "launcher"])
        weights = find_weights(artifact)
        writer.add(WEIGHTS, weights.files)
        offset = writer.parts[-1].offset
        home = Store(code / HOME_FOLDER)
        stage_artifact(artifact, weights, offset, home)
        stage_extras(artifact.record.model_id, store, home)
        with reporter.step("packing the code"):
            write_archive(code, folder / "code.zip")
        writer.add(CODE, [folder / "code.zip"])
        record = artifact.record
        index = Index(
            version=version,
            platform=kind,
            model_id=record.model_id,
            precision=record.precision,
            fingerprint=record.fingerprint,
            settings=settings,
            locked=locked,
            unpacked=file_records(code),
        )
        writer.finish(index)
        writer.close()
        aside.chmod(0o755)
        with reporter.step("checking every byte"):
            read_bundle(aside).check()
        reporter.say("starting the file once")
        with reporter.step("starting"):
            _try(aside, folder / "tried")
        publish_file(aside, output)


def write_archive(folder: Path, target: Path) -> None:
    """Write a zip archive of a folder, links included; the same files give the same bytes."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            is_folder = path.is_dir() and not path.is_symlink()
            entry = zipfile.ZipInfo(name + "/" if is_folder else name)  # dated 1980-01-01
            entry.external_attr = path.lstat().st_mode << 16
            if is_folder:
                archive.writestr(entry, b"")
                continue
            entry.compress_type = zipfile.ZIP_DEFLATED
            link = path.is_symlink()
            archive.writestr(entry, os.fsencode(path.readlink()) if link else path.read_bytes())


def _try(file: Path, home: Path) -> None:
    """Embed a text with a bundle, in an environment without this Python.

    Raises:
        BuildFailed: the bundle does not give a vector.
    """
    done = subprocess.run(  # noqa: S603 - the file that was just written
        [str(file), "embed"],
        input="The sky is blue.\n",
        env={"MATRYO_HOME": str(home)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=_START_S,
    )
    if done.returncode or '"embedding"' not in done.stdout:
        raise BuildFailed(f"the new file does not run: {done.stderr.strip()[-500:]}")
