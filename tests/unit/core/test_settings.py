"""Settings come from flags, environment and .env, and faults name the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from matryo.catalog.catalog import open_catalog
from matryo.core.errors import SettingsInvalid
from matryo.core.settings import env_example, load_settings, unknown_settings

ROOT = Path(__file__).parents[3]


def test_flags_then_environment_then_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearer source wins."""
    env = tmp_path / ".env"
    env.write_text("MATRYO_PORT=1\nMATRYO_HOST=file\nMATRYO_BATCH_MS=7\n")
    monkeypatch.setenv("MATRYO_PORT", "2")
    monkeypatch.setenv("MATRYO_HOST", "environment")
    settings = load_settings(env, port=3, host=None)
    assert (settings.port, settings.host, settings.batch_ms) == (3, "environment", 7)


def test_env_example_is_true() -> None:
    """`.env.example` is what the settings say; `make env-example` writes it."""
    assert (ROOT / ".env.example").read_text() == env_example()


def test_env_example_lists_defaults(tmp_path: Path) -> None:
    """Uncommented as it is, the example changes nothing."""
    env = tmp_path / ".env"
    env.write_text((ROOT / ".env.example").read_text().replace("#MATRYO", "MATRYO"))
    assert load_settings(env) == load_settings(None)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MATRYO_PORT", "70000", "MATRYO_PORT is '70000': Input should be less than"),
        ("MATRYO_PORT", "tcp://10.0.0.1:8080", "enableServiceLinks: false"),
        ("MATRYO_PRECISION", "fp8", "MATRYO_PRECISION is 'fp8': Input should be 'fp32'"),
        ("MATRYO_MODEL", ",", "names no model"),
    ],
)
def test_faults_name_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    """A bad value is answered with variable, value and what is allowed."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid) as caught:
        load_settings(None)
    assert message in caught.value.message


def test_faults_name_the_flag() -> None:
    """A bad flag is called by its flag's name."""
    with pytest.raises(SettingsInvalid, match="--precision is 'x'"):
        load_settings(None, precision="x")


def test_keys_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a message nor a repr quotes an API key."""
    monkeypatch.setenv("MATRYO_API_KEYS", "good,sécret")
    with pytest.raises(SettingsInvalid) as caught:
        load_settings(None)
    assert "cret" not in caught.value.message
    assert "key number 2" in caught.value.message
    monkeypatch.setenv("MATRYO_API_KEYS", "good, better ")
    settings = load_settings(None)
    assert settings.api_keys == ("good", "better")
    assert "better" not in repr(settings)


def test_aliases() -> None:
    """A bare alias stands for the default model; a pair names one; a comma alone clears them."""
    assert load_settings(None).alias_map["text-embedding-3-small"] is None
    assert load_settings(None, aliases="a=b, c").alias_map == {"a": "b", "c": None}
    assert load_settings(None, aliases=",").alias_map == {}


def test_slips_are_reported() -> None:
    """A misspelt variable is told of; Kubernetes' own are not."""
    environ = {
        "MATRYO_PRECISON": "fp32",
        "MATRYO_PORT": "1",
        "MATRYO_SERVICE_HOST": "10.0.0.1",
        "MATRYO_PORT_8080_TCP_ADDR": "10.0.0.1",
        "OTHER": "x",
    }
    (sentence,) = unknown_settings(environ)
    assert sentence.startswith("MATRYO_PRECISON is no setting")
    assert "did you mean MATRYO_PRECISION?" in sentence


def test_auto_precision() -> None:
    """int8 where the model offers it; else fp32."""
    settings = load_settings(None, precision="auto")
    offers = open_catalog(settings).manifest("all-minilm-l6-v2")
    lacks = offers.model_copy(update={"precisions": {"fp32": offers.precisions["fp32"]}})
    assert offers.precision_for(settings.precision) == "int8"
    assert lacks.precision_for(settings.precision) == "fp32"
    assert offers.precision_for(load_settings(None, precision="q8").precision) == "q8"
