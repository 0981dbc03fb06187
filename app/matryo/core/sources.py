"""The texts of settings as their sources hold them: the environment, `.env`, and flags."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from matryo.core.errors import SettingsInvalid

PREFIX = "MATRYO_"

_QUOTES = "\"'"
_SHOWN_SIGNS = 80


def prefixed(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables whose names start with `MATRYO_` in any case, by their names in capitals.

    If a name is there in several spellings, the one in capitals wins.
    """
    names = sorted((name for name in environ if name.upper().startswith(PREFIX)), reverse=True)
    return {name.upper(): environ[name] for name in names}


def read_env_file(path: Path) -> dict[str, str]:
    """The `MATRYO_` variables of a file such as `.env`; empty if there is no file.

    Raises:
        SettingsInvalid: the file cannot be read, or a line with a `MATRYO_` name has no value.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        if not path.is_symlink():
            return {}
        raise SettingsInvalid(
            f"{path} is a link to a file that does not exist. Remove the link, or mend its target."
        ) from None
    except IsADirectoryError:
        raise SettingsInvalid(
            f"{path} is a folder, but settings are read from a file of that name. "
            "Rename the folder, or start in another one."
        ) from None
    except OSError as exc:
        raise SettingsInvalid(
            f"{path} cannot be read: {exc.strerror}. Let this user read the file, or start in "
            "another folder."
        ) from exc
    except UnicodeDecodeError as exc:
        raise SettingsInvalid(
            f"{path} is not UTF-8 text: byte {exc.start} is 0x{exc.object[exc.start]:02x}. "
            "Save the file as UTF-8."
        ) from None
    if "\0" in text:
        raise SettingsInvalid(f"{path} is not UTF-8 text: it has NUL bytes. Save it as UTF-8.")
    _check_lines(path, text)
    raw = dotenv_values(stream=io.StringIO(text), interpolate=False)
    values = dotenv_values(stream=io.StringIO(text))
    for name, value in prefixed(_texts(values)).items():
        if not value and prefixed(_texts(raw))[name]:
            raise SettingsInvalid(
                f"{name} in {path} is made of variables that have no value. Set those variables, "
                f"or leave {name} empty."
            )
    return prefixed(_texts(values))


def _texts(values: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value or "" for name, value in values.items()}


def _check_lines(path: Path, text: str) -> None:
    for line in parse_stream(io.StringIO(text)):
        # A file may hold lines of other programs; only ours have to be in order. No line is
        # quoted, because it may hold a key.
        lost = line.error or (line.key is not None and line.value is None)
        string = line.original.string
        if lost and PREFIX in string.upper():
            blanks = len(string) - len(string.lstrip())
            number = line.original.line + string[:blanks].count("\n")
            raise SettingsInvalid(f"{path} line {number} is no setting. Write NAME=value.")


def plain(text: str) -> str:
    """A value without the blanks and the pairs of quotes around it.

    A shell removes quotes; Docker's env files and the lists of a compose file leave them.

    Raises:
        ValueError: nothing is left, or a quote stands at one end alone. The message continues a
            sentence that starts with the setting's name, and does not quote the value.
    """
    bare = text.strip()
    while len(bare) > 1 and bare[0] in _QUOTES and bare[0] == bare[-1]:
        if bare[0] in bare[1:-1]:
            break
        bare = bare[1:-1].strip()
    if not bare:
        raise ValueError("is blank. Give a value, or leave the setting out")
    try:
        bare.encode()
    except UnicodeEncodeError:  # Python keeps bytes that are not UTF-8 as lone surrogates
        raise ValueError("is not UTF-8 text. Write it in UTF-8") from None
    return bare


def check_quotes(text: str) -> str:
    """The text itself, if no quote stands at either end.

    Raises:
        ValueError: a quote is left at an end; see `plain` for the message.
    """
    if text[0] in _QUOTES or text[-1] in _QUOTES:
        raise ValueError("has a quote at one end. Remove the quotes, or put one at both ends")
    return text


def shown(value: object) -> str:
    """A value for a message, cut if it is long."""
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= _SHOWN_SIGNS else text[:_SHOWN_SIGNS] + "…"


def existing(path: Path, what: str) -> Path:
    """The path itself, unless something keeps it from ever being a folder.

    Args:
        path: expanded.
        what: the path is for, such as `the store`.

    Raises:
        ValueError: the path is a file or a broken link, or the system refuses it; see `plain`
            for the message.
    """
    remedy = f"Name a folder for {what}"
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise ValueError(
                f"is {shown(path)}, a link to nothing. Name a folder for {what}"
            ) from None
        return path
    except OSError as exc:
        raise ValueError(
            f"is {shown(path)}, which cannot be used: {exc.strerror}. Name a folder for {what}"
        ) from exc
    if not stat.S_ISDIR(mode):
        raise ValueError(f"is {shown(path)}, which is no folder. {remedy}")
    return path


def expanded(text: str | os.PathLike[str]) -> Path:
    """The path with `~` replaced by the user's home folder.

    Raises:
        ValueError: the user has no home folder; see `plain` for the message.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as exc:
        raise ValueError(
            f"is {str(text)!r}, but this user has no home folder. Set it to a path without ~"
        ) from exc
