"""How far an output is known to be whole, in a file beside the output.

The file is replaced after the rows that it counts are on the disk. After a kill, what the output
has beyond that is cut off, and the work goes on with the next row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson

from matryo.core.errors import SettingsInvalid
from matryo.store.files import PART, publish_file

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Progress:
    """What is done.

    Attributes:
        rows: of the input, from the first.
        vectors: in the output, of those rows.
        n_bytes: of the file that has them.
        digest: names the rows.
        texts: distinct texts that are remembered, for `--dedupe`.
        truncated: texts that were cut.
        unknown: texts with something that the model's vocabulary lacks.
        is_last: whether the input has no more rows.
    """

    rows: int = 0
    vectors: int = 0
    n_bytes: int = 0
    digest: str = ""
    texts: int = 0
    truncated: int = 0
    unknown: int = 0
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """What a run does; a run may go on with the output of another only if all of it is the same.

    Attributes:
        facts: sentences name these: flags, model, fingerprint, input.
    """

    facts: Mapping[str, str] = field(default_factory=dict[str, str])


def save_progress(path: Path, work: Work, progress: Progress) -> None:
    """Replace the file at once.

    Raises:
        OSError: the file cannot be written.
    """
    content = {"version": _VERSION, "work": dict(work.facts), "done": asdict(progress)}
    aside = path.with_name(path.name + PART)
    aside.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    publish_file(aside, path)


def load_progress(path: Path, work: Work) -> Progress | None:
    """What an earlier run of the same work has done; None if there was none.

    Raises:
        SettingsInvalid: the file is no progress, or is that of other work.
    """
    try:
        content = cast("dict[str, Any]", orjson.loads(path.read_bytes()))
        given = cast("dict[str, str]", content["work"])
        done = Progress(**content["done"])
        version = content["version"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as exc:
        raise SettingsInvalid(f"--resume: {path} is damaged: {exc}. {_again(path)}") from exc
    if version != _VERSION:
        raise SettingsInvalid(f"--resume: {path} is of another version of Matryo. {_again(path)}")
    for name in [*work.facts, *given]:
        old, new = given.get(name, ""), work.facts.get(name, "")
        if old != new:
            raise SettingsInvalid(
                f"--resume: {path} is of other work: {name} was {_shown(old)} and is "
                f"{_shown(new)}. Give what the run was started with, or leave --resume out to "
                "begin anew"
            )
    return done


def _again(path: Path) -> str:
    return f"Leave --resume out to begin anew, which replaces {path.name}"


def _shown(value: str, most: int = 80) -> str:
    return "not given" if not value else value if len(value) <= most else f"{value[:most]}..."
