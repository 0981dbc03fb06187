"""The launcher of a bundle: unpacks once, keeps what is in use, and says why it cannot start."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from matryo.build.bundle import freeze
from matryo.build.bundle.stage import file_records
from matryo.build.bundle.write import write_archive
from matryo.store.bundle import CODE, WEIGHTS, BundleWriter, Index, read_bundle

# In place of the server. `libraries` says where libraries are looked for, `fds` says whether standard input is open, `wait` reads a line of it.
PROGRAM = """#!/bin/sh
case "$1" in
    fds) [ -e /proc/$$/fd/0 ] && echo open || echo closed ;;
    wait) echo waiting; read line ;;
    libraries) echo "$LD_LIBRARY_PATH" ;;
    *) echo "$_MATRYO_BUNDLE|$*" ;;
esac
"""


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled launcher."""
    compiler = shutil.which("cc")
    if compiler is None and importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs a C compiler: cc, or the package ziglang")
    path = tmp_path_factory.mktemp("launcher") / "launcher"
    source = Path(freeze.__file__).with_name("launcher.c")
    command = [compiler] if compiler else [sys.executable, "-m", "ziglang", "cc"]
    subprocess.run([*command, "-O1", "-o", str(path), str(source)], check=True, capture_output=True)
    return path


def write(file: Path, launcher: Path, word: str = "") -> Path:
    """A bundle of the launcher and `PROGRAM`; another word, another bundle."""
    code = file.with_name(f"{file.name}-code")
    shutil.rmtree(code, ignore_errors=True)
    (code / "home" / "locks").mkdir(parents=True)
    (code / "home" / "word").write_text(word * 1000)
    (code / "matryo").write_text(PROGRAM)
    (code / "matryo").chmod(0o755)
    (code / "link").symlink_to("matryo")
    archive = file.with_name(f"{file.name}.zip")
    write_archive(code, archive)
    aside = file.with_name(f"{file.name}.new")
    writer = BundleWriter(aside)
    for name, sources in (("launcher", [launcher]), (WEIGHTS, []), (CODE, [archive])):
        writer.add(name, sources)
    writer.finish(
        Index("1", "linux", "tiny", "fp32", "tiny/fp32/0000", {}, (), (), file_records(code))
    )
    writer.close()
    aside.chmod(0o755)
    aside.replace(file)
    return file


@pytest.fixture
def file(tmp_path: Path, launcher: Path) -> Path:
    """A bundle."""
    return write(tmp_path / "tiny", launcher)


def start(file: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a bundle with nothing in its environment but `environ`."""
    return subprocess.run(
        [str(file), *arguments], env=environ, capture_output=True, text=True, check=False
    )


def folder_of(file: Path, home: Path) -> Path:
    """The folder that a bundle is unpacked into."""
    return home / "bundles" / read_bundle(file).key


def begin(file: Path, home: Path) -> subprocess.Popen[str]:
    """A bundle's program that runs until its standard input is closed."""
    program = subprocess.Popen(
        [str(file), "wait"],
        env={"MATRYO_HOME": str(home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout
    assert program.stdout.readline() == "waiting\n"
    return program


def test_unpacks_once(file: Path, tmp_path: Path) -> None:
    """The first start unpacks the code, links and modes included; later starts use that folder."""
    first = start(file, "a", "b c", MATRYO_HOME=str(tmp_path))
    assert (first.stdout, first.stderr) == (f"{file}|a b c\n", "")
    folder = folder_of(file, tmp_path)
    assert (folder / "link").readlink() == Path("matryo")
    assert (folder / "home" / "locks").is_dir()
    assert file_records(folder) == read_bundle(file).index.unpacked
    (folder / "mark").touch()
    renamed = file.rename(tmp_path / "a name of Zürich")
    assert start(renamed, MATRYO_HOME=str(tmp_path)).stdout == f"{renamed}|\n"
    assert (folder / "mark").exists()


def test_first_starts_at_once(file: Path, tmp_path: Path) -> None:
    """Of several first starts one unpacks, the others wait, and all of them run."""
    home = {"MATRYO_HOME": str(tmp_path)}
    programs = [
        subprocess.Popen([str(file), str(n)], env=home, stdout=subprocess.PIPE, text=True)
        for n in range(6)
    ]
    said = [program.communicate()[0] for program in programs]
    assert said == [f"{file}|{n}\n" for n in range(6)]
    key = read_bundle(file).key
    assert sorted(path.name for path in (tmp_path / "bundles").iterdir()) == [key, f"{key}.lock"]


def test_a_crash_while_unpacking(file: Path, tmp_path: Path) -> None:
    """What a killed first start left is removed by the next one."""
    folder = folder_of(file, tmp_path)
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(parents=True)
    (part / "half").write_text("a file")
    part.parent.chmod(0o700)
    assert start(file, MATRYO_HOME=str(tmp_path)).returncode == 0
    assert not part.exists()
    assert not (folder / "half").exists()


def test_a_replaced_bundle_is_removed(file: Path, launcher: Path, tmp_path: Path) -> None:
    """The first start of a file removes what the file of the same path had unpacked."""
    start(file, MATRYO_HOME=str(tmp_path))
    old = folder_of(file, tmp_path)
    write(file, launcher, "new")
    assert start(file, MATRYO_HOME=str(tmp_path)).returncode == 0
    new = folder_of(file, tmp_path)
    names = sorted(path.name for path in new.parent.iterdir())
    assert names == [new.name, f"{new.name}.lock"]
    assert not old.exists()


def test_a_deleted_bundle_is_removed_and_others_stay(
    file: Path, launcher: Path, tmp_path: Path
) -> None:
    """A first start removes folders whose file is gone, and no folder of a file that exists."""
    gone = write(tmp_path / "gone", launcher, "gone")
    other = write(tmp_path / "other", launcher, "other")
    for one in (gone, other):
        start(one, MATRYO_HOME=str(tmp_path))
    folder = folder_of(gone, tmp_path)
    gone.unlink()
    start(file, MATRYO_HOME=str(tmp_path))
    assert not folder.exists()
    assert folder_of(other, tmp_path).exists()


def test_a_folder_in_use_stays(file: Path, launcher: Path, tmp_path: Path) -> None:
    """A running program keeps its folder; the first start after its end removes the folder."""
    program = begin(file, tmp_path)
    old = folder_of(file, tmp_path)
    for word in ("new", "newer"):
        write(file, launcher, word)
        assert start(file, MATRYO_HOME=str(tmp_path)).returncode == 0
        assert old.exists() == (word == "new")
        if word == "new":
            program.communicate("")


def test_a_folder_removed_in_use(file: Path, tmp_path: Path) -> None:
    """Where somebody removed the folder of a running program, the next start unpacks again."""
    program = begin(file, tmp_path)
    shutil.rmtree(folder_of(file, tmp_path))
    assert start(file, MATRYO_HOME=str(tmp_path)).returncode == 0
    program.communicate("")


def test_a_cache_without_locks(file: Path, tmp_path: Path) -> None:
    """A cache that holds a folder and no lock file, such as a copied one, serves as well."""
    start(file, MATRYO_HOME=str(tmp_path))
    folder = folder_of(file, tmp_path)
    folder.with_name(f"{folder.name}.lock").unlink()
    assert start(file, MATRYO_HOME=str(tmp_path)).returncode == 0


@pytest.mark.parametrize("given", ["", "/opt/lib"])
def test_libraries(file: Path, tmp_path: Path, given: str) -> None:
    """The program finds the bundle's libraries from its first moment on, before any others."""
    done = start(file, "libraries", MATRYO_HOME=str(tmp_path), LD_LIBRARY_PATH=given)
    own = folder_of(file, tmp_path) / "_internal"
    assert done.stdout == f"{own}:{given}\n".replace(":\n", "\n")


def test_closed_standard_input(file: Path, tmp_path: Path) -> None:
    """The lock that a program keeps does not become its standard input."""
    done = subprocess.run(
        ["sh", "-c", '"$0" fds <&-', str(file)],
        env={"MATRYO_HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "closed\n"


@pytest.mark.parametrize("home", [None, "", "/dev/null"])
def test_without_a_home(file: Path, tmp_path: Path, home: str | None) -> None:
    """Without a home folder that can be written, the code goes to the temporary folder."""
    environ = {} if home is None else {"HOME": home}
    assert start(file, TMPDIR=str(tmp_path), **environ).stdout == f"{file}|\n"
    assert (tmp_path / f"matryo-bundles-{os.geteuid()}" / read_bundle(file).key).is_dir()


def test_in_a_home(file: Path, tmp_path: Path) -> None:
    """By default the code goes to the user's cache."""
    start(file, HOME=str(tmp_path), TMPDIR=str(tmp_path))
    assert folder_of(file, tmp_path / ".cache" / "matryo").is_dir()


def test_no_folder_can_be_used(file: Path) -> None:
    """The error names every folder that was tried, what is wrong with it, and the remedy."""
    done = start(file, HOME="/dev/null", TMPDIR="/dev/null")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {file} needs a folder for its code (1 MB)")
    assert done.stderr.count("Not a directory") == 2
    assert "Set MATRYO_HOME to such a folder" in done.stderr
    done = start(file, MATRYO_HOME="/dev/null", HOME="/", TMPDIR="/tmp")  # noqa: S108 - not used
    assert "run: /dev/null/bundles: Not a directory. Set" in done.stderr


def test_folders_of_others(file: Path, tmp_path: Path) -> None:
    """A folder that other users may write, or turn elsewhere, is refused."""
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles").chmod(0o777)
    assert "Operation not permitted" in start(file, MATRYO_HOME=str(tmp_path)).stderr
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / f"matryo-bundles-{os.geteuid()}").symlink_to("elsewhere")
    assert "Operation not permitted" in start(file, TMPDIR=str(tmp_path)).stderr


def test_a_write_fails(file: Path, launcher: Path, tmp_path: Path) -> None:
    """A disk that takes no more is named, and nothing is left there."""
    write(file, launcher, "large")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = subprocess.run(
        [str(file)],
        env={"MATRYO_HOME": str(tmp_path)},
        preexec_fn=limit,
        restore_signals=False,  # a write over the limit fails, and no signal comes
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "bundles: File too large. Set" in done.stderr
    key = read_bundle(file).key
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == [f"{key}.lock"]


def test_damaged_code(file: Path, tmp_path: Path) -> None:
    """Code with a flipped bit is not unpacked."""
    part = next(part for part in read_bundle(file).index.parts if part.name == CODE)
    content = bytearray(file.read_bytes())
    content[part.offset + 100] ^= 1
    file.write_bytes(content)
    done = start(file, MATRYO_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "is damaged: the sha256 of its code is wrong. Copy the file again." in done.stderr
    assert not folder_of(file, tmp_path).exists()
