"""What docker-compose.yml, Dockerfile and the files of deploy/ name exists, and fits together."""

from __future__ import annotations

import importlib.resources
import json
import re
import urllib.parse
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from matryo.cli import servers
from matryo.core.settings import Settings

ROOT = Path(__file__).parents[2]
_OWN = ("compose", "haproxy", "nginx", "systemd")
_FILES = [ROOT / "Dockerfile", ROOT / "docker-compose.yml"] + [
    path for folder in _OWN for path in sorted((ROOT / "deploy" / folder).rglob("*.*"))
]
_COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_compose_schema() -> None:
    """The compose file is valid by the schema of the Compose Specification."""
    folder = importlib.resources.files("check_jsonschema") / "builtin_schemas/vendor"
    schema = json.loads((folder / "compose-spec.json").read_text("utf-8"))
    jsonschema.validate(_COMPOSE, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(_COMPOSE | {"service": {}}, schema)


@pytest.mark.parametrize("path", _FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_settings(path: Path) -> None:
    """Every name that begins with MATRYO_ is a setting."""
    known = {f"MATRYO_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"\bMATRYO_[A-Z_]+", path.read_text())) <= known


def test_mounted_paths() -> None:
    """Every file and folder of this repository that a container mounts exists."""
    mounts = [mount for one in _COMPOSE["services"].values() for mount in one.get("volumes", ())]
    paths = {mount.split(":")[0] for mount in mounts if mount.startswith("./")}
    assert paths
    assert not [path for path in sorted(paths) if not (ROOT / path).exists()]


def test_images_are_pinned() -> None:
    """Every image that is not built here has the tag of one version."""
    images = [one["image"] for one in _COMPOSE["services"].values()]
    foreign = [image for image in images if not image.startswith("matryo:")]
    assert foreign
    assert not [image for image in foreign if not re.search(r":v?\d+\.\d+", image)]


def test_monitored_job() -> None:
    """Prometheus in the compose file gives its job the name that rules and dashboard select."""
    elsewhere = (ROOT / "deploy/prometheus/prometheus.yml").read_text()
    here = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text())
    names = [job["job_name"] for job in here["scrape_configs"]]
    assert names == [job["job_name"] for job in yaml.safe_load(elsewhere)["scrape_configs"]]


def test_health_checks() -> None:
    """Image and compose file call `matryo health`, which exists with this flag."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    found = re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", dockerfile, re.MULTILINE)
    assert found
    checks = [json.loads(found[1])]
    checks += [one["healthcheck"]["test"][1:] for one in _servers().values()]
    for check in checks:
        assert check == ["matryo", "health", "--ready"]
    flags = [flag for option in servers.health.params for flag in option.opts]
    assert "--ready" in flags


def test_batch_profile() -> None:
    """The servers' database and store are services of the profile, with a bucket that is made."""
    services = _COMPOSE["services"]
    profile = {name for name, one in services.items() if "batch" in one.get("profiles", ())}
    (store_config,) = services["seaweedfs"]["configs"]
    identities = json.loads(_default(_COMPOSE["configs"][store_config["source"]]["content"]))
    (identity,) = identities["identities"]
    for one in _servers().values():
        given = {name: _default(str(value)) for name, value in one["environment"].items()}
        database = urllib.parse.urlsplit(given["MATRYO_BATCH_DATABASE"])
        assert database.hostname in profile
        postgres = services[database.hostname]["environment"]
        assert database.username == postgres["POSTGRES_USER"]
        assert database.password == _default(postgres["POSTGRES_PASSWORD"])
        assert database.path.strip("/") == postgres["POSTGRES_USER"]  # as the image names it
        bucket = urllib.parse.urlsplit(given["MATRYO_BATCH_STORE"]).hostname
        assert f"s3.bucket.create -name {bucket}" in services["bucket"]["command"][0]
        assert urllib.parse.urlsplit(given["AWS_ENDPOINT_URL"]).hostname in profile
        (keys,) = identity["credentials"]
        assert keys["accessKey"] == given["AWS_ACCESS_KEY_ID"]
        assert keys["secretKey"] == given["AWS_SECRET_ACCESS_KEY"]
        assert given["MATRYO_BATCH"] == "false"
    # Without the profile, a server waits for none of these services.
    waits = services["matryo"]["depends_on"]
    assert {name for name, how in waits.items() if not how["required"]} == {"postgres", "bucket"}


def _default(text: str) -> str:
    """A text of the compose file, with the default of each variable; inner ones come first."""
    while (found := re.sub(r"\$\{\w+:-([^${}]*)\}", r"\1", text)) != text:
        text = found
    return text


def test_stop_is_long_enough() -> None:
    """Whoever ends a server waits longer than the server may take."""
    for one in _servers().values():
        delay_s, grace_s = (
            float(one["environment"][name].split(":-")[1].rstrip("}"))
            for name in ("MATRYO_DRAIN_DELAY_S", "MATRYO_GRACE_S")
        )
        assert float(one["stop_grace_period"].rstrip("s")) > delay_s + grace_s
    unit = (ROOT / "deploy/systemd/matryo.service").read_text()
    found = re.search(r"^TimeoutStopSec=(\d+)s$", unit, re.MULTILINE)
    assert found
    grace_s = Settings.model_fields["grace_s"].default
    assert float(found[1]) > grace_s + Settings.model_fields["drain_delay_s"].default


def _servers() -> dict[str, Any]:
    """The services that run Matryo."""
    services = _COMPOSE["services"].items()
    return {name: one for name, one in services if one["image"].startswith("matryo:")}
