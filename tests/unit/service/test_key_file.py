"""A file of keys: what it may have, and what an operator reads if it is wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from matryo.core.errors import SettingsInvalid
from matryo.service.key_file import MAX_KEYS, bare_keys, hash_of, merged, parse_keys, read_keys

HASH = hash_of("sk-one")
OTHER = hash_of("sk-two")


def test_everything() -> None:
    """Every field is read; comments, tables and capitals are fine."""
    text = f"""
# The search team's
search = {{ sha256 = "{HASH.upper()}", requests_per_minute = 600, tokens_per_minute = 1_000_000,\
 tokens_per_day = 50_000_000, models = ["all-minilm-l6-v2"], expires = 2027-01-31T01:00:00+01:00,\
 weight = 2 }}

[bulk]
sha256 = "{OTHER}"
"""
    first, second = parse_keys(text, "keys.toml")
    key = first.key
    assert (first.name, second.name) == ("search", "bulk")
    assert (key.sha256, second.key.sha256) == ((HASH,), (OTHER,))
    limits = (key.requests_per_minute, key.tokens_per_minute, key.tokens_per_day)
    assert limits == (600, 1_000_000, 50_000_000)
    assert key.models == ("all-minilm-l6-v2",)
    assert key.expires == datetime(2027, 1, 31, tzinfo=UTC)
    assert (key.weight, second.key.weight) == (2, 1)
    assert second.key.tokens_per_day is None
    assert first.where == "keys.toml line 3"
    assert second.where == "keys.toml line 5"


WRONG = {
    "unknown field": ("rpm = 5", "unknown field 'rpm'. The fields are sha256, requests_per"),
    "negative": ("requests_per_minute = -5", "requests_per_minute must be a whole number from 1"),
    "zero": ("tokens_per_minute = 0", "tokens_per_minute must be a whole number from 1"),
    "float": ("tokens_per_day = 1.5", "tokens_per_day must be a whole number"),
    "text": ('requests_per_minute = "600"', "requests_per_minute must be a whole number"),
    "truth": ("requests_per_minute = true", "requests_per_minute must be a whole number"),
    "huge": ("tokens_per_day = 1_000_000_000_000_000", "leave it out for no limit"),
    "no zone": ("expires = 2027-01-31T00:00:00", "expires must be a moment with a zone"),
    "date": ("expires = 2027-01-31", "expires must be a moment with a zone"),
    "quoted date": ('expires = "2027-01-31T00:00:00Z"', "without quotes"),
    "no model": ("models = []", "models must be a list of names"),
    "one model": ('models = "all-minilm-l6-v2"', "models must be a list of names"),
    "blank model": ('models = [" "]', "models must be a list of names"),
    "weight": ("weight = 0", "weight must be a number from 0.01 to 100"),
    "negative weight": ("weight = -1", "weight must be a number"),
    "weight nan": ("weight = nan", "weight must be a number"),
    "plain key": ('key = "sk-secret"', "holds no plain key. Run `matryo key hash`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_fields(case: str) -> None:
    """The error names the file, the line, the key and the field, and quotes no secret."""
    field, words = WRONG[case]
    text = f'ok = {{ sha256 = "{OTHER}" }}\nbad = {{ sha256 = "{HASH}", {field} }}'
    with pytest.raises(SettingsInvalid) as caught:
        parse_keys(text, "keys.toml")
    message = caught.value.message
    assert message.startswith("keys.toml line 2: key 'bad'")
    assert words in message
    assert "sk-secret" not in message


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('""', "must be 64 hex digits"),
        ('"sk-secret"', "must be 64 hex digits. Run `matryo key hash`"),
        (f'"{HASH[:-1]}"', "must be 64 hex digits"),
        (f'"{HASH[:-1]}g"', "must be 64 hex digits"),
        (f'"{HASH}0"', "must be 64 hex digits"),
        ("5", "must be a text of 64 hex digits"),
        ("[]", "or a list of 1 to 4"),
        (f'["{HASH}", 5]', "must be 64 hex digits"),
        (f'"{hash_of("")}"', "is the hash of an empty key"),
    ],
)
def test_wrong_hash(value: str, words: str) -> None:
    """A hash is 64 hex digits; what stands there in its place is never quoted."""
    with pytest.raises(SettingsInvalid) as caught:
        parse_keys(f"a = {{ sha256 = {value} }}", "keys.toml")
    assert words in caught.value.message
    assert "keys.toml line 1: key 'a': sha256" in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "keys.toml has no key"),
        ("# nobody yet\n", "keys.toml has no key"),
        ("a = {}", "line 1: key 'a': sha256 is missing"),
        ('\na = "sk-secret"', "line 2: key 'a' is no table"),
        ("sk-secret", "keys.toml line 1 is no TOML"),
        (f'a = {{ sha256 = "{HASH}"', "keys.toml line 1 is no TOML"),
        (f'a = {{ sha256 = "{HASH}" }}\n\nb = {{ sha256', "keys.toml line 3 is no TOML"),
        (f'"a b" = {{ sha256 = "{HASH}" }}', "line 1: 'a b' is no name of a key"),
        (f'"{"n" * 65}" = {{ sha256 = "{HASH}" }}', "is no name of a key"),
        (f'"é" = {{ sha256 = "{HASH}" }}', "is no name of a key"),
        (f'"a\\nb" = {{ sha256 = "{HASH}" }}', "is no name of a key"),
        (
            f'a = {{ sha256 = "{HASH}" }}\na = {{ sha256 = "{OTHER}" }}',
            "keys.toml line 2 has a second key 'a'; the first is in line 1",
        ),
    ],
)
def test_wrong_files(text: str, words: str) -> None:
    """A file that is no table of keys, or has none, is refused with the line."""
    with pytest.raises(SettingsInvalid) as caught:
        parse_keys(text, "keys.toml")
    assert words in caught.value.message
    assert "secret" not in caught.value.message


def test_same_hash() -> None:
    """Two names for one key would leave open whose limits hold."""
    text = f'a = {{ sha256 = "{HASH}" }}\nb = {{ sha256 = "{HASH}" }}'
    with pytest.raises(SettingsInvalid, match=r"keys line 2: key 'b' has the hash of key 'a' in"):
        merged(parse_keys(text, "keys"))


def test_sources_together() -> None:
    """The environment adds keys to the file's; a name or a key in both is refused."""
    file = parse_keys(f'a = {{ sha256 = "{HASH}" }}', "keys.toml")
    environment = parse_keys(f'b = {{ sha256 = "{OTHER}" }}', "MATRYO_KEYS")
    assert [one.name for one in merged([*file, *environment])] == ["a", "b"]
    with pytest.raises(SettingsInvalid, match=r"MATRYO_API_KEYS.*hash of key 'a' in keys.toml"):
        merged([*file, *bare_keys(["sk-one"], "MATRYO_API_KEYS")])
    twice = parse_keys(f'a = {{ sha256 = "{OTHER}" }}', "MATRYO_KEYS")
    with pytest.raises(SettingsInvalid, match=r"MATRYO_KEYS line 1 has a second key 'a'"):
        merged([*file, *twice])


def test_bare_keys() -> None:
    """Bare keys have names of their own, which show at most four characters of either end."""
    long = "sk-0123456789abcdefghij"
    keys = [long, "short", long[:4] + "x" * 10 + long[-4:], long, '"\\é' + "y" * 20]
    names = [one.name for one in merged(bare_keys(keys, "MATRYO_API_KEYS"))]
    assert names == ["sk-0***ghij", "***2", "sk-0***ghij3", "???y***yyyy"]


def test_too_many() -> None:
    """Keys have series in the metrics, so that their number is bounded."""
    lines = (f'k{n} = {{ sha256 = "{hash_of(str(n))}" }}' for n in range(MAX_KEYS + 1))
    with pytest.raises(SettingsInvalid, match=f"there are {MAX_KEYS + 1} keys"):
        merged(parse_keys("\n".join(lines), "keys"))


class TestReading:
    """The file itself."""

    def test_windows(self, tmp_path: Path) -> None:
        """A byte order mark and Windows' line ends are fine."""
        file = tmp_path / "keys.toml"
        file.write_bytes(f'\ufeff# keys\r\na = {{ sha256 = "{HASH}" }}\r\n'.encode())
        (one,) = read_keys(file)
        assert one.where == f"{file} line 2"

    def test_no_file(self, tmp_path: Path) -> None:
        """A file that is not there, or a folder, is named with the setting."""
        with pytest.raises(SettingsInvalid, match=r"No such file .* correct MATRYO_KEYS_FILE"):
            read_keys(tmp_path / "none")
        with pytest.raises(SettingsInvalid, match="Is a directory"):
            read_keys(tmp_path)

    def test_no_text(self, tmp_path: Path) -> None:
        """A file that is no UTF-8 text is refused."""
        file = tmp_path / "keys.toml"
        file.write_bytes(b"a = \xff")
        with pytest.raises(SettingsInvalid, match=r"byte 4 is 0xff\. Save the file as UTF-8"):
            read_keys(file)

    def test_huge(self, tmp_path: Path) -> None:
        """A file that cannot be meant is not read into memory."""
        file = tmp_path / "keys.toml"
        with file.open("wb") as opened:
            opened.truncate(1 << 40)
        with pytest.raises(SettingsInvalid, match="the most of a file of keys"):
            read_keys(file)
