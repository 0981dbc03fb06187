"""The operator's routes: health, metrics and the OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.contract.conftest import client_of, live_server
from tests.fakes import MINILM, NOMIC, FakeEngine


async def scrape(client: httpx2.AsyncClient) -> dict[tuple[str, frozenset[Any]], float]:
    """Every sample by name and labels."""
    text = (await client.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[Any]]:
    """The key of a sample in the result of `scrape`."""
    return name, frozenset(labels.items())


async def test_health(client: httpx2.AsyncClient) -> None:
    """The health routes and the list of models answer GET and HEAD."""
    for path in ("/livez", "/readyz", "/health"):
        assert (await client.get(path)).json() == {"status": "ok"}
        head = await client.head(path)
        assert (head.status_code, head.content) == (200, b"")
    for path in ("/v1/models", f"/v1/models/{NOMIC.id}"):
        head = await client.head(path)
        assert (head.status_code, head.content) == (200, b"")


async def test_metrics_count_what_happened(engine: FakeEngine) -> None:
    """Texts, tokens, stages, sizes and refusals are all counted."""
    async with client_of([engine, FakeEngine(MINILM)]) as client:
        url = "/v1/embeddings"
        await client.post(url, json={"input": ["a", "b c"], "dimensions": 64})
        await client.post(
            "/embeddings", json={"input": "a", "dimensions": 100, "input_type": "query"}
        )
        await client.post(url, json={"input": "w " * 9000, "truncate": True})
        await client.post(url, json={"input": ["a", ""]})
        await client.get("/unknown/path")
        samples = await scrape(client)

    model = NOMIC.id
    assert (
        samples[key("matryo_requests_total", door="openai", route=url, status="200", model=model)]
        == 3
    )
    assert (
        samples[key("matryo_requests_total", door="openai", route=url, status="400", model=model)]
        == 1
    )
    assert (
        samples[key("matryo_requests_total", door="none", route="other", status="404", model="")]
        == 1
    )
    shape = {"model": model, "input_type": "document"}
    assert samples[key("matryo_texts_total", dimensions="64", **shape)] == 2
    assert samples[key("matryo_tokens_total", dimensions="64", **shape)] == 9
    assert (
        samples[key("matryo_texts_total", model=model, input_type="query", dimensions="other")] == 1
    )
    assert samples[key("matryo_truncations_total", model=model)] == 1
    for stage in ("tokenize", "encode"):
        assert samples[key(f"matryo_{stage}_seconds_count", model=model)] == 3
    for stage in ("queue", "inference", "postprocess"):
        assert samples[key(f"matryo_{stage}_seconds_count", model=model)] >= 3
    assert samples[key("matryo_ready")] == 1
    assert samples[key("matryo_queue_tokens")] == 0
    assert samples[key("matryo_requests_in_progress")] == 1  # the scrape itself
    builds = [labels for (name, labels), _ in samples.items() if name == "matryo_build_info"]
    assert {dict(labels)["model"] for labels in builds} == {NOMIC.id, MINILM.id}
    assert any(dict(labels)["fingerprint"] == engine.fingerprint for labels in builds)


async def test_counters_start_at_zero(client: httpx2.AsyncClient) -> None:
    """A counter exists before its first event, so that an alert sees the first event."""
    samples = await scrape(client)
    for reason in ("queue_full", "requests", "wait", "memory", "draining"):
        assert samples[key("matryo_rejections_total", reason=reason)] == 0
    for name in ("truncations", "cancellations", "failures"):
        assert samples[key(f"matryo_{name}_total", model=NOMIC.id)] == 0


async def test_callers_cannot_grow_the_metrics(client: httpx2.AsyncClient) -> None:
    """No label has a text that a caller sent."""
    before: set[Any] = set()
    for n in range(20):
        await client.post("/v1/embeddings", json={"input": "a", "model": f"m{n}"})
        await client.post(f"/v{n}/embeddings", json={"input": "a"})
        await client.post("/v1/embeddings", json={"input": "a", "dimensions": 200 + n})
        if n < 3:  # the scrapes themselves are counted, too
            before = set(await scrape(client))
    assert set(await scrape(client)) == before


async def test_openmetrics(client: httpx2.AsyncClient) -> None:
    """A scraper that prefers OpenMetrics gets OpenMetrics."""
    response = await client.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


async def test_health_of_a_model_that_fails(engine: FakeEngine) -> None:
    """/readyz answers 503 with a reason once a probe failed too, and /livez answers 200."""

    def explode(_: object) -> None:
        raise RuntimeError("boom")

    async with client_of(engine) as client:
        engine.before = explode
        await client.post("/v1/embeddings", json={"input": "a"})
        async with asyncio.timeout(30):
            while (response := await client.get("/readyz")).status_code == 200:
                await asyncio.sleep(0)
        assert response.status_code == 503
        assert response.json()["reason"] == f"the last run of {NOMIC.id} failed"
        assert (await client.get("/livez")).status_code == 200
        engine.before = lambda _: None


@pytest.mark.parametrize(("draining", "status"), [(False, 0), (True, 1)])
def test_the_image_asks_no_proxy(engine: FakeEngine, draining: bool, status: int) -> None:
    """The image's health check reaches the server whatever proxy the environment names."""
    dockerfile = (Path(__file__).parents[2] / "Dockerfile").read_text()
    found = re.search(r"HEALTHCHECK .*\\\n\s+CMD (\[.*\])", dockerfile)
    assert found
    command = json.loads(found[1])
    assert command[0] == "python3"
    proxies = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
    with live_server(engine) as live:
        if draining:
            live.application.state.context.service.why_not_ready = lambda: "not now"
        done = subprocess.run(
            [sys.executable, *command[1:]],
            env=os.environ
            | dict.fromkeys(proxies, "http://127.0.0.1:9")
            | {"MATRYO_PORT": str(live.port)},
            check=False,
        )
    assert done.returncode == status
