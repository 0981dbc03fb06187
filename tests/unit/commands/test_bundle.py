"""The command line of a bundle: what is fixed, what is locked, and what is refused."""

from __future__ import annotations

import pwd
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner

from matryo.assembly import models as assembly
from matryo.build.bundle import freeze
from matryo.cli import main
from matryo.commands import bundled
from matryo.commands.bundled import complete, enter
from matryo.core import fixed as module
from matryo.core.environment import load_settings
from matryo.core.errors import ArtifactDamaged, SettingsInvalid
from matryo.core.fixed import REFUSED, Fixed, fix
from matryo.core.steps import Steps
from matryo.grpc import listening
from matryo.store.bundle import CODE, WEIGHTS, Bundle, BundleWriter, Index, read_bundle
from tests.checkpoints import TinyModel
from tests.conftest import build_tiny

SETTINGS = {"model": "tiny", "precision": "int8", "dimensions": "256"}
INDEX = Index("0.1.0", "linux-x86_64", "tiny", "int8", "tiny/int8/0000", SETTINGS, ("dimensions",))


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
        (
            {"model": ("other",)},
            "--model is 'other', but /opt/tiny was made with 'tiny'. Leave it out",
        ),
        ({"precision": "fp32"}, "--precision is 'fp32', but /opt/tiny was made with 'int8'"),
        ({"dimensions": "128"}, "--dimensions is 128, but /opt/tiny was made with 256"),
        ({"models": "/opt"}, "--models is '/opt', but /opt/tiny was made with none"),
        (
            {"rotary_scaling_factor": "2"},
            "--rotary-scaling-factor is 2.0, but /opt/tiny was made with none",
        ),
    ],
)
def test_held_values_are_refused(flags: dict[str, str], message: str) -> None:
    """A bundle holds one artefact, and keeps to what was locked."""
    with pytest.raises(SettingsInvalid, match=message):
        load_settings(None, **flags)


@pytest.mark.usefixtures("fixed")
def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle runs where no file names its user, as in a container of nothing but the bundle."""

    def unknown(_: int) -> NoReturn:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setenv("MATRYO_HOME", "/cache/key/home")
    assert load_settings(None, model=("tiny",)).model == ("tiny",)


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


@pytest.fixture
def damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process runs from a bundle with a flipped bit."""
    check: Future[None] = Future()
    check.set_exception(ArtifactDamaged("/opt/tiny is damaged"))
    monkeypatch.setattr(assembly, "running_check", lambda: check)


@pytest.mark.usefixtures("damaged")
def test_a_damaged_bundle_lays_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache gets no weights of a damaged file: the intact file would find and use them."""

    def never(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a process was started")

    monkeypatch.setattr(assembly.subprocess, "Popen", never)
    with pytest.raises(ArtifactDamaged, match="/opt/tiny is damaged"):
        assembly._prepare_apart(load_settings(None), "tiny", Steps())


@pytest.mark.usefixtures("damaged")
def test_a_damaged_bundle_loads_nothing(
    tiny_bert: tuple[TinyModel, object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The check ends before anything is answered, and is named as the cause of other failures."""
    model, _ = tiny_bert
    build_tiny(tmp_path, model)
    settings = load_settings(
        None, model=(model.id,), models=str(model.models), home=tmp_path / "home"
    )
    with pytest.raises(ArtifactDamaged, match="/opt/tiny is damaged"):
        assembly.load_engines(settings)
    monkeypatch.setattr(assembly, "load_engine", None)  # fails when called
    with pytest.raises(ArtifactDamaged, match="/opt/tiny is damaged"):
        assembly.load_engines(settings)


@pytest.mark.usefixtures("fixed")
def test_help() -> None:
    """Help of a bundle lists the commands that a bundle has, and asks for no model."""
    said = CliRunner().invoke(main, ["--help"]).output
    assert "embed" in said
    assert not [name for name in REFUSED if f"  {name} " in said]
    assert (
        "[OPTIONS] [ID] [INPUT]..." in CliRunner().invoke(main, ["embed", "tiny", "--help"]).output
    )


@pytest.mark.usefixtures("fixed")
def test_a_bundle_without_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that was made without gRPC's library does not ask its user to install anything."""
    monkeypatch.setattr(listening.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SettingsInvalid, match=r"/opt/tiny was made without gRPC\. Unset") as error:
        listening.check_installed()
    assert "nstall" not in error.value.message


def test_doors_are_taken_along_if_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library of a door is left out of a bundle where a library of the door is missing."""

    def flags() -> list[str]:
        return freeze._door_flags(Path("/package"))

    def missing(name: str) -> bool:
        return name == "grpc"

    assert not freeze.missing_doors()
    assert "google.protobuf" not in flags()
    assert "/package/grpc/protos/descriptors.binpb:matryo/grpc/protos" in flags()
    monkeypatch.setattr(freeze, "_is_missing", missing)
    assert {"google.protobuf", "grpc"} <= set(flags())
    assert "--add-data" not in flags()
    (sentence,) = freeze.missing_doors()
    assert "no gRPC" in sentence
    assert "pip install 'matryo[grpc]'" in sentence


def test_the_page_is_taken_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the page, which are no modules, are in a bundle."""
    commands: list[list[str]] = []
    monkeypatch.setattr(freeze, "_run", lambda command, *_: commands.append(command))
    monkeypatch.setattr(freeze, "stage_model", lambda *_: None)
    freeze.freeze(tmp_path, tmp_path)
    target = "matryo/http/page/assets"
    (source,) = [one.split(":")[0] for one in commands[0] if one.endswith(f":{target}")]
    assert (Path(source) / "index.html").is_file()


def test_info(bundle: Bundle) -> None:
    """`matryo info FILE` checks the file and says what the file holds."""
    result = CliRunner().invoke(main, ["info", str(bundle.file)])
    assert result.exit_code == 0, result.output
    for text in ("tiny/int8/0000", "dimensions=256", "every byte is what was written"):
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


def test_native_operators(tmp_path: Path) -> None:
    """A bundle has no operators of matryo-native, which is said before a model is pulled."""
    arguments = ["bundle", "all-minilm-l6-v2", "--output", str(tmp_path / "file")]
    environ = {"MATRYO_HOME": str(tmp_path / "home"), "MATRYO_KERNELS": "native"}
    result = CliRunner().invoke(main, arguments, env=environ)
    assert result.exit_code == 1
    assert "MATRYO_KERNELS is native, but a bundle has" in result.output
