"""From the names on a command line to files: folders, globs and URLs."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click

from matryo.commands.remote import Remote, is_url
from matryo.commands.sources.item import Format
from matryo.core.errors import InvalidRequest

STANDARD_INPUT = "-"
COMPRESSED = (".gz", ".bz2", ".xz")
_FORMATS: dict[str, Format] = {
    ".txt": "lines",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}


@dataclass(frozen=True, slots=True)
class Found:
    """One file to read.

    Attributes:
        name: a path, a URL, or `-` for standard input.
        form: its format; None to guess it from the first line with text.
        chosen: whether the user named the format.
    """

    name: str
    form: Format | None
    chosen: bool

    @property
    def is_url(self) -> bool:
        """Whether the file is behind a URL."""
        return is_url(self.name)


def find_inputs(names: Sequence[str], form: Format | None) -> list[Found]:
    """The files of every name, in the order of the names; those of a folder or a glob sorted.

    Args:
        names: files, folders, globs, URLs, and `-` at most once.
        form: the format of all files; None to go by their names.

    Raises:
        InvalidRequest: nothing is found, a `.json` file, or `-` twice.
        SettingsInvalid: a package for a URL is not installed.
    """
    if list(names).count(STANDARD_INPUT) > 1:
        raise InvalidRequest("'-' stands twice, and standard input can be read once; give it once")
    return [one for name in names for one in _expand(_local(name), form)]


def _local(name: str) -> str:
    """The path of a `file://` URL; any other name as it is."""
    return unquote(urlsplit(name).path) if name.lower().startswith("file://") else name


def _expand(name: str, form: Format | None) -> Iterator[Found]:
    if name == STANDARD_INPUT:
        yield Found(name, form, chosen=form is not None)
    elif is_url(name):
        files = Remote(name).matches()
        yield from _chosen(name, files, form, is_one=files == [name])
    elif Path(name).is_dir():
        yield from _chosen(name, sorted(_walk(Path(name))), form, is_one=False)
    elif glob.has_magic(name) and not os.path.lexists(name):
        found = glob.glob(name, recursive=True)  # noqa: PTH207 - a pattern may be absolute
        files = sorted(path for path in found if not Path(path).is_dir())
        yield from _chosen(name, files, form, is_one=False)
    else:
        yield from _chosen(name, [name], form, is_one=True)


def _walk(folder: Path) -> Iterator[str]:
    """The files of a folder and of its folders, without those that tools hide."""
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        yield from (str(Path(root) / name) for name in files if not name.startswith((".", "_")))


def _chosen(
    name: str, files: Sequence[str], form: Format | None, *, is_one: bool
) -> Iterator[Found]:
    """The files that are read; a folder's or a glob's files of unknown formats are left out."""
    skipped: list[str] = []
    n_found = 0
    for file in files:
        known = form or (_form_of(file) if is_one else _known_form(file))
        if known is None and not (is_one and _is_pipe(file)):
            skipped.append(file)
            continue
        n_found += 1
        yield Found(file, known, chosen=form is not None)
    if skipped:
        click.echo(
            f"warning: {name}: {len(skipped)} files of other formats are not read, such as "
            f"{skipped[0]}; --format reads every file in one format",
            err=True,
        )
    if not n_found:
        raise InvalidRequest(
            f"{name}: no file to read; give files that end in {', '.join(_FORMATS)}, or --format"
        )


def _form_of(name: str) -> Format | None:
    """The format of a file that the user named; None for a pipe."""
    if _is_pipe(name):
        return None
    if _suffix(name) == ".json":
        raise InvalidRequest(
            f"{name}: a .json file is one JSON document, and one row a line is needed. Give "
            "--format jsonl if each line is an object, or --format lines"
        )
    return _known_form(name) or "lines"


def _known_form(name: str) -> Format | None:
    return _FORMATS.get(_suffix(name))


def _suffix(name: str) -> str:
    path = Path(urlsplit(name).path if is_url(name) else name)
    if path.suffix.lower() in COMPRESSED:
        path = path.with_suffix("")
    return path.suffix.lower()


def compression(name: str) -> str:
    """The suffix of a compressed file; empty for any other."""
    suffix = Path(urlsplit(name).path if is_url(name) else name).suffix.lower()
    return suffix if suffix in COMPRESSED else ""


def _is_pipe(name: str) -> bool:
    """Whether a name is standard input, or a file that is not regular."""
    if name == STANDARD_INPUT:
        return True
    try:
        return not is_url(name) and not stat.S_ISREG(Path(name).stat().st_mode)
    except OSError:
        return False
