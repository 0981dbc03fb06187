"""The command line of a bundle: what is fixed, what is locked, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from matryo.cli import main
from matryo.commands import bundled
from matryo.commands.bundled import complete, enter
from matryo.core import fixed as module
from matryo.core.errors import SettingsInvalid
from matryo.core.fixed import Fixed, fix
from matryo.core.settings import load_settings
from matryo.store.bundle import CODE, WEIGHTS, Bundle, BundleWriter, Index, read_bundle

SETTINGS = {"model": "tiny", "precision": "int8", "dimensions": "256"}
INDEX = Index("0.1.0", "linux-x86_64", "tiny", "int8", "0" * 16, SETTINGS, ("dimensions",))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle of nothing but an index."""
    writer = BundleWriter(tmp_path / "tiny")
    for name in ("launcher", WEIGHTS, CODE):
        writer.add(name, [Path(__file__)])
    writer.finish(INDEX)
    writer.close()
    return read_bundle(tmp_path / "tiny")


@pytest.fixture
def fixed() -> Iterator[None]:
    """The settings that the bundle fixes."""
    fix(Fixed(SETTINGS, frozenset(("dimensions",)), "/opt/tiny"))
    yield
    fix(Fixed())


@pytest.mark.usefixtures("fixed")
def test_fixed_values_are_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fixed at bundling stands in place of a setting's usual default."""
    settings = load_settings(None)
    assert (settings.model, settings.precision, settings.dimensions) == (("tiny",), "int8", 256)
    monkeypatch.setenv("MATRYO_PRECISION", " INT8 ")  # the same value, spelt otherwise
    assert load_settings(None, port="9").port == 9


@pytest.mark.usefixtures("fixed")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model": ("other",)}, "--model is .*'other'.*/opt/tiny was made with .*'tiny'"),
        ({"precision": "fp32"}, "--precision is 'fp32', but /opt/tiny was made with 'int8'"),
        ({"dimensions": "128"}, "--dimensions is .*128.*, but /opt/tiny was made with .*256"),
        ({"rotary_scaling_factor": "2"}, "--rotary-scaling-factor is .*2.0"),
    ],
)
def test_held_values_are_refused(flags: dict[str, str], message: str) -> None:
    """A bundle holds one artefact, and keeps to what was locked."""
    with pytest.raises(SettingsInvalid, match=message):
        load_settings(None, **flags)


def test_unlocked_values_may_change() -> None:
    """A size that was fixed without a lock is a default as any other."""
    fix(Fixed(SETTINGS, frozenset(), "/opt/tiny"))
    try:
        assert load_settings(None, dimensions="128").dimensions == 128
    finally:
        fix(Fixed())
    assert not module.fixed().held


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        (["embed"], ["embed", "tiny"]),
        (["embed", "--dimensions", "8", "f"], ["embed", "tiny", "--dimensions", "8", "f"]),
        (["embed", "tiny", "f"], ["embed", "tiny", "f"]),
        (["verify", "--json"], ["verify", "tiny", "--json"]),
        (["serve", "--port", "1"], ["serve", "--port", "1"]),
        (["--help"], ["--help"]),
        (["info"], ["info"]),
    ],
)
def test_the_model_goes_without_saying(
    bundle: Bundle, given: list[str], expected: list[str]
) -> None:
    """Commands that need a model get the bundle's own."""
    assert complete(given, bundle) == expected


@pytest.mark.parametrize("command", ["add", "build", "bundle", "pull", "remove"])
def test_commands_of_a_store_are_refused(bundle: Bundle, command: str) -> None:
    """A bundle makes no bundle, and pulls and builds nothing."""
    with pytest.raises(SettingsInvalid, match=f"tiny alone, and has no command '{command}'"):
        complete([command, "x"], bundle)


def test_entering(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that runs from a bundle has its store, its settings and its model."""
    from dataclasses import replace

    found = replace(bundle, folder=Path("/cache/key"))
    monkeypatch.setattr(bundled, "running", lambda: found)
    monkeypatch.setattr(sys, "argv", ["./tiny", "embed"])
    monkeypatch.setenv("MATRYO_HOME", "/elsewhere")
    try:
        enter()
        settings = load_settings(None)
    finally:
        fix(Fixed())
    assert sys.argv == ["./tiny", "embed", "tiny"]
    assert settings.home == Path("/cache/key/home")
    assert settings.dimensions == 256


def test_a_part_of_a_bundle_does_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The unpacked program, run by itself, says what to run in its place."""
    monkeypatch.setattr(bundled, "running", lambda: None)
    with pytest.raises(SystemExit) as exit_:
        enter()
    assert exit_.value.code == 1
    assert "is a part of a bundle" in capsys.readouterr().err


def test_info(bundle: Bundle) -> None:
    """`matryo info FILE` checks the file and says what the file holds."""
    result = CliRunner().invoke(main, ["info", str(bundle.file)])
    assert result.exit_code == 0, result.output
    for text in ("tiny/int8/0000000000000000", "dimensions=256", "every byte is what was written"):
        assert text in result.output


def test_info_of_a_damaged_file(bundle: Bundle) -> None:
    """`matryo info` fails on a file that is not what was written."""
    content = bytearray(bundle.file.read_bytes())
    content[7] ^= 1
    bundle.file.write_bytes(content)
    result = CliRunner().invoke(main, ["info", str(bundle.file)])
    assert result.exit_code == 1
    assert "the sha256 of its launcher is wrong" in result.output


def test_info_needs_a_file() -> None:
    """Outside of a bundle, `matryo info` needs the name of one."""
    result = CliRunner().invoke(main, ["info"])
    assert result.exit_code == 1
    assert "matryo info FILE" in result.output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lock"], "--lock needs --dimensions or --input-type"),
        (["--output", "/"], "is a folder, or in no folder"),
        (["--output", "/nowhere/file"], "is a folder, or in no folder"),
    ],
)
def test_flags_that_do_not_fit(tmp_path: Path, flags: list[str], message: str) -> None:
    """Faults of the command line are found before a model is pulled or built."""
    arguments = ["bundle", "all-minilm-l6-v2", "--output", str(tmp_path / "file"), *flags]
    result = CliRunner().invoke(main, arguments, env={"MATRYO_HOME": str(tmp_path / "home")})
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "home").exists()
