"""The page's reading of metrics, and its code to copy, on Node.js."""

from __future__ import annotations

import ast
import json
import shlex
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.http.test_page_numbers import call

ROOT = "http://127.0.0.1:8080/"
TEXTS = [
    "plain",
    "It's a 'quote', a \"double\" one and a `tick`",
    "back\\slash, \\n, \\' and '\\'' at the end\\",
    "line\nbreak\r\n\ttab \x00\x07\x1b\x7f",
    "日本語 🍏 \u200d\u2028\u2029 naïve",
    "$HOME $(id) `id` ${x} !! %s {0} <script> <<'END'\nEND\n",
    "'",
    "x" * 200_000 + "'",
]


def body(**fields: Any) -> dict[str, Any]:
    """A request's body as the page makes it."""
    return {"model": "tiny", "input": TEXTS, **fields, "truncate": True}


class TestCode:
    """Code to copy."""

    @pytest.mark.parametrize("has_key", [True, False])
    def test_curl(self, *, has_key: bool) -> None:
        """A shell reads the very body out of the command, however it is passed."""
        for texts in (TEXTS[:-1], TEXTS):
            asked = body(dimensions=16) | {"input": texts}
            (command,) = call("code.js", ["curl", ROOT, asked, has_key])
            head, _, document = command.partition("<<'END'\n")
            words = shlex.split(head.replace("\\\n", " "))
            assert words[:2] == ["curl", f"{ROOT}v1/embeddings"]
            assert ("Authorization: Bearer YOUR_KEY" in words) == has_key
            if document:
                line, end, rest = document.split("\n")
                assert (end, rest) == ("END", "")
                assert words[-2:] == ["--data-binary", "@-"]
            else:
                line = words[-1]
                assert words[-2] == "-d"
            assert len(line) > 100_000 if document else len(line) < 130_000
            assert json.loads(line) == asked

    @pytest.mark.parametrize("has_key", [True, False])
    def test_python(self, *, has_key: bool) -> None:
        """Python reads the very fields out of the program."""
        asked = body(dimensions=16, input_type="query", embedding_type="int8")
        (program,) = call("code.js", ["inPython", ROOT, asked, has_key])
        calls = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call)]
        made, called = [node for node in calls if node.keywords]
        client = {word.arg: ast.literal_eval(word.value) for word in made.keywords}
        assert client["base_url"] == f"{ROOT}v1"
        assert client["api_key"] == ("YOUR_KEY" if has_key else "none")
        fields = {word.arg: ast.literal_eval(word.value) for word in called.keywords}
        fields |= fields.pop("extra_body")
        assert fields.pop("encoding_format") == "float"
        assert fields == asked

    def test_python_without_a_size(self) -> None:
        """A field that the request lacks is not in the program either."""
        (program,) = call("code.js", ["inPython", ROOT, body(), False])
        assert "dimensions" not in program

    def test_javascript(self) -> None:
        """The object in the program is the very body."""
        asked = body(embedding_type="binary")
        (program,) = call("code.js", ["inJavaScript", ROOT, asked, True])
        start, end = program.index("JSON.stringify(") + 15, program.rindex("),\n});")
        assert json.loads(program[start:end]) == asked
        assert "Bearer YOUR_KEY" in program


def scrape(*, times: int, restarted: bool = False) -> str:
    """A scrape of a registry with a gauge, a counter and a histogram."""
    registry = CollectorRegistry()
    Gauge("matryo_backlog_seconds", "x", ["model"], registry=registry).labels('a"b\\c\nd').set(2.5)
    counter = Counter("matryo_requests", "x", ["door"], registry=registry)
    seconds = Histogram("matryo_request_seconds", "x", buckets=(0.1, 0.5, 1), registry=registry)
    for n in range(times):
        counter.labels("openai").inc()
        seconds.observe((0.05, 0.2, 0.3, 0.7, 9)[n % 5] if not restarted else 0.05)
    return generate_latest(registry).decode()


class TestMetrics:
    """Scrapes and what lies between two."""

    def test_parse(self) -> None:
        """Every sample is read as Prometheus' own parser reads it."""
        text = scrape(times=10)
        (found,) = call("metrics.js", ["parse", text, "matryo_"])
        read = [
            (name, sample["labels"], sample["value"])
            for name, samples in found.items()
            for sample in samples
        ]
        expected = [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]
        assert sorted(read, key=str) == sorted(expected, key=str)

    def test_growth_and_quantiles(self) -> None:
        """Rates count from the scrape before; quantiles are interpolated as Prometheus does."""
        before, after = self._parsed(scrape(times=10), scrape(times=110))
        growth, p50, p95, total = call(
            "metrics.js",
            ["growth", before, after, "matryo_requests_total"],
            ["quantile", 0.5, before, after, "matryo_request_seconds_bucket"],
            ["quantile", 0.95, before, after, "matryo_request_seconds_bucket"],
            ["sum", after, "matryo_backlog_seconds"],
        )
        assert growth == 100
        # 20 up to 0.1, 40 up to 0.5, 20 up to 1 and 20 above: rank 50 lies 30/40 into (0.1, 0.5].
        assert p50 == pytest.approx(0.1 + 0.4 * 30 / 40)
        assert p95 == 1  # above the last bound
        assert total == 2.5

    def test_a_restart(self) -> None:
        """A counter that fell began anew; nothing observed has no quantile."""
        before, after = self._parsed(scrape(times=100), scrape(times=30, restarted=True))
        assert call("metrics.js", ["growth", before, after, "matryo_requests_total"]) == [30]
        name = "matryo_request_seconds_bucket"
        assert call("metrics.js", ["quantile", 0.5, after, after, name]) == [None]
        assert call("metrics.js", ["quantile", 0.5, {}, {}, name]) == [None]

    @staticmethod
    def _parsed(*texts: str) -> list[Any]:
        return call("metrics.js", *[["parse", text, "matryo_"] for text in texts])
