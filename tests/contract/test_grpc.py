"""The gRPC door, as its clients call it: each gets the vectors of the HTTP routes, bit for bit."""

from __future__ import annotations

import importlib
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import requests
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool

from matryo.engine.postprocess import FloatArray
from matryo.grpc.messages import DESCRIPTORS, FOLDER
from tests.contract.conftest import Live, live_server
from tests.contract.wire import Client, answers, field, fields_of, floats, message, strings
from tests.fakes import MINILM, FakeEngine, as_float32

EMBED, STREAM = "/tei.v1.Embed/Embed", "/tei.v1.Embed/EmbedStream"
PREDICT = "/encoderfile.sentence_embedding.SentenceEmbeddingInference/Predict"
INFER = "/inference.GRPCInferenceService/ModelInfer"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.v1{}.ServerReflection/ServerReflectionInfo"

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
TEXTS = ["The sky is blue.", "ü", "a b c " * 200, "search_query: is it?"]


@pytest.fixture
def live(engine: FakeEngine) -> Iterator[Live]:
    """A server of two models, with a port for gRPC."""
    with live_server([engine, FakeEngine(MINILM)], grpc_port=0) as server:
        yield server


@pytest.fixture
def client(live: Live) -> Iterator[Client]:
    """A client of the server."""
    with Client(live) as client:
        yield client


def over_http(live: Live, texts: list[str], **options: Any) -> FloatArray:
    """The vectors of the route `/v1/embeddings`."""
    body = {"input": texts, **options}
    answer = requests.post(f"{live.url}/v1/embeddings", json=body, timeout=30)
    return as_float32([item["embedding"] for item in answer.json()["data"]])


class TestTei:
    """TEI's services."""

    @pytest.mark.parametrize("text", TEXTS)
    def test_embed(self, live: Live, client: Client, text: str) -> None:
        """A text has the vector of the HTTP route; the answer counts characters and tokens."""
        answer = client.ask(EMBED, field(1, text))
        (vector,) = answer[1]
        assert np.array_equal(floats(vector), over_http(live, [text])[0])
        metadata = fields_of(answer[2][0])
        assert metadata[1] == [len(text)]
        assert metadata[2] == [live_tokens(live, text)]
        assert metadata[3][0] > 0

    def test_choices(self, live: Live, client: Client, engine: FakeEngine) -> None:
        """`prompt_name`, `dimensions`, `normalize` and cuts at either end mean what they say."""
        asked = message((1, "is it?"), (5, "query"), (6, 64))
        expected = over_http(live, ["is it?"], input_type="query", dimensions=64)[0]
        assert np.array_equal(floats(client.ask(EMBED, asked)[1][0]), expected)
        plain = floats(client.ask(EMBED, message((1, "a"), (3, 0)))[1][0])
        unit = over_http(live, ["a"])[0]
        length = np.linalg.norm(plain)
        assert length > 2
        assert np.allclose(plain / length, unit, atol=1e-6)
        long = " ".join(f"w{n}" for n in range(9000))
        cut = floats(client.ask(EMBED, message((1, long), (2, 1)))[1][0])
        assert np.array_equal(cut, over_http(live, [long], truncate=True)[0])
        left = floats(client.ask(EMBED, message((1, long), (2, 1), (4, 1)))[1][0])
        ids = engine.cut(engine.tokenize([long], "search_document: ")[0].ids, "end")
        assert np.array_equal(left, engine.vector(ids, 768))

    def test_as_over_http(self, live: Live, client: Client) -> None:
        """The route `/embed` and the method `Embed` take the same fields for the same vectors."""
        long = " ".join(f"w{n}" for n in range(9000))
        body = {"inputs": long, "prompt_name": "query", "dimensions": 64, "normalize": False}
        body |= {"truncate": True, "truncation_direction": "Left"}
        answer = requests.post(f"{live.url}/embed", json=body, timeout=30)
        asked = message((1, long), (2, 1), (3, 0), (4, 1), (5, "query"), (6, 64))
        vector = floats(client.ask(EMBED, asked)[1][0])
        assert np.array_equal(vector, as_float32(answer.json()[0]))

    def test_other_model(self, live: Live) -> None:
        """The metadata `model` names another served model."""
        with Client(live, model="all-minilm-l6-v2") as client:
            answer = client.ask(EMBED, field(1, "a"))
        assert np.array_equal(floats(answer[1][0]), over_http(live, ["a"], model=MINILM.id)[0])

    def test_stream(self, live: Live, client: Client) -> None:
        """A stream of a thousand texts gets its answers in order."""
        texts = [f"text {n}" for n in range(1000)]
        found = answers(client.stream(STREAM, (field(1, text) for text in texts)))
        vectors = np.stack([floats(answer[1][0]) for answer in found])
        assert np.array_equal(vectors, over_http(live, texts))

    def test_a_conversation(self, client: Client) -> None:
        """A caller that waits for each answer before it sends the next text gets every answer."""
        answered: queue.Queue[bytes] = queue.Queue()

        def texts() -> Iterator[bytes]:
            for n in range(5):
                yield field(1, f"text {n}")
                answered.get(timeout=10)

        found = 0
        for raw in client.stream(STREAM, texts()):
            answered.put(raw)
            found += 1
        assert found == 5

    def test_a_fault_ends_a_stream(self, client: Client) -> None:
        """The answers before a text that is refused arrive, then the error."""
        stream = client.stream(STREAM, [field(1, "a"), field(1, "b"), field(1, ""), field(1, "c")])
        found: list[bytes] = []
        with pytest.raises(grpc.RpcError) as error:
            found.extend(stream)
        assert len(found) == 2
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    def test_info(self, client: Client) -> None:
        """The default model and the limits."""
        info = client.ask("/tei.v1.Info/Info")
        assert info[4] == [b"nomic-ai/nomic-embed-text-v1.5"]
        assert info[6] == [b"float32"]
        assert (info[8], info[9], info[12]) == ([4096], [8192], [2048])
        assert 7 not in info  # an embedding model is number 0

    def test_tokens(self, client: Client, engine: FakeEngine) -> None:
        """Tokens have ids, texts and offsets, and ids become a text again; streams likewise."""
        asked = message((1, "hello ü"), (2, 1), (3, "query"))
        tokens = [fields_of(raw) for raw in client.ask("/tei.v1.Tokenize/Tokenize", asked)[1]]
        expected = engine.tokenize(["hello ü"], "search_query: ")[0].ids
        assert [token[1][0] for token in tokens] == list(expected)
        assert tokens[0] == {1: [1], 2: [b"[CLS]"], 3: [1]}
        assert tokens[3][2] == ["ü".encode()]
        assert (tokens[3][4], tokens[3][5]) == ([20], [22])
        streamed = answers(client.stream("/tei.v1.Tokenize/TokenizeStream", [asked] * 3))
        assert streamed == [client.ask("/tei.v1.Tokenize/Tokenize", asked)] * 3
        ids = field(1, b"".join(bytes([n]) for n in (1, 5, 6, 2)))
        assert client.ask("/tei.v1.Tokenize/Decode", ids)[1] == [b"[CLS] 5 6 [SEP]"]
        skipped = ids + field(2, 1)
        assert client.ask("/tei.v1.Tokenize/Decode", skipped)[1] == [b"5 6"]
        many = answers(client.stream("/tei.v1.Tokenize/DecodeStream", [ids, skipped]))
        assert [answer[1] for answer in many] == [[b"[CLS] 5 6 [SEP]"], [b"5 6"]]

    @pytest.mark.parametrize(
        "method", ["Embed/EmbedSparse", "Embed/EmbedAll", "Predict/Predict", "Rerank/Rerank"]
    )
    def test_what_there_is_not(self, client: Client, method: str) -> None:
        """TEI's other methods are UNIMPLEMENTED."""
        error = client.refused(f"/tei.v1.{method}", field(1, "a"))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


class TestEncoderfile:
    """Encoderfile's service."""

    def test_predict(self, live: Live, client: Client) -> None:
        """Many texts a call; `metadata` comes back as it was sent."""
        pair = message((1, "run"), (2, "7"))
        answer = client.ask(PREDICT, message(*((1, text) for text in TEXTS), (3, pair)))
        vectors = np.stack([floats(fields_of(raw)[1][0]) for raw in answer[1]])
        assert np.array_equal(vectors, over_http(live, TEXTS))
        assert answer[2] == [b"nomic-embed-text-v1.5"]
        assert answer[3] == [pair]

    def test_metadata(self, client: Client) -> None:
        """The model is one of sentence embeddings."""
        answer = client.ask(PREDICT.replace("Predict", "GetModelMetadata"))
        assert answer == {1: [b"nomic-embed-text-v1.5"], 2: [4]}


def tensor(name: str, *shape: int, datatype: str = "BYTES", contents: bytes = b"") -> bytes:
    """An input tensor."""
    sizes = b"".join(bytes([size]) for size in shape)
    fields: list[tuple[int, str | bytes]] = [(1, name), (2, datatype), (3, sizes)]
    return message(*fields, *([(5, contents)] if contents else []))


def parameter(name: str, value: str | int) -> bytes:
    """A parameter of a request."""
    return message((1, name), (2, field(2 if isinstance(value, int) else 3, value)))


class TestInference:
    """The Open Inference Protocol with NIM's tensors."""

    def test_raw(self, live: Live, client: Client) -> None:
        """Raw contents in, raw contents out: vectors, and the tokens of each text."""
        asked = message(
            (1, "nomic_embed_text_v1_5"),
            (3, "id-1"),
            (4, parameter("input_type", "query")),
            (4, parameter("dimensions", 64)),
            (4, parameter("truncate", "END")),
            (5, tensor("text", len(TEXTS), 1)),
            (7, strings(*TEXTS)),
        )
        answer = client.ask(INFER, asked)
        assert answer[1] == [b"nomic_embed_text_v1_5"]
        assert answer[3] == [b"id-1"]
        outputs = [fields_of(raw) for raw in answer[5]]
        assert [output[1] for output in outputs] == [[b"embeddings"], [b"token_count"]]
        assert [output[2] for output in outputs] == [[b"FP32"], [b"INT32"]]
        assert list(outputs[0][3][0]) == [len(TEXTS), 64]
        vectors = floats(answer[6][0]).reshape(len(TEXTS), 64)
        assert np.array_equal(vectors, over_http(live, TEXTS, input_type="query", dimensions=64))
        counts = np.frombuffer(answer[6][1], "<i4")
        assert list(counts) == [live_tokens(live, text, input_type="query") for text in TEXTS]

    def test_contents(self, live: Live, client: Client) -> None:
        """Contents of any BYTES tensor, one output asked for, numbers of another type."""
        contents = message(*((8, text) for text in TEXTS))
        asked = message(
            (1, "nomic-embed-text-v1.5"),
            (4, parameter("embedding_type", "int8")),
            (5, tensor("input-0", len(TEXTS), contents=contents)),
            (6, field(1, "embeddings")),
        )
        answer = client.ask(INFER, asked)
        (output,) = answer[5]
        assert fields_of(output)[2] == [b"INT8"]
        found = np.frombuffer(answer[6][0], np.int8).reshape(len(TEXTS), -1)
        assert np.array_equal(found, over_http(live, TEXTS, embedding_type="int8"))

    def test_tritonclient(self, live: Live, client: Client) -> None:
        """NVIDIA's client: liveness, readiness, metadata, vectors."""
        triton: Any = importlib.import_module("tritonclient.grpc")
        with triton.InferenceServerClient(f"127.0.0.1:{client.port}") as server:
            assert server.is_server_live()
            assert server.is_server_ready()
            assert server.is_model_ready("nomic_embed_text_v1_5")
            assert not server.is_model_ready("another")
            assert server.get_server_metadata().name == "matryo"
            model = server.get_model_metadata("nomic-embed-text-v1.5")
            assert [list(output.shape) for output in model.outputs] == [[-1, 768], [-1]]
            text = triton.InferInput("text", [len(TEXTS), 1], "BYTES")
            text.set_data_from_numpy(np.array(TEXTS, dtype=object).reshape(-1, 1))
            kind = triton.InferInput("modality", [len(TEXTS), 1], "BYTES")
            kind.set_data_from_numpy(np.array([["text"]] * len(TEXTS), dtype=object))
            given = {"input_type": "passage", "truncate": "NONE", "embedding_type": "float"}
            result = server.infer("nomic_embed_text_v1_5", [text, kind], parameters=given)
        assert np.array_equal(result.as_numpy("embeddings"), over_http(live, TEXTS))
        assert result.as_numpy("token_count").dtype == np.int32

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ([], "0 tensors"),
            ([(5, tensor("text", 1)), (5, tensor("b", 1))], "2 tensors"),
            ([(5, tensor("text", 1)), (5, tensor("text", 1))], "one name"),
            ([(5, tensor("text", 1, datatype="FP32"))], "Send BYTES"),
            ([(5, tensor("text", 2, 2)), (7, strings(*"abcd"))], "shape"),
            ([(5, tensor("text", 0)), (7, b"")], "shape"),
            ([(5, tensor("text", 2)), (7, strings("a"))], "elements"),
            ([(5, tensor("text", 1)), (7, strings("a", "b"))], "elements"),
            ([(5, tensor("text", 1)), (7, b"\xff\xff\xff\xff")], "elements"),
            ([(5, tensor("text", 1)), (7, strings("a")), (7, b"")], "raw_input_contents"),
            ([(5, tensor("text", 1)), (7, b"\x01\0\0\0\xff")], "UTF-8"),
            ([(5, tensor("text", 1)), (7, strings(""))], "empty"),
            ([(2, "2"), (5, tensor("text", 1)), (7, strings("a"))], "version"),
            ([(4, parameter("truncate", "middle"))], "none, end, start"),
            ([(4, parameter("dimensions", 0))], "at least 1"),
            ([(4, parameter("dimensions", "64"))], "integer"),
            ([(4, parameter("dimension", 64))], "Unknown parameter"),
            ([(4, parameter("input_type", 5))], "Send a string"),
            ([(6, field(1, "logits"))], "embeddings and token_count"),
            ([(5, tensor("text", 1)), (5, tensor("modality", 1)), (7, strings("a")),
              (7, strings("image"))], "'text' alone"),
        ],
    )  # fmt: skip
    def test_refused(self, client: Client, fields: list[tuple[int, Any]], says: str) -> None:
        """A request that does not fit is INVALID_ARGUMENT, in words."""
        error = client.refused(INFER, message(*fields))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert says in error.details()

    def test_unknown_model(self, client: Client) -> None:
        """A model that is not served is NOT_FOUND."""
        error = client.refused(INFER, field(1, "another"))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "nomic-embed-text-v1.5" in error.details()


class TestHealth:
    """gRPC's health protocol tells the truth."""

    @pytest.mark.parametrize("name", ["", "tei.v1.Embed", "nomic-embed-text-v1.5", MINILM.id])
    def test_serving(self, client: Client, name: str) -> None:
        """The server, its services and its models are SERVING."""
        assert client.ask(CHECK, field(1, name)) == {1: [SERVING]}

    def test_unknown(self, client: Client) -> None:
        """Another name is NOT_FOUND, or SERVICE_UNKNOWN to a watch."""
        assert client.refused(CHECK, field(1, "x")).code() is grpc.StatusCode.NOT_FOUND
        watch = client.channel.unary_stream(WATCH)(field(1, "x"), timeout=30)
        assert fields_of(next(watch)) == {1: [SERVICE_UNKNOWN]}
        watch.cancel()

    def test_a_model_that_fails(self, live: Live, client: Client, engine: FakeEngine) -> None:
        """A model whose runs fail is NOT_SERVING until it runs again; the other is SERVING."""

        def fail(_: object) -> None:
            raise ValueError("broken")

        watch = client.channel.unary_stream(WATCH)(field(1, engine.manifest.id), timeout=30)
        assert fields_of(next(watch)) == {1: [SERVING]}
        engine.before = fail
        client.refused(EMBED, field(1, "a"))
        assert fields_of(next(watch)) == {1: [NOT_SERVING]}
        assert client.ask(CHECK) == {1: [NOT_SERVING]}
        assert client.ask(CHECK, field(1, MINILM.id)) == {1: [SERVING]}
        ready = "/inference.GRPCInferenceService/ModelReady"
        assert client.ask(ready, field(1, engine.manifest.id)) == {}
        assert client.ask(ready, field(1, MINILM.id)) == {1: [1]}
        engine.before = lambda _: None
        assert fields_of(next(watch)) == {1: [SERVING]}
        watch.cancel()


class TestReflection:
    """A client without any .proto finds the services."""

    @pytest.mark.parametrize("version", ["", "alpha"])
    def test_services(self, client: Client, version: str) -> None:
        """Every service is listed, and each can be described with all of its messages."""
        path = REFLECT.format(version)
        (answer,) = answers(client.stream(path, [field(7, "")]))
        listed = [fields_of(raw)[1][0].decode() for raw in fields_of(answer[6][0])[1]]
        assert {"tei.v1.Embed", "inference.GRPCInferenceService", "grpc.health.v1.Health"} < set(
            listed
        )
        for service in listed:
            (found,) = answers(client.stream(path, [field(4, service)]))
            pool = DescriptorPool()
            files = [
                descriptor_pb2.FileDescriptorProto.FromString(raw)
                for raw in fields_of(found[4][0])[1]
            ]
            for file in sorted(files, key=lambda file: len(file.dependency)):
                pool.Add(file)
            assert pool.FindServiceByName(service).methods

    def test_call_without_a_proto(self, live: Live, client: Client) -> None:
        """A call is made of what reflection says of its messages."""
        symbol = "tei.v1.Embed.Embed"
        (found,) = answers(client.stream(REFLECT.format(""), [field(4, symbol)]))
        (raw,) = fields_of(found[4][0])[1]
        file = descriptor_pb2.FileDescriptorProto.FromString(raw)
        kinds = {kind.name: kind for kind in file.message_type}
        (inputs,) = [one.number for one in kinds["EmbedRequest"].field if one.name == "inputs"]
        answer = client.ask(EMBED, field(inputs, "a"))
        assert np.array_equal(floats(answer[1][0]), over_http(live, ["a"])[0])

    @pytest.mark.parametrize("asked", [field(4, "no.Such"), field(3, "no.proto"), b""])
    def test_unknown(self, client: Client, asked: bytes) -> None:
        """What there is not is answered with an error, and the stream goes on."""
        first, second = answers(client.stream(REFLECT.format(""), [asked, field(7, "")]))
        assert fields_of(first[7][0])[1] == [5]
        assert 6 in second


def live_tokens(live: Live, text: str, **options: Any) -> int:
    """Tokens of a text, as the HTTP route counts them."""
    body = {"input": text, **options}
    answer = requests.post(f"{live.url}/v1/embeddings", json=body, timeout=30)
    return answer.json()["usage"]["prompt_tokens"]


def test_descriptors_are_those_of_the_protos(tmp_path: Path) -> None:
    """The committed descriptors are what protoc makes of the .proto files beside them."""
    made = tmp_path / "made"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{FOLDER}"]
    protos = sorted(str(path) for path in FOLDER.glob("*.proto"))
    subprocess.run([*command, f"--descriptor_set_out={made}", *protos], check=True)
    expected, found = (
        descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
        for path in (made, DESCRIPTORS)
    )
    assert found == expected
