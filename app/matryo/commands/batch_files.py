"""The files of `matryo batch`: where the results go, and how much of them counts.

The file of progress, `OUTPUT.progress`, says after each window how many bytes of the input are
answered, and how many bytes of the results belong to them. Results reach the disk before it does.
What lies behind these bytes was written by a run that ended early, and is cut off.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import orjson

from matryo.batch.objects import WindowResult
from matryo.core.errors import SettingsInvalid
from matryo.store.files import remove_file, write_atomically

SUFFIX = ".progress"


@dataclass(frozen=True, slots=True)
class Done:
    """What is answered and written.

    Attributes:
        input: names the input and all else that shapes the results.
        n_lines: of the input, blank ones included.
        n_bytes: of the input.
        output_bytes: of the output file.
        error_bytes: of the file of errors.
        n_completed: lines that were answered with vectors.
        n_failed: lines that were answered with an error.
        n_tokens: of the texts.
    """

    input: str
    n_lines: int = 0
    n_bytes: int = 0
    output_bytes: int = 0
    error_bytes: int = 0
    n_completed: int = 0
    n_failed: int = 0
    n_tokens: int = 0


class Results:
    """The files of one run.

    Args:
        output: takes the lines that were completed.
        errors: takes the lines that failed; may be `output`.
        progress: the file of progress; None to keep none.
        done: before this run.

    Attributes:
        done: up to now.
    """

    def __init__(
        self, output: BinaryIO, errors: BinaryIO, progress: Path | None, done: Done
    ) -> None:
        self.done = done
        self._output, self._errors, self._progress = output, errors, progress

    def commit(self, result: WindowResult) -> None:
        """Write the results of the next window, then say so in the file of progress."""
        for file, content in ((self._output, result.output), (self._errors, result.errors)):
            try:
                file.write(content)
                file.flush()
                if self._progress:
                    os.fsync(file.fileno())
            except BrokenPipeError:
                raise
            except OSError as exc:
                raise SettingsInvalid(f"{file.name}: {exc.strerror or exc}") from exc
        done, one_file = self.done, self._errors is self._output
        n_errors = len(result.errors)
        self.done = replace(
            done,
            n_lines=done.n_lines + result.n_lines,
            n_bytes=done.n_bytes + result.n_bytes,
            output_bytes=done.output_bytes + len(result.output) + (n_errors if one_file else 0),
            error_bytes=done.error_bytes + (0 if one_file else n_errors),
            n_completed=done.n_completed + result.n_completed,
            n_failed=done.n_failed + result.n_failed,
            n_tokens=done.n_tokens + result.n_tokens,
        )
        if self._progress:
            write_atomically(self._progress, _written(self.done))


@contextmanager
def open_results(
    output: Path, errors: Path | None, name: str, *, restart: bool
) -> Generator[Results, None, None]:
    """The files of a run, after those bytes that an earlier run of the same input has written.

    The file of progress is removed when the block ends without an error.

    Args:
        output: `-` is standard output, which cannot be resumed.
        errors: None for lines that failed to go to `output`, too.
        name: names the input and all else that shapes the results.
        restart: drop what an earlier run has done.

    Raises:
        SettingsInvalid: a file cannot be written, is in use, or has the progress of another input.
    """
    with ExitStack() as stack:
        if str(output) == "-":
            if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] - closed by the shell
                raise SettingsInvalid("standard output is closed; name a file")
            out = sys.stdout.buffer
            err = stack.enter_context(errors.open("wb")) if errors else out
            yield Results(out, err, None, Done(name))
            return
        final = Path(os.path.realpath(output))
        progress = final.with_name(final.name + SUFFIX)
        out = stack.enter_context(_open(final))
        err = stack.enter_context(_open(errors)) if errors else out
        done = Done(name) if restart else _read(progress, name, output)
        if not done.n_lines:
            # Before the first result: from here on, the file of progress says what counts.
            write_atomically(progress, _written(done))
        _cut(out, done.output_bytes, output)
        if errors:
            _cut(err, done.error_bytes, errors)
        yield Results(out, err, progress, done)
        remove_file(progress)


def _open(path: Path) -> BinaryIO:
    """A file to write to, which no other run writes to."""
    if path.exists() and not path.is_file():
        raise SettingsInvalid(f"{path}: no regular file; use - for standard output")
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        file.close()
        if isinstance(exc, BlockingIOError):
            raise SettingsInvalid(f"{path}: another run writes to this file") from exc
        raise
    return file


def _cut(file: BinaryIO, n_bytes: int, path: Path) -> None:
    """Drop what lies behind the bytes that count."""
    found = os.fstat(file.fileno()).st_size
    if found < n_bytes:
        raise SettingsInvalid(
            f"{path} has {found} bytes, and the run that ended early had written {n_bytes}; give "
            "--restart to begin anew"
        )
    file.truncate(n_bytes)


def _read(progress: Path, name: str, output: Path) -> Done:
    """What an earlier run has done of this input; nothing if there was none."""
    try:
        done = Done(**orjson.loads(progress.read_bytes()))
    except FileNotFoundError:
        return Done(name)
    except (ValueError, TypeError) as exc:
        raise SettingsInvalid(
            f"{progress} cannot be read: {exc}; give --restart to begin anew"
        ) from exc
    if done.input != name:
        raise SettingsInvalid(
            f"{output} has results of another input, model or setting, and its run did not end "
            f"({progress}). Give another output, or --restart to drop these results"
        )
    return done


def _written(done: Done) -> str:
    return orjson.dumps(asdict(done)).decode()


def check_files(source: os.stat_result | None, output: Path, errors: Path | None) -> None:
    """Refuse an output that is the input, or that is the file of errors as well.

    Args:
        source: of the input; None if it has none.
        output: `-` is standard output.
        errors: None for no file of its own.

    Raises:
        SettingsInvalid: two of them are one file.
    """
    if errors is not None and str(errors) == "-":
        raise SettingsInvalid("--errors takes the name of a file; leave it out to have one output")
    if errors is not None and _is_same(output, errors):
        raise SettingsInvalid(f"--errors {errors}: this is the output; leave --errors out for that")
    for path in (output, errors):
        with suppress(OSError):
            if path and source and os.path.samestat(path.stat(), source):
                raise SettingsInvalid(f"{path} is the input; name another file")


def _is_same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
