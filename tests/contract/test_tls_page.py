"""docs/tls.md: what the page says to type works as it stands."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

from matryo.core.settings import Settings
from matryo.core.sources import PREFIX
from tests.contract.conftest import live_server
from tests.fakes import FakeEngine

PAGE = (Path(__file__).parents[2] / "docs" / "tls.md").read_text("utf-8")


def block(start: str) -> str:
    """The shell block that begins with these words."""
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    (found,) = [one for one in blocks if one.startswith(start)]
    return found


def test_a_certificate_of_your_own(engine: FakeEngine, tmp_path: Path) -> None:
    """The certificate that openssl makes is one that the server takes and curl trusts."""
    run = ["sh", "-euc"]
    subprocess.run([*run, block("openssl")], cwd=tmp_path, check=True, capture_output=True)
    files: dict[str, Any] = {
        "tls_cert_file": tmp_path / "cert.pem",
        "tls_key_file": tmp_path / "key.pem",
    }
    with live_server(engine, **files) as live:
        command = block("curl").replace(":8080", f":{live.port}").replace("curl ", "curl -sf ")
        env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        done = subprocess.run(
            [*run, command], cwd=tmp_path, env=env, check=True, capture_output=True, text=True
        )
    assert '"embedding":[' in done.stdout


def test_settings() -> None:
    """Every setting that the page names exists, but for one of the metrics' port."""
    named = set(re.findall(r"MATRYO_[A-Z_]+", PAGE)) - {"MATRYO_METRICS_PORT"}
    assert named <= {PREFIX + name.upper() for name in Settings.model_fields}
    assert len(named) > 12
