"""Clients of the gRPC port, as they come."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest

pytest.importorskip("grpc")

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from tests.clients.conftest import KEY, MODEL
from tests.clients.test_frameworks import same
from tests.contract.conftest import live_server
from tests.fakes import MINILM, FakeEngine, as_float32

shows = pytest.mark.shows
TEXTS = ["The sky is blue.", "Grass is green.", "Größe 語 🎉"]
METADATA = (("authorization", f"Bearer {KEY}"),)
PAGE = Path(__file__).parents[2] / "docs" / "grpc.md"

# What a client needs of other projects' services, by their field numbers.
TEI = """
syntax = "proto3";
package tei.v1;
service Info { rpc Info(InfoRequest) returns (InfoResponse); }
service Embed {
  rpc Embed(EmbedRequest) returns (EmbedResponse);
  rpc EmbedStream(stream EmbedRequest) returns (stream EmbedResponse);
}
service Tokenize {
  rpc Tokenize(EncodeRequest) returns (EncodeResponse);
  rpc Decode(DecodeRequest) returns (DecodeResponse);
}
message InfoRequest {}
message InfoResponse { string model_id = 4; uint32 max_input_length = 9; }
message EmbedRequest {
  string inputs = 1;
  bool truncate = 2;
  optional bool normalize = 3;
  TruncationDirection truncation_direction = 4;
  optional string prompt_name = 5;
  optional uint32 dimensions = 6;
}
enum TruncationDirection { TRUNCATION_DIRECTION_RIGHT = 0; TRUNCATION_DIRECTION_LEFT = 1; }
message Metadata { uint32 compute_chars = 1; uint32 compute_tokens = 2; }
message EmbedResponse { repeated float embeddings = 1; Metadata metadata = 2; }
message EncodeRequest {
  string inputs = 1;
  bool add_special_tokens = 2;
  optional string prompt_name = 3;
}
message SimpleToken { uint32 id = 1; string text = 2; bool special = 3; }
message EncodeResponse { repeated SimpleToken tokens = 1; }
message DecodeRequest { repeated uint32 ids = 1; bool skip_special_tokens = 2; }
message DecodeResponse { string text = 1; }
"""
ENCODERFILE = """
syntax = "proto3";
package encoderfile.sentence_embedding;
service SentenceEmbeddingInference {
  rpc Predict(SentenceEmbeddingRequest) returns (SentenceEmbeddingResponse);
}
message SentenceEmbeddingRequest {
  repeated string inputs = 1;
  map<string, string> metadata = 3;
}
message SentenceEmbedding { repeated float embedding = 1; }
message SentenceEmbeddingResponse {
  repeated SentenceEmbedding results = 1;
  string model_id = 2;
  map<string, string> metadata = 3;
}
"""


@pytest.fixture
def target(engine: FakeEngine) -> Iterator[str]:
    """Host and port of a server of two models, behind a key."""
    with live_server([engine, FakeEngine(MINILM)], api_keys=KEY, grpc_port=0) as live:
        yield f"127.0.0.1:{live.application.state.grpc_server.port}"


@pytest.fixture
def channel(target: str) -> Iterator[grpc.Channel]:
    """A channel to the server."""
    with grpc.insecure_channel(target) as channel:
        yield channel


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Makes a module's messages and stubs, which protoc writes of a .proto."""
    pytest.importorskip("grpc_tools")
    folder = tmp_path_factory.mktemp("stubs")
    for name, proto in (("client_tei", TEI), ("client_encoderfile", ENCODERFILE)):
        (folder / f"{name}.proto").write_text(proto)
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}"]
    protoc += [f"--python_out={folder}", f"--grpc_python_out={folder}"]
    subprocess.run([*protoc, *map(str, folder.glob("*.proto"))], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield lambda name: [importlib.import_module(name + end) for end in ("_pb2", "_pb2_grpc")]


class TestHealth:
    """Google's health client, which Kubernetes and load balancers are like."""

    PACKAGE = "grpcio-health-checking"

    @shows(PACKAGE, "`Check` and `Watch`, for the server, a service and each model, without a key")
    def test_check(self, channel: grpc.Channel) -> None:
        """SERVING, and NOT_FOUND for what there is not."""
        messages = pytest.importorskip("grpc_health.v1.health_pb2")
        services = importlib.import_module("grpc_health.v1.health_pb2_grpc")
        stub = services.HealthStub(channel)
        request = messages.HealthCheckRequest
        serving = messages.HealthCheckResponse.SERVING
        for name in ("", "tei.v1.Embed", MODEL, MINILM.id):
            assert stub.Check(request(service=name)).status == serving
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            stub.Check(request(service="another"))
        watch = stub.Watch(request(service=MODEL))
        assert next(watch).status == serving
        watch.cancel()


class TestTei:
    """Stubs of TEI's services."""

    PACKAGE = "grpcio-tools"

    @shows(PACKAGE, "TEI's `Embed`: `prompt_name`, `dimensions`, `normalize`, counts of tokens")
    def test_embed(self, stubs: Any, channel: grpc.Channel, engine: FakeEngine) -> None:
        """One text a call."""
        messages, services = stubs("client_tei")
        stub = services.EmbedStub(channel)
        request = messages.EmbedRequest(inputs=TEXTS[0], prompt_name="query", dimensions=256)
        answer = stub.Embed(request, metadata=METADATA)
        assert same([answer.embeddings], engine, "search_query", TEXTS[:1], 256)
        assert answer.metadata.compute_tokens > 4
        request = messages.EmbedRequest(inputs=TEXTS[0], normalize=False)
        found = as_float32(stub.Embed(request, metadata=METADATA).embeddings)
        ids = engine.tokenize([TEXTS[0]], "search_document: ")[0].ids
        assert np.array_equal(found, engine.raw(ids, 768))

    @shows(PACKAGE, "TEI's `EmbedStream`: 1,000 texts in order")
    def test_stream(self, stubs: Any, channel: grpc.Channel, engine: FakeEngine) -> None:
        """Many texts, an answer each."""
        messages, services = stubs("client_tei")
        texts = [f"text {n}" for n in range(1000)]
        requests = (messages.EmbedRequest(inputs=text, truncate=True) for text in texts)
        stream = services.EmbedStub(channel).EmbedStream(requests, metadata=METADATA)
        assert same([answer.embeddings for answer in stream], engine, "search_document", texts)

    @shows(PACKAGE, "TEI's `Info`, `Tokenize`, `Decode`")
    def test_others(self, stubs: Any, channel: grpc.Channel, engine: FakeEngine) -> None:
        """The model, and its tokens."""
        messages, services = stubs("client_tei")
        info = services.InfoStub(channel).Info(messages.InfoRequest(), metadata=METADATA)
        assert (info.model_id, info.max_input_length) == ("nomic-ai/nomic-embed-text-v1.5", 8192)
        stub = services.TokenizeStub(channel)
        request = messages.EncodeRequest(inputs="the sky", add_special_tokens=True)
        tokens = stub.Tokenize(request, metadata=METADATA).tokens
        assert [token.id for token in tokens] == list(
            engine.tokenize(["the sky"], "search_document: ")[0].ids
        )
        request = messages.DecodeRequest(ids=[1, 7, 2], skip_special_tokens=True)
        assert stub.Decode(request, metadata=METADATA).text == "7"

    @shows(PACKAGE, "Encoderfile's `Predict`: many texts, `metadata` comes back")
    def test_encoderfile(self, stubs: Any, channel: grpc.Channel, engine: FakeEngine) -> None:
        """The model by the call's metadata, the default one without."""
        messages, services = stubs("client_encoderfile")
        stub = services.SentenceEmbeddingInferenceStub(channel)
        request = messages.SentenceEmbeddingRequest(inputs=TEXTS, metadata={"run": "7"})
        answer = stub.Predict(request, metadata=METADATA)
        vectors = [result.embedding for result in answer.results]
        assert same(vectors, engine, "search_document", TEXTS)
        assert (answer.model_id, dict(answer.metadata)) == (MODEL, {"run": "7"})
        answer = stub.Predict(request, metadata=(*METADATA, ("model", MINILM.id)))
        assert (answer.model_id, len(answer.results[0].embedding)) == (MINILM.id, 384)


class TestTriton:
    """NVIDIA's client, as NIM's users have it."""

    PACKAGE = "tritonclient"
    HEADERS: ClassVar = dict(METADATA)

    def tensor(self, module: Any) -> Any:
        """The texts as a tensor."""
        texts = np.array(TEXTS, dtype=object).reshape(-1, 1)
        tensor = module.InferInput("text", list(texts.shape), "BYTES")
        tensor.set_data_from_numpy(texts)
        return tensor

    @shows(PACKAGE, "`infer`: `input_type`, `truncate`, `dimensions`; `embeddings`, `token_count`")
    def test_infer(self, target: str, engine: FakeEngine) -> None:
        """NIM's tensors and parameters, and NIM's spelling of the model."""
        triton = pytest.importorskip("tritonclient.grpc")
        given = {"input_type": "query", "truncate": "END", "dimensions": 256}
        with triton.InferenceServerClient(target) as client:
            answer = client.infer(
                "nomic_embed_text_v1_5",
                [self.tensor(triton)],
                parameters=given,
                headers=self.HEADERS,
            )
        assert same(answer.as_numpy("embeddings"), engine, "search_query", TEXTS, 256)
        assert answer.as_numpy("token_count").dtype == np.int32

    @shows(PACKAGE, "`embedding_type`: int8 and ubinary outputs")
    def test_numbers(self, target: str, engine: FakeEngine) -> None:
        """Outputs with a datatype of their own."""
        triton = pytest.importorskip("tritonclient.grpc")
        signs = np.packbits([engine.expected(f"search_document: {text}") > 0 for text in TEXTS], 1)
        with triton.InferenceServerClient(target) as client:
            for kind, dtype, width in (("int8", np.int8, 768), ("ubinary", np.uint8, 96)):
                answer = client.infer(
                    MODEL,
                    [self.tensor(triton)],
                    parameters={"embedding_type": kind},
                    outputs=[triton.InferRequestedOutput("embeddings")],
                    headers=self.HEADERS,
                )
                found = answer.as_numpy("embeddings")
                assert (found.dtype, found.shape) == (dtype, (3, width))
                assert answer.as_numpy("token_count") is None
        assert np.array_equal(found, signs)

    @shows(PACKAGE, "`is_server_live`, `is_server_ready`, `is_model_ready`, metadata; in async too")
    async def test_async(self, target: str, engine: FakeEngine) -> None:
        """The client of `tritonclient.grpc.aio`."""
        pytest.importorskip("tritonclient.grpc")
        triton = importlib.import_module("tritonclient.grpc.aio")
        client = triton.InferenceServerClient(target)
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready(MODEL)
        model = await client.get_model_metadata(MODEL, headers=self.HEADERS)
        assert [output.name for output in model.outputs] == ["embeddings", "token_count"]
        answer = await client.infer(MODEL, [self.tensor(triton)], headers=self.HEADERS)
        assert same(answer.as_numpy("embeddings"), engine, "search_document", TEXTS)
        await client.close()


HAYSTACK = """
import json
import sys

from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.embedders import huggingface_api

url, key = sys.argv[1:]
shared = {
    "api_type": "text_embeddings_inference",
    "api_params": {"url": url},
    "token": Secret.from_token(key),
    "use_grpc": True,
    "normalize": True,
}
embedder = huggingface_api.HuggingFaceAPIDocumentEmbedder(**shared, progress_bar=False)
documents = embedder.run([Document(content=f"text {n}") for n in range(70)])["documents"]
embedder = huggingface_api.HuggingFaceAPITextEmbedder(**shared, prefix="search_query: ")
query = embedder.run("The sky is blue.")["embedding"]
print(json.dumps([[document.embedding for document in documents], query]))
"""


class TestHaystack:
    """Speaks to TEI by reflection, without any .proto."""

    PACKAGE = "huggingface-api-haystack"

    @shows(PACKAGE, "both embedders with `use_grpc=True`: 70 documents, a query with its prefix")
    def test_embedders(self, target: str, engine: FakeEngine) -> None:
        """In a process of its own: its client fills protobuf's pool of the process."""
        pytest.importorskip("grpc_requests")
        pytest.importorskip("haystack_integrations.components.embedders.huggingface_api")
        command = [sys.executable, "-W", "ignore", "-c", HAYSTACK, target, KEY]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        documents, query = json.loads(done.stdout)
        assert same(documents, engine, "search_document", [f"text {n}" for n in range(70)])
        assert same([query], engine, "search_query", TEXTS[:1])


class TestReflection:
    """Google's reflection client, which grpcurl and Postman are like."""

    PACKAGE = "grpcio-reflection"

    @shows(
        PACKAGE, "`ProtoReflectionDescriptorDatabase`: every service, and a call without a .proto"
    )
    def test_call(self, channel: grpc.Channel, engine: FakeEngine) -> None:
        """The grpcurl call of docs/grpc.md, made of what the server says of itself."""
        module = pytest.importorskip("grpc_reflection.v1alpha.proto_reflection_descriptor_database")
        database = module.ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        for name in database.get_services():
            assert pool.FindServiceByName(name).methods
        line = re.search(r"grpcurl .*-d '(.*)' \S+ (\S+)/(\S+)", PAGE.read_text("utf-8"))
        assert line
        given, service, name = line.groups()
        method = pool.FindServiceByName(service).FindMethodByName(name)
        request = json_format.ParseDict(json.loads(given), GetMessageClass(method.input_type)())
        call: Any = channel.unary_unary(f"/{service}/{name}")
        answer = GetMessageClass(method.output_type)()
        answer.ParseFromString(call(request.SerializeToString(), metadata=METADATA))
        text = json.loads(given)["inputs"]
        assert same([cast("Any", answer).embeddings], engine, "search_document", [text])
