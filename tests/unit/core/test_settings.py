"""Settings come from flags, environment and .env, and faults name the variable."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from matryo.catalog.catalog import open_catalog
from matryo.cli import main
from matryo.core.environment import env_example, load_settings
from matryo.core.errors import SettingsInvalid
from matryo.core.settings import OPENAI_NAMES, Settings

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
        ("MATRYO_PORT", "70000", "MATRYO_PORT is '70000', but must be a whole number"),
        ("MATRYO_PORT", "tcp://10.0.0.1:8080", "enableServiceLinks: false"),
        ("MATRYO_PRECISION", "fp8", "MATRYO_PRECISION is 'fp8', but must be one of fp32, int8"),
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
    """A bare alias stands for the default model, a pair names one; OpenAI's stay unless dropped."""
    assert load_settings(None).alias_map["text-embedding-3-small"] is None
    openai = dict.fromkeys(OPENAI_NAMES)
    assert load_settings(None, aliases="a=b, c").alias_map == openai | {"a": "b", "c": None}
    dropped = load_settings(None, aliases=f"-{OPENAI_NAMES[0]}, {OPENAI_NAMES[1]}=b").alias_map
    assert dropped == {OPENAI_NAMES[1]: "b", OPENAI_NAMES[2]: None}
    assert load_settings(None, aliases=",").alias_map == openai


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MATRYO_API_KEY", "MATRYO_API_KEYS"),
        ("MATRYO_APIKEYS", "MATRYO_API_KEYS"),
        ("MATRYO_KEY", "MATRYO_KEYS"),
        ("MATRYO_SECRET", "MATRYO_API_KEYS"),
        ("matryo_api_key", "MATRYO_API_KEYS"),
        ("MATRYO_PRECISON", "MATRYO_PRECISION"),
        ("MATRYO_DIMENSION", "MATRYO_DIMENSIONS"),
        ("MATRYO_DIM", "MATRYO_DIMENSIONS"),
        ("MATRYO_MODEL_NAME", "MATRYO_MODEL"),
    ],
)
def test_slips_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    """A name near a setting's is refused, in the environment and in `.env`, value or none."""
    env = tmp_path / ".env"
    for value in ("x", ""):
        env.write_text(f"{name}={value}\n")
        with pytest.raises(SettingsInvalid, match=rf"in .*\.env is no setting.*{meant}\?"):
            load_settings(env)
    monkeypatch.setenv(name, "x")
    with pytest.raises(SettingsInvalid, match=rf"{name.upper()} is no setting.*{meant}\?"):
        load_settings(None)


def test_other_names_are_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A name like no setting's is a warning; Kubernetes' and matryo-native's own are nothing."""
    for name, value in {
        "MATRYO_VERSION": "1",
        "MATRYO_IMAGE": "x",
        "MATRYO_NATIVE_ISA": "avx2",
        "MATRYO_SERVICE_HOST": "10.0.0.1",
        "MATRYO_SERVICE_PORT_HTTP": "80",
        "MATRYO_PORT_8080_TCP_ADDR": "10.0.0.1",
        "MATRYO_API_PORT": "tcp://10.0.0.1:80",
        "MATRYO_API_SERVICE_HOST": "10.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    load_settings(None)
    assert caplog.messages == [
        "MATRYO_IMAGE is no setting and is ignored",
        "MATRYO_VERSION is no setting and is ignored",
    ]


@pytest.mark.parametrize("value", [",", "a,", ",a", "a,,b", " ", '""', "''", '"a', "a'", "' '"])
def test_keys_meant_are_never_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """A value that was to hold keys and holds an empty one is refused; only empty means open."""
    monkeypatch.setenv("MATRYO_API_KEYS", value)
    with pytest.raises(
        SettingsInvalid, match=r"^MATRYO_API_KEYS has |^MATRYO_API_KEYS is "
    ) as caught:
        load_settings(None)
    assert "\n" not in caught.value.message
    monkeypatch.setenv("MATRYO_API_KEYS", "")
    assert load_settings(None).api_keys == ()
    env = tmp_path / ".env"
    env.write_text("MATRYO_API_KEYS=${NOBODY_SET_THIS}\n")
    with pytest.raises(SettingsInvalid, match="variables that have no value"):
        load_settings(env)


@pytest.mark.parametrize(
    "value", ['"sk-a,sk-b"', "'sk-a,sk-b'", '"sk-a","sk-b"', "'sk-a', \"sk-b\"", " sk-a , sk-b "]
)
def test_quotes_are_no_part_of_a_value(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Quotes that Docker's env files leave around a value, or around each word, are removed."""
    monkeypatch.setenv("MATRYO_API_KEYS", value)
    monkeypatch.setenv("MATRYO_MODEL", '"x"')
    monkeypatch.setenv("MATRYO_PORT", "'1'")
    monkeypatch.setenv("MATRYO_PRECISION", ' "INT8" ')
    settings = load_settings(None)
    assert settings.api_keys == ("sk-a", "sk-b")
    assert (settings.model, settings.port, settings.precision) == (("x",), 1, "int8")


def test_no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a home folder the store has to be named, and nothing else is missing."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(SettingsInvalid, match=r"^MATRYO_HOME is '~/.cache/matryo', but this user"):
        load_settings(None)
    with pytest.raises(SettingsInvalid, match=r"^--models is '~/models', but this user"):
        load_settings(None, home=str(tmp_path), models="~/models")
    assert load_settings(None, home=str(tmp_path)).home == tmp_path


def test_home_that_is_no_folder(tmp_path: Path) -> None:
    """A file or a broken link as the store is refused by name."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(SettingsInvalid, match=r"--home is '.*file', which is no folder"):
        load_settings(None, home=str(tmp_path / "file"))
    with pytest.raises(SettingsInvalid, match=r"--home is '.*link', a link to nothing"):
        load_settings(None, home=str(tmp_path / "link"))


ODD = ["garbage", "", " ", "x" * 5000, "ä€😀", "-1", "1" * 400, "nan", "inf", "1e9", ",", "=", "\t"]
STRANGE = ["\udcff", '"', "~nobody/x", "/dev/null", "/proc/1/root/x", "true", "0"]


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_odd_values_never_crash(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Any command takes any value of any setting, or refuses it in one line with exit status 1."""
    variable = f"MATRYO_{name.upper()}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MATRYO_HOME", str(tmp_path / "home"))
    for value in (*ODD, *STRANGE):
        monkeypatch.setenv(variable, value)
        done = CliRunner().invoke(main, ["models"], catch_exceptions=False)
        if done.exit_code:
            assert done.exit_code == 1, value
            assert done.stderr.startswith(("matryo: ", f"{variable} ")), (value, done.stderr)
            assert done.stderr.count("\n") == 1, (value, done.stderr)
            assert variable in done.stderr, (value, done.stderr)
            assert len(done.stderr) < 600
        if name == "api_keys" and value:
            assert value not in done.stderr or len(value) == 1


@given(
    name=st.sampled_from(sorted(Settings.model_fields)),
    value=st.text(st.characters(exclude_characters="\0")),
)
def test_any_text_is_taken_or_refused(name: str, value: str) -> None:
    """No text of any setting gives another error than a refusal that fits on a line."""
    message = ""
    try:
        load_settings(None, **{name: value})
    except SettingsInvalid as refused:
        message = refused.message
    assert len(message.splitlines()) <= 1, message
    assert not message or message.startswith(f"--{name.replace('_', '-')} "), message


def test_auto_precision() -> None:
    """int8 where the model offers it; else fp32."""
    settings = load_settings(None, precision="auto")
    offers = open_catalog(settings).manifest("all-minilm-l6-v2")
    lacks = offers.model_copy(update={"precisions": {"fp32": offers.precisions["fp32"]}})
    assert offers.precision_for(settings.precision) == "int8"
    assert lacks.precision_for(settings.precision) == "fp32"
    assert offers.precision_for(load_settings(None, precision="q8").precision) == "q8"


@pytest.mark.parametrize("quote", ["", "'"])
def test_lines_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quote: str) -> None:
    """Lines of keys keep the quotes of TOML, in `.env`, and in the environment as Docker sets it."""
    lines = 'a = { sha256 = "x" }\n"b" = { sha256 = "y" }'
    env = tmp_path / ".env"
    env.write_text(f"MATRYO_KEYS='{lines}'\n")
    assert load_settings(env).keys == lines
    monkeypatch.setenv("MATRYO_KEYS", f"{quote}{lines}{quote}")
    settings = load_settings(None)
    assert settings.keys == lines
    assert settings.has_keys
    assert "sha256" not in repr(settings)
    with pytest.raises(SettingsInvalid, match="keys is blank"):
        load_settings(None, keys=" ")
