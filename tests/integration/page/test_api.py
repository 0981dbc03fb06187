"""The page's requests: many texts become several, and give the vectors of one."""

from __future__ import annotations

from typing import Any

import httpx2
import numpy as np
import pytest
from playwright.sync_api import Page

from tests.integration.page.conftest import Open
from tests.integration.page.served import Served, serve

CALL = """async ([texts, options]) => {
  const { Api } = await import("/page/api.js");
  const done = [];
  const answer = await new Api(location.origin + "/").embed(texts, {
    ...options, onProgress: (n) => done.push(n),
  });
  return { ...answer, rows: answer.rows.map((row) => Array.from(row)), done };
}"""


def embed(page: Page, texts: list[str], **options: Any) -> dict[str, Any]:
    """What `api.embed` returns."""
    answer = page.evaluate(CALL, [texts, options])
    # JavaScript has a float32 as a double; the API's JSON has its shortest decimal.
    answer["rows"] = np.array(answer["rows"], np.float32)
    return answer


def rows_of(said: dict[str, Any]) -> Any:
    """The vectors of an answer of the API."""
    return np.array([item["embedding"] for item in said["data"]], np.float32)


@pytest.mark.parametrize("embedding_type", ["float", "int8", "uint8", "binary", "ubinary"])
def test_types(server: Served, open_page: Open, embedding_type: str) -> None:
    """Each number type is read as the API's JSON has it."""
    texts = ["a", "b c", "word " * 100]
    page = open_page(f"{server.url}/")
    answer = embed(page, texts, model="tiny", embeddingType=embedding_type, inputType="query")
    fields = {"embedding_type": embedding_type, "input_type": "query", "truncate": True}
    said = httpx2.post(f"{server.url}/v1/embeddings", json={"input": texts, **fields})
    np.testing.assert_array_equal(answer["rows"], rows_of(said.json()))
    assert answer["fingerprint"] == said.headers["x-matryo-fingerprint"]
    assert answer["tokens"] == said.json()["usage"]["prompt_tokens"]
    assert answer["truncated"] == int(said.headers["x-matryo-truncated"]) == 1
    assert answer["model"] == "tiny"


def test_many_texts(server: Served, open_page: Open) -> None:
    """600 texts are three requests, whose vectors and counts are those of one."""
    texts = [f"text number {n}" for n in range(600)]
    page = open_page(f"{server.url}/")
    answer = embed(page, texts)
    said = httpx2.post(f"{server.url}/v1/embeddings", json={"input": texts}).json()
    assert answer["done"] == [256, 512, 600]
    np.testing.assert_array_equal(answer["rows"], rows_of(said))
    assert answer["tokens"] == said["usage"]["prompt_tokens"]


def test_small_limits(store: dict[str, str], open_page: Open) -> None:
    """A request that is too large for the server's limits is halved until it fits."""
    with serve(store, MATRYO_MAX_REQUEST_TOKENS="100", MATRYO_MAX_INPUTS="40") as small:
        page = open_page(f"{small.url}/", expect=("400",))
        texts = [f"text number {n}" for n in range(50)]
        answer = embed(page, texts, limits={"max_inputs": 40})
        assert len(answer["rows"]) == 50
        one = httpx2.post(f"{small.url}/v1/embeddings", json={"input": texts[-1]}).json()
        np.testing.assert_array_equal(answer["rows"][-1:], rows_of(one))
        assert answer["requests"] > 1
        page.close()  # before its server ends
