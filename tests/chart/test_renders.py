"""The checked-in renders: what Kubernetes, an operator and the server itself expect of them."""

from __future__ import annotations

import base64
import copy
import tomllib
from collections.abc import Callable
from typing import Any

import pytest

from tests.chart import lint
from tests.chart.crds import KINDS, unknown_fields
from tests.chart.files import RENDERS, VALUES, digest, of_kind, rendered

Objects = list[dict[str, Any]]
NAMES = list(VALUES)


def test_sets_of_values() -> None:
    """There is a render for each set of values, and no other."""
    assert NAMES == ["airgapped", "batch", "minimal", "production"]
    assert sorted(path.stem for path in RENDERS.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_render_is_of_these_files(name: str) -> None:
    """A render is that of the chart as it is; `make chart-render` writes it again."""
    first = (RENDERS / f"{name}.yaml").read_text("utf-8").partition("\n")[0]
    assert digest() in first


@pytest.mark.parametrize("name", NAMES)
def test_no_faults(name: str) -> None:
    """A linter finds nothing in any render."""
    assert lint.faults(rendered(name)) == []


def _pod(objects: Objects) -> dict[str, Any]:
    (deployment,) = of_kind(objects, "Deployment")
    return deployment["spec"]["template"]["spec"]


def _set(value: Any, *path: Any) -> Callable[[Objects], None]:
    """Change one value of the pod's spec."""

    def change(objects: Objects) -> None:
        at: Any = _pod(objects)
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value

    return change


_FIRST = ("containers", 0)
BROKEN: dict[str, tuple[Callable[[Objects], None], str]] = {
    "root": (_set(0, "securityContext", "runAsUser"), "root"),
    "links": (_set(True, "enableServiceLinks"), "MATRYO_PORT"),
    "token": (_set(True, "automountServiceAccountToken"), "token"),
    "grace": (_set(30, "terminationGracePeriodSeconds"), "to end"),
    "latest": (_set("a/b:latest", *_FIRST, "image"), "version is open"),
    "memory": (_set("2Gi", *_FIRST, "resources", "requests", "memory"), "resources"),
    "liveness": (_set("/readyz", *_FIRST, "livenessProbe", "httpGet", "path"), "liveness"),
    "port": (_set("none", *_FIRST, "readinessProbe", "httpGet", "port"), "no port|none of"),
    "root file system": (
        _set(False, *_FIRST, "securityContext", "readOnlyRootFilesystem"),
        "readOnlyRootFilesystem",
    ),
    "host": (_set([{"name": "tmp", "hostPath": {"path": "/"}}], "volumes"), "host"),
    "clear key": (
        lambda objects: _pod(objects)["containers"][0]["env"].append(
            {"name": "MATRYO_API_KEYS", "value": "sk"}
        ),
        "in clear",
    ),
    "label": (
        lambda objects: of_kind(objects, "Service")[0]["spec"]["selector"].update(x="y"),
        "selects no pod",
    ),
    "service port": (
        lambda objects: of_kind(objects, "Service")[0]["spec"]["ports"][0].update(targetPort="x"),
        "no port",
    ),
    "replicas": (
        lambda objects: of_kind(objects, "Deployment")[0]["spec"].pop("replicas"),
        "sets the number",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_linter_finds(what: str) -> None:
    """The linter finds each fault that it is for."""
    objects = copy.deepcopy(rendered("minimal"))
    change, sentence = BROKEN[what]
    change(objects)
    assert any(part in fault for fault in lint.faults(objects) for part in sentence.split("|"))


@pytest.mark.parametrize("name", NAMES)
def test_time_to_end(name: str) -> None:
    """A pod is killed only after drain delay, grace and a margin."""
    objects = rendered(name)
    variables = lint.environment(objects)
    needed = float(variables["MATRYO_DRAIN_DELAY_S"]) + float(variables["MATRYO_GRACE_S"])
    assert _pod(objects)["terminationGracePeriodSeconds"] == needed + 5


def test_production_has_everything() -> None:
    """The production set has what a service with operators needs."""
    kinds = {one["kind"] for one in rendered("production")}
    assert kinds >= {
        "BackendTLSPolicy",
        "ConfigMap",
        "Deployment",
        "HTTPRoute",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "PrometheusRule",
        "ScaledObject",
        "Service",
        "ServiceAccount",
        "ServiceMonitor",
    }


@pytest.mark.parametrize("name", ["minimal", "airgapped"])
def test_small_sets_need_no_crds(name: str) -> None:
    """The small sets have only kinds that every cluster knows."""
    for one in rendered(name):
        group = one["apiVersion"].rpartition("/")[0]
        assert group in ("", "apps", "autoscaling", "policy", "networking.k8s.io")


def test_keys_are_a_file_that_changes() -> None:
    """Keys are a file of a mounted Secret, so that a change needs no restart."""
    objects = rendered("airgapped")
    path = lint.environment(objects)["MATRYO_KEYS_FILE"]
    folder, _, name = path.rpartition("/")
    pod = _pod(objects)
    (mount,) = (one for one in lint.server(objects)["volumeMounts"] if one["mountPath"] == folder)
    (volume,) = (one for one in pod["volumes"] if one["name"] == mount["name"])
    (secret,) = of_kind(objects, "Secret")
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]
    assert tomllib.loads(base64.b64decode(secret["data"][name]).decode())["search"]["sha256"]
    (deployment,) = of_kind(objects, "Deployment")
    assert not [
        key
        for key in deployment["spec"]["template"]["metadata"]["annotations"]
        if "checksum" in key
    ]


def test_metrics_are_not_on_the_public_service() -> None:
    """The port of the metrics is on a Service of its own, which no load balancer shows."""
    for service in of_kind(rendered("production"), "Service"):
        targets = {port["targetPort"] for port in service["spec"]["ports"]}
        is_metrics = service["metadata"]["labels"]["app.kubernetes.io/component"] == "metrics"
        assert ("metrics" in targets) == is_metrics


def test_monitor_shows_the_key() -> None:
    """The scrape shows the key that the server asks for, from the same Secret, without TLS on its own port."""
    objects = rendered("production")
    (monitor,) = of_kind(objects, "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    (key,) = (one for one in lint.server(objects)["env"] if one["name"] == "MATRYO_METRICS_KEY")
    assert endpoint["authorization"]["credentials"] == key["valueFrom"]["secretKeyRef"]
    assert endpoint["scheme"] == "http"


def test_scaling_on_backlog() -> None:
    """KEDA scales on the sum of the seconds of backlog of this release's pods, and on the CPU."""
    (scaled,) = of_kind(rendered("production"), "ScaledObject")
    backlog, cpu = scaled["spec"]["triggers"]
    assert backlog["metricType"] == "AverageValue"
    query = backlog["metadata"]["query"]
    assert query.startswith("sum(matryo_backlog_seconds{")
    assert 'namespace="production"' in query
    assert cpu["type"] == "cpu"


@pytest.mark.parametrize("name", NAMES)
def test_pod_name_matches_the_query(name: str) -> None:
    """A pod's longest name is not cut: name, ten characters of the ReplicaSet, five of the pod."""
    (deployment,) = of_kind(rendered(name), "Deployment")
    assert len(deployment["metadata"]["name"]) <= 46


def test_network_policy_closes_the_way_out() -> None:
    """Nothing leaves a pod whose image contains the model."""
    (policy,) = of_kind(rendered("airgapped"), "NetworkPolicy")
    assert policy["spec"]["egress"] == []
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_custom_resources_have_known_fields() -> None:
    """A custom resource has only fields of its kind: an API server drops others without a word."""
    custom = [one for one in rendered("production") if one["kind"] in KINDS]
    assert len(custom) == 5
    for one in custom:
        assert unknown_fields(one) == []
        one["spec"]["colour"] = "red"
        assert unknown_fields(one) == ["spec.colour"]
