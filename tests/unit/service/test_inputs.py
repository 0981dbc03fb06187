"""Names, input types, prefixes and sizes, as a caller and an operator choose them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from prometheus_client import CollectorRegistry

from matryo.catalog.manifest import Manifest
from matryo.core.errors import (
    BadDimensions,
    ContextTooLong,
    InvalidRequest,
    SettingsInvalid,
    TooManyTokens,
    UnknownModel,
)
from matryo.core.metrics import Metrics
from matryo.service import Options, Texts
from matryo.service.choices import Defaults, choose
from matryo.service.directory import Directory
from matryo.service.limits import RequestLimits
from matryo.service.text_pool import TextPool
from matryo.service.tokenize import tokenize
from tests.fakes import MINILM, NOMIC, FakeEngine

ENGINES = (FakeEngine(NOMIC), FakeEngine(MINILM))
DIRECTORY = Directory(ENGINES, {"text-embedding-3-small": None, "mini": "all-minilm"})


@asynccontextmanager
async def a_pool() -> AsyncGenerator[TextPool]:
    """Threads to tokenise on."""
    pool = TextPool(1, Metrics(CollectorRegistry()))
    yield pool
    await pool.close()


def without_cuts(manifest: Manifest) -> Manifest:
    """The manifest of a model that forbids other sizes."""
    sizes = manifest.output.dimensions.model_copy(update={"cut": False})
    output = manifest.output.model_copy(update={"dimensions": sizes})
    return manifest.model_copy(update={"output": output})


@pytest.mark.parametrize(
    ("name", "model_id", "input_type"),
    [
        (None, NOMIC.id, None),
        ("nomic-embed-text-v1.5", NOMIC.id, None),
        ("nomic-ai/nomic-embed-text-v1.5", NOMIC.id, None),
        ("text-embedding-3-small", NOMIC.id, None),
        ("all-minilm-l6-v2", MINILM.id, None),
        ("mini", MINILM.id, None),
        ("nomic-embed-text-v1.5-query", NOMIC.id, "query"),
        ("text-embedding-3-small-passage", NOMIC.id, "document"),
        ("mini-document", MINILM.id, "document"),
        ("nomic-embed-text-v1.5-clustering", NOMIC.id, "clustering"),
        ("nomic-embed-text-v1.5-search_query", NOMIC.id, "query"),
    ],
)
def test_names(name: str | None, model_id: str, input_type: str | None) -> None:
    """Ids, aliases of either kind, and suffixes on any of them."""
    engine, suffix = DIRECTORY.resolve(name)
    assert (engine.manifest.id, suffix) == (model_id, input_type)


@pytest.mark.parametrize(
    "name", ["", "gpt-4", "-query", "nomic-embed-text-v1.5-colour", "nomic-embed-text-v1.5-"]
)
def test_unknown_names(name: str) -> None:
    """What nothing serves is a 404 that lists what is served."""
    with pytest.raises(UnknownModel, match="all-minilm-l6-v2") as caught:
        DIRECTORY.resolve(name)
    assert caught.value.code == "model_not_found"


def test_an_alias_for_nothing_is_a_bad_setting() -> None:
    """The operator hears of it at start-up, not the first caller."""
    with pytest.raises(SettingsInvalid, match="maps 'a' to 'b', which is not served"):
        Directory(ENGINES, {"a": "b"})


def test_a_long_name_costs_nothing() -> None:
    """A name longer than any model's is refused unread, however many suffixes it seems to have."""
    looked_up: list[object] = []

    class Spied(dict[str, object]):
        def __contains__(self, key: object) -> bool:
            looked_up.append(key)
            return super().__contains__(key)

    directory = Directory(ENGINES, {})
    directory._by_name = Spied(directory._by_name)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UnknownModel) as caught:
        directory.resolve("-" * 100_000)
    assert not looked_up
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "document"),
        ({"input_type": "query"}, "query"),
        ({"input_type": "search_query"}, "query"),
        ({"input_type": "passage"}, "document"),
        ({"input_type": "search_document"}, "document"),
        ({"input_type": "clustering"}, "clustering"),
        ({"input_type": "none"}, "none"),
        ({"model": "nomic-embed-text-query"}, "query"),
        ({"model": "nomic-embed-text-query", "input_type": "document"}, "document"),
    ],
)
def test_input_types(fields: dict[str, Any], expected: str) -> None:
    """Field, then suffix, then the operator's default; with the field's synonyms."""
    assert choose(Options(**fields), DIRECTORY, Defaults()).input_type == expected


def test_default_input_type() -> None:
    """The operator may turn unmarked texts into queries; who says, wins."""
    defaults = Defaults(input_type="query")
    assert choose(Options(), DIRECTORY, defaults).input_type == "query"
    assert choose(Options(input_type="document"), DIRECTORY, defaults).input_type == "document"


def test_input_type_the_model_was_not_trained_for() -> None:
    """It is refused, with those it was; a default meant for another model is not."""
    prompts = {name: text for name, text in NOMIC.prompts.items() if name != "clustering"}
    engine = FakeEngine(NOMIC.model_copy(update={"prompts": prompts}))
    directory = Directory([engine], {})
    with pytest.raises(InvalidRequest, match="knows: query, document, classification, none"):
        choose(Options(input_type="clustering"), directory, Defaults())
    assert choose(Options(), directory, Defaults(input_type="clustering")).input_type == "document"


@pytest.mark.parametrize(
    "fields", [{"input_type": "document"}, {"model": "nomic-embed-text-v1.5-document"}]
)
def test_locked_input_type(fields: dict[str, Any]) -> None:
    """A locked input type may be named or left out; another one is refused."""
    defaults = Defaults(input_type="query", locked=frozenset(("input_type",)))
    assert choose(Options(), DIRECTORY, defaults).input_type == "query"
    assert choose(Options(input_type="search_query"), DIRECTORY, defaults).input_type == "query"
    with pytest.raises(InvalidRequest, match="This server embeds 'query' only") as raised:
        choose(Options(**fields), DIRECTORY, defaults)
    assert raised.value.param == "input_type"


def test_locked_dimensions() -> None:
    """A locked size may be named or left out; another one is refused."""
    defaults = Defaults(dimensions=256, locked=frozenset(("dimensions",)))
    assert choose(Options(), DIRECTORY, defaults).dimensions == 256
    assert choose(Options(dimensions=256), DIRECTORY, defaults).dimensions == 256
    with pytest.raises(BadDimensions, match=r"512\. This server gives 256 only"):
        choose(Options(dimensions=512), DIRECTORY, defaults)


class TestDimensions:
    """Any size from 1 to native; the manifest and the operator may narrow it."""

    @pytest.mark.parametrize("size", [768, 512, 64])
    def test_trained(self, size: int) -> None:
        """Trained sizes come without comment."""
        choices = choose(Options(dimensions=size), DIRECTORY, Defaults())
        assert (choices.dimensions, choices.warnings) == (size, ())

    def test_untrained(self) -> None:
        """Others come with a warning, or not at all where the operator is strict."""
        choices = choose(Options(dimensions=100), DIRECTORY, Defaults())
        assert choices.dimensions == 100
        assert len(choices.warnings) == 1
        assert "768, 512, 256, 128, 64" in choices.warnings[0]
        with pytest.raises(BadDimensions, match="768, 512, 256, 128, 64"):
            choose(Options(dimensions=100), DIRECTORY, Defaults(strict_dimensions=True))

    def test_too_many(self) -> None:
        """More than native is refused with the range."""
        with pytest.raises(BadDimensions, match=r"769.*1 to 768"):
            choose(Options(dimensions=769), DIRECTORY, Defaults())

    def test_default(self) -> None:
        """The operator's default size holds for requests that name none."""
        defaults = Defaults(dimensions=256)
        assert choose(Options(), DIRECTORY, defaults).dimensions == 256
        assert choose(Options(dimensions=64), DIRECTORY, defaults).dimensions == 64

    def test_forbidden(self) -> None:
        """A model that may not be cut says so in OpenAI's words."""
        directory = Directory([FakeEngine(without_cuts(NOMIC))], {})
        with pytest.raises(BadDimensions, match="does not support specifying dimensions"):
            choose(Options(dimensions=256), directory, Defaults())
        assert choose(Options(dimensions=768), directory, Defaults()).dimensions == 768


class TestTokenize:
    """Limits hold for the model's own tokens, prefix and special ones included."""

    def texts(self, *n_words: int) -> Texts:
        """Texts of so many words each; the fake engine makes two tokens more."""
        return Texts([" ".join(["w"] * n) for n in n_words])

    async def run(
        self, texts: Texts, *, max_tokens: int | None = 300_000, truncate: bool = False
    ) -> Any:
        """Tokenise for MiniLM, whose limit is 512."""
        choices = choose(Options(model="all-minilm-l6-v2"), DIRECTORY, Defaults())
        limits = RequestLimits(max_tokens=max_tokens)
        async with a_pool() as pool:
            return await tokenize(texts, choices, truncate=truncate, pool=pool, limits=limits)

    async def test_counts(self) -> None:
        """Every token counts, padding does not exist here."""
        tokenized = await self.run(self.texts(3, 510, 0))
        assert (tokenized.n_tokens, tokenized.truncated) == (5 + 512 + 2, ())

    async def test_too_long_names_the_index(self) -> None:
        """The index in the list, the count, the limit and the remedy are all there."""
        with pytest.raises(ContextTooLong) as caught:
            await self.run(self.texts(*[1] * 200, 511))
        message = caught.value.message
        assert message.startswith("Invalid 'input[200]': maximum input length is 512 tokens.")
        assert "however you requested 513 tokens" in message
        assert '"truncate": true' in message

    async def test_too_long_alone(self) -> None:
        """A bare string has no index."""
        with pytest.raises(ContextTooLong, match="Invalid 'input': maximum"):
            await self.run(Texts(["w " * 600], is_list=False))

    async def test_positions_of_the_source(self) -> None:
        """A text that came from somewhere else is named by its position there."""
        texts = Texts(["w", "w " * 600, "w " * 600], positions=[7, 9, 12])
        with pytest.raises(ContextTooLong) as caught:
            await self.run(texts)
        assert caught.value.index == 9
        assert (await self.run(texts, truncate=True)).truncated == (9, 12)

    async def test_truncate(self) -> None:
        """Asked for, a text is cut to the limit, and counted as cut."""
        tokenized = await self.run(self.texts(600, 5), truncate=True)
        assert [len(ids) for ids in tokenized.ids] == [512, 7]
        assert (tokenized.n_tokens, tokenized.truncated) == (519, (0,))

    async def test_too_many_tokens_in_all(self) -> None:
        """The request's limit stops the work early, and the count says so."""
        with pytest.raises(TooManyTokens, match="Requested 1030 tokens, max 1000"):
            await self.run(self.texts(*[101] * 10), max_tokens=1000)
        ENGINES[1].seen.clear()
        with pytest.raises(TooManyTokens, match="at least"):
            await self.run(self.texts(*[500] * 2000), max_tokens=1000)
        assert len(ENGINES[1].seen) < 200

    @pytest.mark.parametrize("text", [" " * 200_000, "w" * 200_000])
    async def test_more_characters_than_are_read(self, text: str) -> None:
        """A text of few tokens and too many characters is refused by its characters, or cut."""
        with pytest.raises(ContextTooLong) as caught:
            await self.run(Texts(["w", text]))
        message = caught.value.message
        assert message.startswith("Invalid 'input[1]': maximum input length is 98304 characters")
        assert "maximum context length is 512 tokens" in message
        assert '"truncate": true' in message
        tokenized = await self.run(Texts(["w", text]), truncate=True)
        assert tokenized.truncated == (1,)
        assert len(ENGINES[1].seen[-1]) == 98304

    async def test_pieces(self) -> None:
        """No piece has more than 128 texts, or more than 32,768 characters if it has several."""
        for texts in (self.texts(*[1] * 300), self.texts(*[400] * 200), self.texts(9000, 3, 9000)):
            pieces: list[int] = []
            engine = FakeEngine(MINILM)
            engine.on_tokenize = lambda strings, pieces=pieces: pieces.append(
                sum(map(len, strings)) if len(strings) > 1 else len(strings)
            )
            choices = choose(Options(), Directory([engine], {}), Defaults())
            async with a_pool() as pool:
                await tokenize(texts, choices, truncate=True, pool=pool, limits=RequestLimits())
            assert len(pieces) > 1
            assert max(pieces) <= 1 << 15

    async def test_prefix_counts(self) -> None:
        """The prefix is part of the text the model reads."""
        choices = choose(Options(input_type="query"), DIRECTORY, Defaults())
        async with a_pool() as pool:
            tokenized = await tokenize(
                Texts(["a b"], is_list=False),
                choices,
                truncate=False,
                pool=pool,
                limits=RequestLimits(),
            )
        assert tokenized.n_tokens == len(["CLS", "search_query:", "a", "b", "SEP"])


class TestOneModelAName:
    """A name means one model: what another model is called is no name for this one."""

    OTHERS: ClassVar[dict[str, str]] = {
        "nomic-embed-text-v1": "nomic-embed-text-v1",
        "nomic-ai/nomic-embed-text-v1": "nomic-embed-text-v1",
    }

    @pytest.mark.parametrize(
        ("alias", "target"),
        [
            ("all-minilm-l6-v2", None),
            ("All-MiniLM-L6-v2", "nomic-embed-text-v1.5"),
            ("nomic-embed-text-v1", None),
            ("nomic-embed-text:v1", None),
            ("nomic-ai/nomic-embed-text-v1", "all-minilm-l6-v2"),
            ("text-embedding-nomic-embed-text-v1", None),
        ],
    )
    def test_an_alias_that_is_another_models_name(self, alias: str, target: str | None) -> None:
        """Served or only known, the other model keeps its name in every spelling."""
        with pytest.raises(SettingsInvalid, match=r"a name of .*, another model"):
            Directory(ENGINES, {alias: target}, self.OTHERS)

    def test_an_alias_that_is_the_models_own_name(self) -> None:
        """To say what is so already is no fault."""
        directory = Directory(ENGINES, {"all-minilm": "all-minilm-l6-v2"}, self.OTHERS)
        assert directory.resolve("all-minilm")[0] is ENGINES[1]

    def test_two_models_of_one_name(self) -> None:
        """Copied aliases in a model.toml of one's own are found at the start."""
        own = FakeEngine(NOMIC.model_copy(update={"id": "my-tune"}))
        with pytest.raises(
            SettingsInvalid, match=r"a name of both nomic-embed-text-v1\.5 and my-tune"
        ):
            Directory([FakeEngine(NOMIC), own], {})
        names = dict.fromkeys(NOMIC.aliases, NOMIC.id)
        with pytest.raises(SettingsInvalid, match="take it out of aliases"):
            Directory([own], {}, names)
