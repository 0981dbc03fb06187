"""A `.env` that cannot be read is refused in one sentence that quotes none of its lines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from matryo.core.environment import load_settings
from matryo.core.errors import SettingsInvalid
from matryo.core.sources import read_env_file


def test_no_file(tmp_path: Path) -> None:
    """A file that is not there holds nothing."""
    assert read_env_file(tmp_path / ".env") == {}


def test_names_in_any_case(tmp_path: Path) -> None:
    """Names are ours in any case, a byte order mark is no text, other names are not read."""
    env = tmp_path / ".env"
    env.write_bytes(
        b"\xef\xbb\xbfmatryo_port=1\r\nexport MATRYO_HOST='h' # note\nOTHER=1\nBAD LINE"
    )
    assert read_env_file(env) == {"MATRYO_PORT": "1", "MATRYO_HOST": "h"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"MATRYO_API_KEYS=s\xe9cret", r"is not UTF-8 text: byte 17 is 0xe9"),
        ("MATRYO_API_KEYS=secret".encode("utf-16"), r"is not UTF-8 text: byte 0 is 0xff"),
        ("MATRYO_API_KEYS=secret".encode("utf-16-le"), r"has NUL bytes"),
        (b"# note\n\nMATRYO_API_KEYS: secret", r"line 3 is no setting"),
        (b"\n\nMATRYO_API_KEYS", r"line 3 is no setting"),
        (b'FOO="a\nMATRYO_API_KEYS="secret\n', r"line 1 is no setting"),
    ],
)
def test_content_that_is_no_settings(tmp_path: Path, content: bytes, message: str) -> None:
    """Bytes that are not UTF-8, and lines without a value, are refused by number."""
    env = tmp_path / ".env"
    env.write_bytes(content)
    with pytest.raises(SettingsInvalid, match=message) as caught:
        load_settings(env)
    assert "cret" not in caught.value.message
    assert "\n" not in caught.value.message


def test_what_is_no_file(tmp_path: Path) -> None:
    """A folder and a broken link of that name are refused with the remedy."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(SettingsInvalid, match=r"is a folder.*Rename the folder"):
        load_settings(tmp_path / "folder")
    with pytest.raises(SettingsInvalid, match=r"is a link to a file that does not exist"):
        load_settings(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable(tmp_path: Path) -> None:
    """A file that this user may not read is refused."""
    env = tmp_path / ".env"
    env.touch(0o000)
    with pytest.raises(SettingsInvalid, match="cannot be read: Permission denied"):
        load_settings(env)
