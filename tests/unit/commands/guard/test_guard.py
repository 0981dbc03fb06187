"""`matryo guard` on real builds: each kind of change is told apart, and named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest

from matryo.commands.guard import sources
from matryo.core.fixed import Fixed, fix
from tests.conftest import build_tiny
from tests.contract.conftest import live_server
from tests.unit.commands.guard.conftest import Built, build, kinds_of


class TestLocal:
    """The model on this machine."""

    def test_same(self, plain: Built, record: Path) -> None:
        """Nothing was changed: one sentence, status 0, also with --strict."""
        done = plain.guard("check", record, "--strict")
        assert done.exit_code == 0
        assert done.stdout.startswith("same: these are the vectors of the index, bit for bit\n")
        assert done.stdout.count("the same bits") == 3  # document, query, none
        _, found = plain.check(record)
        assert (found["verdict"], found["causes"]) == ("same", [])
        assert found["fingerprints"][0] == found["fingerprints"][1]

    def test_same_embeds_nothing(
        self, plain: Built, record: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Digests are enough where they agree."""
        monkeypatch.setattr(sources.Local, "embed", None)
        assert plain.check(record)[1]["verdict"] == "same"

    def test_precision(self, plain: Built, record: Path) -> None:
        """Another precision is changed, although a few texts might hardly show it."""
        status, found = plain.check(record, "--precision", "int8")
        assert (status, found["verdict"], kinds_of(found)) == (1, "changed", ["precision"])
        assert (found["causes"][0]["recorded"], found["causes"][0]["found"]) == ("fp32", "int8")
        cosines = [one["cosine_min"] for one in found["vectors"]]
        assert len(cosines) == 3
        assert all(0.9 < cosine < 1 for cosine in cosines)
        words = plain.guard("check", record, "--precision", "int8").stdout
        assert "another precision: products in fp32 when recorded, int8 now" in words

    def test_recorded_precision(self, plain: Built, tmp_path: Path) -> None:
        """A check asks for the precision that the record names."""
        path = tmp_path / "int8.json"
        assert plain.guard("record", path, "--precision", "int8").exit_code == 0
        assert plain.check(path)[1]["verdict"] == "same"
        assert kinds_of(plain.check(path, "--precision", "fp32")[1]) == ["precision"]

    @pytest.mark.parametrize(
        ("options", "kinds"),
        [
            ({"noise": 1e-3}, ["weights"]),
            ({"edit": lambda text: text.replace('"search_document: "', '"passage: "')}, ["prompt"]),
            ({"edit": lambda text: text.replace("mean_pool", "cls_pool")}, ["output"]),
            ({"layer_norm": False}, ["output", "settings"]),
            ({"edit": lambda text: text.replace("rope_theta = 1000.0", "rope_theta = 2000.0")},
             ["settings"]),
            ({"noise": 1e-3, "edit": lambda text: text.replace("mean_pool", "cls_pool")},
             ["weights", "output"]),
            ({"prompts": False}, ["prompt", "prompt"]),
        ],
    )  # fmt: skip
    def test_changed(
        self, record: Path, tmp_path: Path, options: dict[str, Any], kinds: list[str]
    ) -> None:
        """A model of the same id that was changed is told by what was changed."""
        other = build(tmp_path, **options)
        status, found = other.check(record)
        assert (status, found["verdict"]) == (1, "changed")
        assert kinds_of(found) == kinds
        assert found["fingerprints"][0] != found["fingerprints"][1]

    def test_fine_tune_is_near(self, record: Path, tmp_path: Path) -> None:
        """A fine-tune whose vectors are nearly those of the index is no drift."""
        status, found = build(tmp_path, noise=1e-5).check(record)
        assert found["vectors"][0]["cosine_min"] > 0.9999
        assert (status, kinds_of(found)) == (1, ["weights"])

    def test_prompt_texts(self, record: Path, tmp_path: Path) -> None:
        """Both prompts are shown, and the other input types keep their bits."""
        other = build(tmp_path, lambda text: text.replace('"search_document: "', '"passage: "'))
        _, found = other.check(record)
        sentence = found["causes"][0]["sentence"]
        assert "'search_document: ' when recorded, 'passage: ' now" in sentence
        same = {one["recorded"]: one["same_bits"] for one in found["vectors"]}
        assert same == {"document": False, "query": True, "none": True}

    def test_other_model(self, record: Path, tmp_path: Path) -> None:
        """Another model is named as such, with its weights."""
        other = build(tmp_path, model_id="other", noise=1.0)
        status, found = other.check(record, "--model", "other")
        assert (status, found["verdict"]) == (1, "changed")
        assert kinds_of(found) == ["model", "weights"]
        assert found["vectors"][0]["cosine_min"] < 0.9

    def test_renamed(self, record: Path, tmp_path: Path) -> None:
        """The same model by another id: the same bits, and another fingerprint."""
        other = build(tmp_path, model_id="renamed")
        done = other.guard("check", record, "--model", "renamed", "--strict")
        assert (done.exit_code, done.stdout.split(":")[0]) == (0, "renamed")
        assert "another model: id tiny when recorded, renamed now" in done.stdout

    def test_kernels(self, plain: Built, record: Path, tmp_path: Path) -> None:
        """Native kernels round otherwise: a drift, which --strict does not let pass."""
        pytest.importorskip("matryo_native")
        build_tiny(plain.root, plain.model, "fp32", native=True)
        native = {"MATRYO_KERNELS": "native"}
        status, found = plain.check(record, **native)
        assert (status, found["verdict"], kinds_of(found)) == (0, "drifted", ["kernels"])
        assert found["causes"][0]["recorded"] == "ONNX Runtime"
        assert plain.check(record, "--strict", **native)[0] == 1

    def test_defaults(self, plain: Built, record: Path) -> None:
        """An index whose requests name no input type depends on the default."""
        turned = {"MATRYO_DEFAULT_INPUT_TYPE": "query"}
        status, found = plain.check(record, **turned)
        assert (status, kinds_of(found)) == (1, ["default_input_type"])
        assert found["vectors"][0]["recorded"] == "document"
        assert found["vectors"][0]["found"] == "query"
        assert found["vectors"][0]["cosine_min"] < 1

    def test_empty_prompt(self, tmp_path: Path) -> None:
        """Documents without a prompt have the vectors of `none`."""
        built = build(tmp_path, lambda text: text.replace('"search_document: "', '""'))
        path = tmp_path / "x.json"
        built.guard("record", path, "--input-type", "document")
        _, found = built.check(path)
        assert found["fingerprints"][1].split("/")[-3] == "document"
        assert [one["recorded"] for one in found["vectors"]] == ["none", "query"]
        assert kinds_of(built.check(path, MATRYO_DEFAULT_INPUT_TYPE="query")[1]) == []

    def test_named(self, plain: Built, tmp_path: Path) -> None:
        """One whose requests name one does not; a synonym is a name."""
        for number, name in enumerate(("document", "passage")):
            path = tmp_path / f"{number}.json"
            plain.guard("record", path, "--input-type", name, "--dimensions", 16)
            status, found = plain.check(path, MATRYO_DEFAULT_INPUT_TYPE="query")
            assert (status, found["verdict"], found["causes"]) == (0, "same", [])
            assert found["fingerprints"][1].endswith("/document/16/float")

    def test_first_of_several(self, plain: Built, record: Path) -> None:
        """Where several models are served, the first is asked, and no other is loaded."""
        status, found = plain.check(record, MATRYO_MODEL="tiny,not-in-the-store")
        assert (status, found["verdict"]) == (0, "same")

    def test_bundle(self, plain: Built, tmp_path: Path) -> None:
        """A bundle's own guard records what its server gives, and may give nothing else."""
        values = {"model": "tiny", "models": str(plain.model.models), "dimensions": "16"}
        path = tmp_path / "index.json"
        fix(Fixed(values, frozenset({"dimensions"}), "/opt/tiny"))
        try:
            done = plain.guard("record", path)
            assert done.exit_code == 0, done.stderr
            assert done.stdout.endswith("/document/16/float\n")
            assert plain.check(path)[1]["verdict"] == "same"
            done = plain.guard("record", tmp_path / "x.json", "--dimensions", 32)
            assert (done.exit_code, "16 only" in done.stderr) == (2, True)
        finally:
            fix(Fixed())
        assert kinds_of(plain.check(path)[1]) == ["default_dimensions"]


class TestServer:
    """A server of ours."""

    @pytest.fixture
    def served(self, plain: Built, tmp_path: Path) -> Path:
        """A record of a server on a port where another server may be later."""
        path = tmp_path / "served.json"
        with plain.serve() as live:
            done = plain.guard("record", path, "--url", f"{live.url}/v1/")
            assert done.exit_code == 0, done.stderr
            assert plain.check(path)[1]["verdict"] == "same"
        return path

    def test_record(self, plain: Built, served: Path, record: Path) -> None:
        """A server's record is that of the same model on this machine."""
        one, other = (json.loads(path.read_text("utf-8")) for path in (served, record))
        assert one.pop("asked")["url"].endswith("/v1")
        del other["asked"], one["recorded"], other["recorded"]
        assert one == other
        assert plain.check(served, "--local")[1]["verdict"] == "same"

    def test_other_server(self, plain: Built, served: Path, record: Path) -> None:
        """--url asks another server than that of the record."""
        with plain.serve("int8") as live:
            for path in (served, record):
                status, found = plain.check(path, "--url", f"{live.url}/v1")
                assert (status, kinds_of(found)) == (1, ["precision"])

    def test_default_dimensions(self, plain: Built, served: Path) -> None:
        """A server that gives fewer components unasked is no server for this index."""
        with plain.serve(dimensions=16) as live:
            status, found = plain.check(served, "--url", f"{live.url}/v1")
        assert (status, kinds_of(found)) == (1, ["default_dimensions"])
        assert (found["causes"][0]["recorded"], found["causes"][0]["found"]) == ("32", "16")

    def test_dimensions_refused(self, plain: Built, tmp_path: Path) -> None:
        """A size that the index has, and the server refuses, is named."""
        path = tmp_path / "index.json"
        with plain.serve() as live:
            plain.guard("record", path, "--url", f"{live.url}/v1", "--dimensions", 20)
        with plain.serve(strict_dimensions=True) as live:
            status, found = plain.check(path, "--url", f"{live.url}/v1")
        assert (status, kinds_of(found)) == (1, ["dimensions"])

    def test_alias(self, plain: Built, tmp_path: Path) -> None:
        """An alias that means another model now."""
        path = tmp_path / "index.json"
        other = build(tmp_path, model_id="other", noise=1.0)
        with live_server(
            [plain.engine(), other.engine()], aliases="text-embedding-3-small=tiny"
        ) as live:
            url = f"{live.url}/v1"
            done = plain.guard("record", path, "--url", url, "--model", "text-embedding-3-small")
            assert done.exit_code == 0, done.stderr
            assert plain.check(path)[1]["verdict"] == "same"
        engines = [plain.engine(), other.engine()]  # a server closes its own
        with live_server(engines, aliases="text-embedding-3-small=other") as live:
            name = ("--model", "text-embedding-3-small")
            status, found = plain.check(path, "--url", f"{live.url}/v1", *name)
            assert (status, kinds_of(found)) == (1, ["model", "weights"])
            # A server of another URL need not know the alias: it is asked for the model's id.
            assert plain.check(path, "--url", f"{live.url}/v1")[1]["verdict"] == "same"

    def test_same_server(self, plain: Built, tmp_path: Path) -> None:
        """A URL with a slash or a password is that of the record: the alias is asked again."""
        path = tmp_path / "index.json"
        other = build(tmp_path, model_id="other", noise=1.0)
        engines = [plain.engine(), other.engine()]
        with live_server(engines, aliases="ada=other") as live:
            url = f"{live.url}/v1"
            assert plain.guard("record", path, "--url", url, "--model", "ada").exit_code == 0
            content = json.loads(path.read_text("utf-8"))
            content["asked"]["model"] = "tiny"  # what the alias means later
            path.write_text(json.dumps(content), "utf-8")
            for same in (url, f"{url}/", url.replace("//", "//user:word@") + "/"):
                assert kinds_of(plain.check(path, "--url", same)[1]) == ["model", "weights"]

    @pytest.mark.parametrize("limits", [{"max_inputs": 3}, {"max_request_tokens": 400}])
    def test_limits(
        self, plain: Built, record: Path, tmp_path: Path, limits: dict[str, int]
    ) -> None:
        """A server is asked for no more texts at a time than it takes."""
        with plain.serve("int8", **limits) as live:
            url = f"{live.url}/v1"
            done = plain.guard("record", tmp_path / "served.json", "--url", url)
            assert done.exit_code == 0, done.stderr
            assert "limits" not in json.loads((tmp_path / "served.json").read_text())["model"]
            status, found = plain.check(record, "--url", url)
        assert (status, kinds_of(found)) == (1, ["precision"])
        assert all(one["cosine_min"] for one in found["vectors"])

    def test_suffix(self, plain: Built, tmp_path: Path) -> None:
        """A model's name with a suffix names the input type."""
        path = tmp_path / "index.json"
        with plain.serve() as live:
            flags = ("--url", f"{live.url}/v1", "--model")
            assert plain.guard("record", path, *flags, "tiny-document").exit_code == 0
        with plain.serve(default_input_type="query") as live:
            flags = ("--url", f"{live.url}/v1", "--model")
            assert plain.check(path, *flags, "tiny-document")[1]["verdict"] == "same"

    def test_pin(self, plain: Built, served: Path) -> None:
        """The fingerprint of a record is a pin: a server that would give others refuses."""
        pin = json.loads(served.read_text("utf-8"))["fingerprint"]
        for precision, status in (("fp32", 200), ("int8", 412)):
            with plain.serve(precision) as live:
                answer = httpx2.post(
                    f"{live.url}/v1/embeddings",
                    json={"model": "tiny", "input": "a"},
                    headers={"x-matryo-expect-fingerprint": pin},
                )
                assert answer.status_code == status, answer.text

    def test_key(self, plain: Built, tmp_path: Path) -> None:
        """A server with keys is asked with OPENAI_API_KEY; without, nothing is checked."""
        path = tmp_path / "index.json"
        with plain.serve(api_keys="secret-of-tests") as live:
            words = ("record", path, "--url", f"{live.url}/v1")
            refused = plain.guard(*words)
            assert (refused.exit_code, path.exists()) == (2, False)
            assert "status 401" in refused.stderr
            assert plain.guard(*words, OPENAI_API_KEY="secret-of-tests").exit_code == 0
        assert "secret" not in path.read_text("utf-8")


class TestFaults:
    """What keeps a check from being made ends with status 2 and one sentence."""

    def test_exists(self, plain: Built, record: Path) -> None:
        """A record is not replaced by accident."""
        before = record.read_bytes()
        done = plain.guard("record", record)
        assert (done.exit_code, record.read_bytes()) == (2, before)
        assert "--force" in done.stderr
        assert plain.guard("record", record, "--force").exit_code == 0

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--url", "http://127.0.0.1:1/v1"), "no answer"),
            (("--url", "127.0.0.1:1"), "http://"),
            (("--url", "http://127.0.0.1:1/v1", "--local"), "one of them"),
            (("--url", "http://127.0.0.1:1/v1", "--precision", "int8"), "--precision"),
            (("--model", "nobody"), "nobody"),
            (("--precision", "int7"), "int7"),
        ],
    )
    def test_check(self, plain: Built, record: Path, words: tuple[str, ...], message: str) -> None:
        """Each says what was wrong."""
        done = plain.guard("check", record, *words)
        assert (done.exit_code, done.stdout) == (2, "")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1

    def test_wishes(self, plain: Built, tmp_path: Path) -> None:
        """What the model cannot give is not recorded."""
        for words in (("--dimensions", 33), ("--input-type", "poem")):
            done = plain.guard("record", tmp_path / "x.json", *words)
            assert done.exit_code == 2
            assert not (tmp_path / "x.json").exists()
            assert str(words[1]) in done.stderr

    def test_unwritable(self, plain: Built, tmp_path: Path) -> None:
        """A folder that is not there is named."""
        done = plain.guard("record", tmp_path / "none" / "x.json")
        assert done.exit_code == 2
        assert "none" in done.stderr
        assert done.stderr.count("\n") == 1

    def test_fault_of_ours(
        self, plain: Built, record: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not even a bug is taken for the answer 'changed'."""

        def fail(*_: object, **__: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("matryo.commands.guard.command.examine", fail)
        assert plain.guard("check", record).exit_code == 2


class TestCompare:
    """`matryo embed --compare` names causes."""

    def compare(self, built: Built, *words: object, **env: str) -> Any:
        """What the command does."""
        from click.testing import CliRunner

        from matryo.cli import main

        arguments = ["embed", built.model.id, *map(str, words)]
        return CliRunner().invoke(main, arguments, env=built.env | env)

    def test_record(self, plain: Built, record: Path) -> None:
        """A record is a target: the same verdicts, and status 1 for a change."""
        done = self.compare(plain, "--compare", record)
        assert (done.exit_code, done.stdout.split(":")[0]) == (0, "same")
        done = self.compare(plain, "--compare", record, "--json", "--precision", "int8")
        found = json.loads(done.stdout)
        assert (done.exit_code, kinds_of(found)) == (1, ["precision"])
        done = self.compare(plain, "--compare", record, "--json", "--input-type", "search_query")
        assert kinds_of(json.loads(done.stdout)) == ["input_type"]
        done = self.compare(plain, "--compare", record, "--json", "--input-type", "passage")
        assert json.loads(done.stdout)["verdict"] == "same"
        done = self.compare(plain, "--compare", record, "--json", "--dimensions", "16")
        assert kinds_of(json.loads(done.stdout)) == ["dimensions"]

    def test_record_and_input(self, plain: Built, record: Path) -> None:
        """A record has texts of its own."""
        done = self.compare(plain, "texts.txt", "--compare", record)
        assert done.exit_code == 1
        assert "texts.txt" in done.stderr

    def test_server(self, plain: Built) -> None:
        """The causes stand below the verdict of a server of ours."""
        with plain.serve("int8", default_input_type="query") as live:
            done = self.compare(plain, "--compare", f"{live.url}/v1")
            words = done.stdout.split("\n")
            assert words[-3] == "  another precision: products in fp32 here, int8 there"
            assert words[-2].startswith("  another default input type: ")
            done = self.compare(plain, "--compare", f"{live.url}/v1", "--json")
            found = json.loads(done.stdout)
            assert kinds_of(found) == ["precision", "default_input_type"]

    def test_same_server(self, plain: Built) -> None:
        """Nothing is named where nothing differs."""
        with plain.serve() as live:
            done = self.compare(plain, "--compare", f"{live.url}/v1", "--json")
        assert json.loads(done.stdout)["causes"] == []


def test_help(plain: Built) -> None:
    """Every command shows examples, and the statuses."""
    for words in ((), ("record",), ("check",)):
        text = plain.guard(*words, "--help").stdout
        assert re.search(r"Examples:\n  *matryo guard ", text)
    assert "exit status is 0" in plain.guard("check", "--help").stdout
