"""A bundle is one file, in which a changed byte anywhere is found."""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from matryo.core.errors import ArtifactDamaged
from matryo.store import bundle as module
from matryo.store.bundle import (
    ALIGN_BYTES,
    CODE,
    FOOTER_BYTES,
    MAGIC,
    WEIGHTS,
    Bundle,
    BundleWriter,
    Index,
    read_bundle,
    running,
)
from matryo.store.records import FileRecord

PARTS = {"launcher": 5000, WEIGHTS: ALIGN_BYTES, CODE: ALIGN_BYTES + 1}
INDEX = Index("0.1.0", "linux-x86_64", "tiny", "fp32", "tiny/fp32/0000", {"model": "tiny"}, ())


def write(folder: Path, index: Index = INDEX) -> Path:
    """A bundle of three parts."""
    writer = BundleWriter(folder / "bundle")
    for name, n_bytes in PARTS.items():
        source = folder / name
        source.write_bytes(hashlib.shake_128(name.encode()).digest(n_bytes))
        writer.add(name, [source])
    writer.finish(index)
    writer.close()
    return folder / "bundle"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A bundle of three parts."""
    return write(tmp_path)


def test_what_was_written_is_read(file: Path, tmp_path: Path) -> None:
    """Every part lies in the file as it was, and the index says where."""
    bundle = read_bundle(file)
    bundle.check()
    content = file.read_bytes()
    assert [part.name for part in bundle.index.parts] == list(PARTS)
    for part in bundle.index.parts:
        source = (tmp_path / part.name).read_bytes()
        assert content[part.offset : part.offset + len(source)] == source
    assert replace(bundle.index, parts=()) == INDEX


def test_parts_begin_at_pages(file: Path) -> None:
    """Each part begins at a multiple of every page size, and ends where the next one begins."""
    at = 0
    for part in read_bundle(file).index.parts:
        assert part.offset == at
        assert part.offset % ALIGN_BYTES == 0
        at += part.bytes


def test_several_files_of_weights(tmp_path: Path) -> None:
    """Each file of one part begins at a page."""
    writer = BundleWriter(tmp_path / "bundle")
    (tmp_path / "a").write_bytes(b"a" * 10)
    (tmp_path / "b").write_bytes(b"b")
    part = writer.add(WEIGHTS, [tmp_path / "a", tmp_path / "b"])
    writer.close()
    content = (tmp_path / "bundle").read_bytes()
    assert part.bytes == len(content) == 2 * ALIGN_BYTES
    assert content[ALIGN_BYTES : ALIGN_BYTES + 2] == b"b\0"


def _places(file: Path) -> Iterator[int]:
    """Offsets: the ends of every part, some between, and every byte of index and footer."""
    parts = read_bundle(file).index.parts
    for part in parts:
        yield from (part.offset, part.offset + PARTS[part.name] - 1, part.offset + part.bytes - 1)
        yield from range(part.offset + 1, part.offset + part.bytes, ALIGN_BYTES // 3)
    yield from range(parts[-1].offset + parts[-1].bytes, file.stat().st_size)


def test_a_flipped_bit_anywhere_is_found(file: Path) -> None:
    """One changed bit in a part, in its padding, in the index or in the footer is an error."""
    content = file.read_bytes()
    read_bundle(file).check()
    places = list(_places(file))
    assert len(places) > FOOTER_BYTES
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        with pytest.raises(ArtifactDamaged):
            read_bundle(file).check()


@pytest.mark.parametrize("n_bytes", [0, 1, FOOTER_BYTES - 1, FOOTER_BYTES, 100_000, -1])
def test_a_truncated_file_is_refused(file: Path, n_bytes: int) -> None:
    """A file that lacks its end is no bundle."""
    file.write_bytes(file.read_bytes()[:n_bytes])
    with pytest.raises(ArtifactDamaged, match=r"footer of a bundle\. Copy the file again\."):
        read_bundle(file)


def test_a_lost_middle_is_found(file: Path) -> None:
    """A file that lacks bytes between its parts has another size than its footer says."""
    content = file.read_bytes()
    file.write_bytes(content[:ALIGN_BYTES] + content[2 * ALIGN_BYTES :])
    with pytest.raises(ArtifactDamaged, match="bytes of"):
        read_bundle(file)


def _sign(content: bytearray) -> bytes:
    """The bundle with the right hash of its footer."""
    footer = content[-FOOTER_BYTES:-32]
    return bytes(content[:-32]) + hashlib.sha256(footer).digest()


def test_another_version_is_named(file: Path) -> None:
    """A format of another version is refused by its number, and not called damaged."""
    content = bytearray(file.read_bytes())
    at = len(content) - FOOTER_BYTES + len(MAGIC) - 2
    content[at : at + 1] = b"7"
    file.write_bytes(_sign(content))
    with pytest.raises(ArtifactDamaged, match="has version 7 of a bundle's format"):
        read_bundle(file)


def test_footer_and_index_must_agree(file: Path) -> None:
    """Code that the footer places elsewhere than the index is refused before it is unpacked."""
    content = bytearray(file.read_bytes())
    at = len(content) - FOOTER_BYTES + len(MAGIC) + 8
    (offset,) = struct.unpack_from("<Q", content, at)
    struct.pack_into("<Q", content, at, offset - ALIGN_BYTES)
    file.write_bytes(_sign(content))
    with pytest.raises(ArtifactDamaged, match="name different code"):
        read_bundle(file)


@pytest.mark.parametrize("shift", [1, ALIGN_BYTES])
def test_parts_that_leave_bytes_out_are_refused(tmp_path: Path, shift: int) -> None:
    """Parts must cover the file: a byte that no part holds would be hashed by nobody."""
    writer = BundleWriter(tmp_path / "bundle")
    (tmp_path / "a").write_bytes(b"a")
    for name in PARTS:
        writer.add(name, [tmp_path / "a"])
    code = writer._parts[-1]
    writer._parts[-1] = replace(code, offset=code.offset + shift)
    writer.finish(INDEX)
    writer.close()
    with pytest.raises(ArtifactDamaged, match="begins at"):
        read_bundle(tmp_path / "bundle")


def test_not_a_bundle() -> None:
    """Any other program is no bundle."""
    with pytest.raises(ArtifactDamaged, match="does not end with the footer of a bundle"):
        read_bundle(Path(sys.executable).resolve())


@pytest.fixture
def unpacked(tmp_path: Path) -> Bundle:
    """A bundle whose code is unpacked."""
    record = FileRecord(4, hashlib.sha256(b"code").hexdigest())
    bundle = read_bundle(write(tmp_path, replace(INDEX, unpacked={"lib/code.so": record})))
    folder = tmp_path / bundle.key
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "code.so").write_bytes(b"code")
    return replace(bundle, folder=folder)


@pytest.mark.parametrize("content", [b"Code", b"cod", None])
def test_unpacked_code_is_checked(unpacked: Bundle, content: bytes | None) -> None:
    """An unpacked file that changed or went is an error that names the folder to remove."""
    unpacked.check()
    assert unpacked.folder
    path = unpacked.folder / "lib" / "code.so"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactDamaged, match=f"Remove {unpacked.folder}"):
        unpacked.check()


def _run_from(monkeypatch: pytest.MonkeyPatch, file: Path, program: Path) -> None:
    monkeypatch.setenv("_MATRYO_BUNDLE", str(file))
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", str(program))


def test_the_running_bundle(unpacked: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in the unpacked folder runs from the bundle, an installed Matryo from none."""
    find = running.__wrapped__
    assert find() is None
    assert unpacked.folder
    _run_from(monkeypatch, unpacked.file, unpacked.folder / "matryo")
    assert find() == unpacked
    assert unpacked.home == unpacked.folder / "home"


def test_a_replaced_bundle_is_found(unpacked: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that was unpacked from one bundle refuses another file of the same name."""
    assert unpacked.folder
    _run_from(monkeypatch, unpacked.file, unpacked.folder / "matryo")
    write(unpacked.file.parent, replace(INDEX, model_id="other"))
    with pytest.raises(ArtifactDamaged, match="was replaced after its code was unpacked"):
        running.__wrapped__()


def test_a_bundle_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that was removed is named."""
    _run_from(monkeypatch, tmp_path / "gone", tmp_path / "matryo")
    with pytest.raises(ArtifactDamaged, match="gone cannot be read: No such file"):
        running.__wrapped__()


def test_the_longest_name_fits(tmp_path: Path) -> None:
    """A bundled graph has the same length under every name of the bundle."""
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"<" + module.LOCATION.encode() + b">")
    short = module.bundled_graph(graph, Path("/opt/n"))
    long = module.bundled_graph(graph, Path("/opt") / ("n" * 255))
    assert short
    assert long
    assert len(short) == len(long) == graph.stat().st_size
    assert short.endswith(b"/n>")
    assert short.startswith(b"<./")
