"""Find the passages that answer a question, with an index of FAISS.

    pip install openai faiss-cpu numpy
    matryo serve --model nomic-embed-text-v1.5
    python examples/rag.py examples/documents "How do I keep queries fast while I index?"

The example makes two indexes of the same passages, and searches both:

- an inner-product index of float vectors of 256 dimensions;
- a Hamming index of the signs of all dimensions, eight signs in a byte. They need 1/32 of the bytes
  of float vectors. The question's float vector ranks the best candidates again.

An application would give the passages and the question to a language model. The example leaves
this step out, because any language model will do.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from openai import OpenAI

os.environ.setdefault("NO_PROXY", "localhost,127.0.0.1")  # a server here is asked directly
DIMENSIONS = 256
BATCH = 64
CANDIDATES = 20


@dataclass(frozen=True)
class Passage:
    """A paragraph, and the name of its file."""

    source: str
    text: str


def read_passages(folder: Path) -> list[Passage]:
    """The paragraphs of every .md and .txt file, each after the heading above it."""
    passages: list[Passage] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix not in {".md", ".txt"}:
            continue
        heading = ""
        for paragraph in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
            text = " ".join(paragraph.split())
            if text.startswith("#"):
                heading = text.lstrip("# ") + ": "
            elif text:
                passages.append(Passage(path.name, heading + text))
    return passages


class Embedder:
    """OpenAI's client, with the fields that Matryo adds to OpenAI's API."""

    def __init__(self, client: OpenAI, model: str) -> None:
        self.client = client
        self.model = model

    def embed(self, texts: Sequence[str], **fields: Any) -> np.ndarray:
        """Vectors of the texts, in order; `fields` are added to the body of each request."""
        return np.array(list(self._embed(texts, fields)))

    def _embed(self, texts: Sequence[str], fields: dict[str, Any]) -> Iterator[list[float]]:
        for start in range(0, len(texts), BATCH):
            answer = self.client.embeddings.create(
                model=self.model,
                input=list(texts[start : start + BATCH]),
                encoding_format="float",
                extra_body=fields,
            )
            yield from (item.embedding for item in answer.data)

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        """Float vectors of documents."""
        fields = {"input_type": "document", "dimensions": DIMENSIONS, "truncate": True}
        return self.embed(texts, **fields).astype(np.float32)

    def document_bits(self, texts: Sequence[str]) -> np.ndarray:
        """Signs of the vectors of documents, eight in a byte."""
        fields = {"input_type": "document", "embedding_type": "ubinary", "truncate": True}
        return self.embed(texts, **fields).astype(np.uint8)

    def query(self, text: str, **fields: Any) -> np.ndarray:
        """The float vector of a question, `(1, dimensions)`."""
        return self.embed([text], input_type="query", **fields).astype(np.float32)


class FloatIndex:
    """An index that ranks by the inner product of unit vectors, which is their cosine."""

    def __init__(self, embedder: Embedder, passages: Sequence[Passage]) -> None:
        self.embedder = embedder
        vectors = embedder.documents([passage.text for passage in passages])
        self.index = faiss.IndexFlatIP(vectors.shape[1])
        self.index.add(vectors)
        self.n_bytes = vectors.nbytes

    def search(self, question: str, k: int) -> list[tuple[int, float]]:
        """Indices of the k nearest passages, and their cosines to the question."""
        query = self.embedder.query(question, dimensions=DIMENSIONS)
        scores, indices = self.index.search(query, k)
        return list(zip(indices[0].tolist(), scores[0].tolist(), strict=True))


class BinaryIndex:
    """An index that finds candidates by the Hamming distance of signs, and ranks them by floats."""

    def __init__(self, embedder: Embedder, passages: Sequence[Passage]) -> None:
        self.embedder = embedder
        self.bits = embedder.document_bits([passage.text for passage in passages])
        self.index = faiss.IndexBinaryFlat(self.bits.shape[1] * 8)
        self.index.add(self.bits)
        self.n_bytes = self.bits.nbytes

    def search(self, question: str, k: int) -> list[tuple[int, float]]:
        """Indices of the k best candidates, and their scores: signs times the question's floats."""
        query = self.embedder.query(question)
        _, indices = self.index.search(np.packbits(query > 0, axis=1), CANDIDATES)
        candidates = indices[0][indices[0] >= 0]
        signs = np.unpackbits(self.bits[candidates], axis=1).astype(np.float32) * 2 - 1
        scores = signs @ query[0] / np.sqrt(signs.shape[1])
        best = np.argsort(-scores)[:k]
        return [(int(candidates[i]), float(scores[i])) for i in best]


def main() -> None:
    """Index the files of a folder, and print the passages that are nearest to a question."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("question")
    parser.add_argument(
        "--base-url", default=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1")
    )
    parser.add_argument("--model", default="text-embedding-3-small", help="a model or an alias")
    parser.add_argument("-k", type=int, default=3)
    options = parser.parse_args()
    passages = read_passages(options.folder)
    if not passages:
        sys.exit(f"{options.folder} has no .md or .txt files with text")
    client = OpenAI(base_url=options.base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    embedder = Embedder(client, options.model)
    for name, index_type in (("float", FloatIndex), ("binary", BinaryIndex)):
        index = index_type(embedder, passages)
        print(f"{name} index: {len(passages)} passages in {index.n_bytes:,} bytes")
        for found, score in index.search(options.question, options.k):
            print(f"  {score:.3f}  [{passages[found].source}] {passages[found].text[:100]}")


if __name__ == "__main__":
    main()
