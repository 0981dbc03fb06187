"""Prometheus, Alertmanager and a server under load: `make integration` runs this module.

    .venv/bin/python -m tests.monitoring [FOLDER]

promtool checks configuration and rules, and runs the rules' tests. Then a server of a fake engine
gets load of every kind, and every alert its real cause, with windows of seconds in place of minutes:
each must fire, reach Alertmanager, and clear. In the end every query of dashboard, console, rules
and pages must have had a value. Needs `apt-get install prometheus prometheus-alertmanager`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from promql_parser import VectorSelector, parse, walk

from tests.monitoring_causes import World, again_and_again
from tests.monitoring_stack import Monitored, Stack, answers, free_port, wait_for
from tests.queries import PROMETHEUS, alerts, every_query

KEYS = {"search": "sk-search", "batch": "sk-batch", "limited": "sk-limited"}
_LIMITS = {"limited": ", requests_per_minute = 1"}


def main() -> None:
    """Run everything."""
    for tool in ("prometheus", "promtool", "openssl"):
        if not shutil.which(tool):
            sys.exit(
                f"{tool} is missing: apt-get install prometheus prometheus-alertmanager openssl"
            )
    _promtool()
    root = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="matryo-monitoring-"))
    root.mkdir(exist_ok=True)
    _run(root)
    if len(sys.argv) == 1:
        shutil.rmtree(root)
    _report("passed")


def _report(sentence: str) -> None:
    print(sentence, flush=True)  # noqa: T201 - a program's output


def _promtool() -> None:
    for arguments in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules/recording.yml", "rules/alerts.yml"],
        ["test", "rules", "tests/recording.yml", "tests/alerts.yml"],
    ):
        subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, check=True)
    if shutil.which("amtool"):
        subprocess.run(["amtool", "check-config", "alertmanager.yml"], cwd=PROMETHEUS, check=True)


def _run(root: Path) -> None:
    grpc_port, keys_file = free_port(), root / "keys.toml"
    keys_file.write_text(
        "".join(
            f'{name} = {{ sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"'
            f"{_LIMITS.get(name, '')} }}\n"
            for name, key in KEYS.items()
        )
    )
    certify = _certifier(root)
    certify(90)
    settings = {
        "MATRYO_MODEL": "all-minilm-l6-v2",
        "MATRYO_HOME": str(root / "home"),
        "MATRYO_KEYS_FILE": str(keys_file),
        "MATRYO_READY_INTERVAL_S": "3",
        "MATRYO_MAX_CONNECTIONS": "64",
        "MATRYO_QUEUE_TOKENS": "200000",
        "MATRYO_MAX_BODY_BYTES": "4194304",
        "MATRYO_MEMORY_BUDGET_BYTES": "16777216",
    }
    tls = {
        "MATRYO_GRPC_PORT": str(grpc_port),
        "MATRYO_GRPC_CERT_FILE": str(root / "cert.pem"),
        "MATRYO_GRPC_KEY_FILE": str(root / "key.pem"),
    }
    batches = {"MATRYO_BATCH": "true", "MATRYO_BATCH_DIR": str(root / "batches")}
    (root / "batches").mkdir()
    server = Monitored("one", root, settings | tls | batches)
    other = Monitored("two", root, settings)
    stack = Stack(root)
    world = World(
        server,
        other,
        stack,
        KEYS,
        keys_file,
        certify,
        grpc_port,
        root_pem=root / "cert.pem",
        batches=root / "batches",
    )
    with contextlib.ExitStack() as end:
        end.callback(other.stop)
        end.callback(server.stop)
        server.start()
        end.enter_context(stack.running(server))
        end.enter_context(again_and_again(world.query, world.query))
        kinds = (world.documents, world.tei, world.grpc, world.bad, world.hang_up, world.limited)
        with again_and_again(*kinds, pause_s=0.3):
            wait_for(lambda: stack.ever("matryo:failed:ratio3d"), "the first share of failures")
            wait_for(lambda: stack.ever('matryo_requests_total{door="grpc", status="OK"}'), "gRPC")
            wait_for(lambda: not _names_firing(stack), "the end of what fires without a cause")
        for name, cause in world.causes():
            _fires_and_clears(stack, name, cause)
        assert {name for name, _ in world.causes()} == {rule["alert"] for rule in alerts()}
        _every_query(stack)
        page = stack.page()
        assert f"<td>127.0.0.1:{server.port}</td>" in page
        assert "<td>yes</td>" in page
        _monitoring(server.port)


def _names_firing(stack: Stack) -> set[str]:
    # The load refuses the key `limited` on purpose.
    return {
        rule["alert"]
        for rule in alerts()
        if rule["alert"] != "MatryoKeyLimited" and stack.firing(rule["alert"])
    }


def _certifier(root: Path) -> Callable[[int], None]:
    """What writes a certificate of the same key that ends in so many days."""

    def certify(days: int) -> None:
        key = root / "key.pem"
        new = "-key" if key.exists() else "-keyout"
        part = root / "cert.part"
        command = f"openssl req -x509 -nodes -newkey rsa:2048 -subj /CN=localhost -days {days}"
        command += f" -addext subjectAltName=DNS:localhost {new} {key} -out {part}"
        subprocess.run(command.split(), check=True, capture_output=True)
        part.replace(root / "cert.pem")

    return certify


def _fires_and_clears(
    stack: Stack, name: str, cause: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    """Cause an alert: each rule of its name fires, reaches Alertmanager, and clears."""
    wanted = {
        rule["labels"]["severity"] + rule["labels"].get("window", "")
        for rule in alerts()
        if rule["alert"] == name
    }
    wait_for(lambda: not stack.firing(name), f"{name} does not fire before its cause")
    with cause():
        wait_for(lambda: stack.firing(name) == wanted, f"{name} fires: {wanted}")
        wait_for(lambda: stack.notified(name) == wanted, f"Alertmanager has {name}")
    wait_for(lambda: not stack.firing(name), f"{name} clears")
    wait_for(lambda: not stack.notified(name), f"Alertmanager lets {name} go")
    _report(f"{name}: fires and clears")


def _every_query(stack: Stack) -> None:
    """Each query, and each selector in one, had a value that is a number.

    The whole expression of an alert had one when its copy in seconds fired.
    """
    empty: list[str] = []
    for query in every_query():
        parts = _selectors(query.text)
        whole = [] if query.where.startswith("alert") else [query.text]
        empty += [f"{query.where}: {part}" for part in (*whole, *parts) if not stack.ever(part)]
    assert not empty, "queries without a value:\n" + "\n".join(empty)
    _report(f"{len(every_query())} queries have values")


def _selectors(text: str) -> list[str]:
    found: list[str] = []

    def visit(node: object) -> None:
        if isinstance(node, VectorSelector):
            found.append(str(node))

    walk(parse(text), visit)
    return found


def _monitoring(port: int) -> None:
    """`make monitoring` shows the server with data, and leaves nothing."""
    prometheus, alertmanager = str(free_port()), str(free_port())
    environ = os.environ | {
        "MATRYO_PORT": str(port),
        "PROMETHEUS_PORT": prometheus,
        "ALERTMANAGER_PORT": alertmanager,
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [str(PROMETHEUS / "monitoring.sh")]
        with subprocess.Popen(command, env=environ | {"TMPDIR": folder}) as process:
            url = f"http://127.0.0.1:{prometheus}"
            query = f"{url}/api/v1/query?query=count(matryo_ready)"
            try:
                wait_for(lambda: answers(f"{url}/consoles/matryo.html"), "the console")
                wait_for(lambda: answers(query) and "127" in _console(url), "data in the console")
            finally:
                process.send_signal(signal.SIGTERM)
        assert process.returncode == 0, process.returncode
        assert not list(Path(folder).iterdir())
    _report("make monitoring runs and ends")


def _console(url: str) -> str:
    import requests

    page = requests.get(f"{url}/consoles/matryo.html", timeout=30).text
    return page.split("<table>")[1]


if __name__ == "__main__":
    main()
