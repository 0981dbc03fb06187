"""The file of a record: read back as written, and refused with its reason if it is anything else."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matryo.commands.guard.record import read_record, write_record
from matryo.core.errors import InvalidRequest
from tests.mutations import mutate_json
from tests.unit.commands.guard.conftest import Built


def test_round_trip(record: Path, tmp_path: Path) -> None:
    """A record that is read and written is the same file."""
    again = tmp_path / "again.json"
    write_record(again, read_record(record))
    assert again.read_bytes() == record.read_bytes()
    found = read_record(record)
    assert {rows.shape for rows in found.vectors.values()} == {(len(found.texts), 32)}
    assert list(found.vectors) == ["query", "document", "none"]


def test_later_fields(record: Path) -> None:
    """What a later Matryo may add to facts is no fault."""
    content = json.loads(record.read_text("utf-8"))
    content["model"]["licence"] = content["note"] = "x"
    record.write_text(json.dumps(content), "utf-8")
    assert read_record(record).fingerprint


def edit(content: dict[str, Any], *path: str, to: object) -> dict[str, Any]:
    """The content with another value."""
    at: Any = content
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = to
    return content


def rows(values: Any) -> str:
    """Vectors as a record has them."""
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer": (
        lambda c: edit(c, "matryo_guard", to=2),
        "version 2, and this Matryo reads version 1",
    ),
    "foreign": (lambda c: {"name": "package", "version": "1.0"}, "not a record of an index"),
    "a list": (lambda c: [c], "not a record of an index"),
    "true": (lambda c: edit(c, "matryo_guard", to=True), "not a record of an index"),
    "no vectors": (lambda c: edit(c, "vectors", to={}), "vectors: "),
    "no texts": (lambda c: edit(c, "texts", to=[]), "texts: "),
    "empty text": (lambda c: edit(c, "texts", to=[""]), "texts.0: "),
    "no model": (lambda c: edit(c, "model", to={}), "model.id: "),
    "half a float": (lambda c: edit(c, "vectors", "none", to="AAAA"), "3 bytes are no vectors of"),
    "not base64": (lambda c: edit(c, "vectors", "none", to="?"), "no base64"),
    "zeros": (lambda c: edit(c, "vectors", "none", to=rows(np.zeros((8, 4)))), "zeros"),
    "nan": (lambda c: edit(c, "vectors", "none", to=rows(np.full((8, 4), np.nan))), "not finite"),
    "other model": (lambda c: edit(c, "fingerprint", to="a/fp32/0/none/32/float"), "fingerprint"),
    "no own vectors": (
        lambda c: edit(c, "vectors", to={"none": c["vectors"]["none"]}),
        "the vectors of 'document', which the index has, are missing",
    ),
    "short": (lambda c: edit(edit(c, "model", to=None), "fingerprint", to="a/b"), "too few parts"),
}


class TestFaults:
    """One sentence with the file, the reason and the remedy."""

    @pytest.mark.parametrize("name", FAULTS)
    def test_content(self, record: Path, name: str) -> None:
        """A file of another kind, version or content."""
        change, message = FAULTS[name]
        content = change(json.loads(record.read_text("utf-8")))
        record.write_text(json.dumps(content), "utf-8")
        with pytest.raises(InvalidRequest) as caught:
            read_record(record)
        assert message in caught.value.message
        assert str(record) in caught.value.message

    @pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
    def test_truncated(self, plain: Built, record: Path, share: float) -> None:
        """A part of a file: a copy that was cut off."""
        content = record.read_bytes()
        record.write_bytes(content[: int(len(content) * share)])
        done = plain.guard("check", record)
        assert (done.exit_code, done.stdout) == (2, "")
        assert f"{record}: a damaged record: " in done.stderr
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize(
        "content", [b"\xff\xfe\x00", b"[" * 50_000, b"null", b"1" * 5000, b"\x89PNG"]
    )
    def test_anything(self, record: Path, content: bytes) -> None:
        """A file of anything."""
        record.write_bytes(content)
        with pytest.raises(InvalidRequest):
            read_record(record)

    def test_no_file(self, tmp_path: Path) -> None:
        """A folder, and nothing."""
        for path in (tmp_path, tmp_path / "none.json"):
            with pytest.raises(InvalidRequest):
                read_record(path)

    def test_huge(self, record: Path) -> None:
        """A file larger than any record is not read."""
        with record.open("r+b") as file:
            file.truncate(40 << 20)
        with pytest.raises(InvalidRequest, match="33,554,432"):
            read_record(record)

    def test_mutated(self, record: Path) -> None:
        """Mutations are read or refused, and nothing else happens."""
        content = record.read_bytes()
        outcomes = {"read": 0, "refused": 0}
        for seed in range(300):
            record.write_bytes(mutate_json(content, random.Random(seed)))
            try:
                found = read_record(record)
            except InvalidRequest:
                outcomes["refused"] += 1
            else:
                assert found.input_type
                assert found.asked
                outcomes["read"] += 1
        assert min(outcomes.values()) > 0
