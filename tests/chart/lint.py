"""What a linter of Kubernetes objects would say: rules that hold whatever the values are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from tests.chart.files import of_kind

_SECRETS = ("MATRYO_API_KEYS", "MATRYO_KEYS", "MATRYO_METRICS_KEY", "KEY")

Objects = list[dict[str, Any]]


def faults(objects: Objects) -> list[str]:
    """A sentence for each fault."""
    return [
        *_names(objects),
        *_pods(objects),
        *_server(objects),
        *_selectors(objects),
        *_ports(objects),
        *_references(objects),
    ]


def pod_specs(objects: Objects) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and spec of each pod that the objects describe."""
    for one in objects:
        if one["kind"] == "Deployment":
            yield one["metadata"]["name"], one["spec"]["template"]["spec"]
        elif one["kind"] == "Pod":
            yield one["metadata"]["name"], one["spec"]


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The containers of a pod, those before its start included."""
    return [*spec.get("initContainers", ()), *spec["containers"]]


def server(objects: Objects) -> dict[str, Any]:
    """The server's container."""
    (deployment,) = of_kind(objects, "Deployment")
    return deployment["spec"]["template"]["spec"]["containers"][0]


def environment(objects: Objects) -> dict[str, str]:
    """The server's variables that have a value in clear."""
    return {one["name"]: one["value"] for one in server(objects)["env"] if "value" in one}


def _names(objects: Objects) -> Iterator[str]:
    seen: set[tuple[str, str]] = set()
    for one in objects:
        kind, name = one["kind"], one["metadata"]["name"]
        if (kind, name) in seen:
            yield f"{kind} {name} is there twice"
        seen.add((kind, name))
        labels = one["metadata"].get("labels", {})
        for label in ("name", "instance", "component", "managed-by"):
            if f"app.kubernetes.io/{label}" not in labels:
                yield f"{kind} {name} has no label {label}"
        if "namespace" not in one["metadata"]:
            yield f"{kind} {name} has no namespace"
        if any(not isinstance(value, str) for value in labels.values()):
            yield f"{kind} {name} has a label that is no text"


def _pods(objects: Objects) -> Iterator[str]:
    for name, spec in pod_specs(objects):
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{name} mounts a token"
        if spec.get("enableServiceLinks") is not False:
            yield f"{name} has the variables of services, MATRYO_PORT among them"
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(key):
                yield f"{name} has {key}"
        context = spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
            yield f"{name} may run as root"
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{name} has no seccomp profile"
        volumes = {volume["name"] for volume in spec.get("volumes", ())}
        if any("hostPath" in volume for volume in spec.get("volumes", ())):
            yield f"{name} has a path of the host"
        for container in containers(spec):
            yield from _container(f"{name}/{container['name']}", container, volumes)


def _container(name: str, container: dict[str, Any], volumes: set[str]) -> Iterator[str]:
    context = container.get("securityContext", {})
    wanted = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for key, value in wanted.items():
        if context.get(key) != value:
            yield f"{name} has {key} {context.get(key)}"
    image = container["image"]
    tag = image.rpartition("/")[2].partition(":")[2]
    if "@sha256:" not in image and tag in ("", "latest"):
        yield f"{name} has the image {image}, whose version is open"
    resources = container.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    if not requests.get("cpu") or requests.get("memory") != limits.get("memory"):
        yield f"{name} has resources {resources}"
    mounts = container.get("volumeMounts", ())
    for mount in mounts:
        if mount["name"] not in volumes:
            yield f"{name} mounts {mount['name']}, which is no volume"
        if "subPath" in mount:
            yield f"{name} mounts {mount['name']} by subPath, whose files never change"
    paths = [mount["mountPath"] for mount in mounts]
    if len(paths) != len(set(paths)):
        yield f"{name} mounts two volumes at one path"
    names = [one["name"] for one in container.get("env", ())]
    if len(names) != len(set(names)):
        yield f"{name} sets a variable twice"
    for one in container.get("env", ()):
        if one["name"] in _SECRETS and "value" in one:
            yield f"{name} has {one['name']} in clear"


def _server(objects: Objects) -> Iterator[str]:
    (deployment,) = of_kind(objects, "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    container, variables = server(objects), environment(objects)
    for probe, path in (("startup", "/readyz"), ("readiness", "/readyz"), ("liveness", "/livez")):
        found = container.get(f"{probe}Probe", {}).get("httpGet", {}).get("path")
        if found != path:
            yield f"the {probe} probe asks {found}"
    liveness = container["livenessProbe"]
    if liveness["periodSeconds"] * liveness["failureThreshold"] < 30:
        yield "the liveness probe restarts a pod after less than half a minute"
    sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    needed = float(variables["MATRYO_DRAIN_DELAY_S"]) + float(variables["MATRYO_GRACE_S"]) + sleep
    if math.ceil(needed) >= spec["terminationGracePeriodSeconds"]:
        yield f"a pod needs {needed} s to end and gets {spec['terminationGracePeriodSeconds']}"
    readiness = container["readinessProbe"]
    seen_s = readiness["periodSeconds"] * readiness["failureThreshold"]
    if float(variables["MATRYO_DRAIN_DELAY_S"]) + sleep < min(seen_s, 5):
        yield "requests end before the endpoints know that the pod ends"
    scaled = of_kind(objects, "HorizontalPodAutoscaler") + of_kind(objects, "ScaledObject")
    if scaled and "replicas" in deployment["spec"]:
        yield "the number of pods is set beside an autoscaler"
    if not scaled and "replicas" not in deployment["spec"]:
        yield "nothing sets the number of pods"


def _selectors(objects: Objects) -> Iterator[str]:
    (deployment,) = of_kind(objects, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    wanted = [("Deployment", deployment["spec"]["selector"]["matchLabels"])]
    for one in objects:
        spec, name = one.get("spec", {}), f"{one['kind']} {one['metadata']['name']}"
        if one["kind"] == "Service":
            wanted.append((name, spec["selector"]))
        elif one["kind"] in ("PodDisruptionBudget", "PodMonitor"):
            wanted.append((name, spec["selector"]["matchLabels"]))
        elif one["kind"] == "NetworkPolicy":
            wanted.append((name, spec["podSelector"]["matchLabels"]))
        elif one["kind"] == "ServiceMonitor":
            services = [
                service
                for service in of_kind(objects, "Service")
                if spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
            ]
            if len(services) != 1:
                yield f"{name} selects {len(services)} services"
    others = [pod["metadata"]["labels"] for pod in of_kind(objects, "Pod")]
    for name, selector in wanted:
        if not selector.items() <= labels.items():
            yield f"{name} selects no pod"
        if any(selector.items() <= other.items() for other in others):
            yield f"{name} selects the pod of the test"


def _ports(objects: Objects) -> Iterator[str]:
    ports = {port["name"] for port in server(objects)["ports"]}
    services: dict[str, set[Any]] = {}
    for service in of_kind(objects, "Service"):
        found = service["spec"]["ports"]
        services[service["metadata"]["name"]] = {
            one[key] for one in found for key in ("name", "port")
        }
        for port in found:
            if port["targetPort"] not in ports:
                yield f"a service leads to {port['targetPort']}, which is no port of the container"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if (port := server(objects)[probe]["httpGet"]["port"]) not in ports:
            yield f"{probe} asks the port {port}, which is none of the container"
    for name, port in _backends(objects):
        if port not in services.get(name, ()):
            yield f"a route leads to {name}:{port}, which no service has"
    of_services: set[Any] = set().union(*services.values())
    yield from _other_ports(objects, ports, of_services)


def _other_ports(objects: Objects, ports: set[str], of_services: set[Any]) -> Iterator[str]:
    for policy in of_kind(objects, "NetworkPolicy"):
        for port in (port for rule in policy["spec"]["ingress"] for port in rule["ports"]):
            if port["port"] not in ports:
                yield f"the network policy opens {port['port']}, which is no port"
    for monitor in of_kind(objects, "ServiceMonitor"):
        if any(one["port"] not in of_services for one in monitor["spec"]["endpoints"]):
            yield "the monitor scrapes a port that no service has"
    for monitor in of_kind(objects, "PodMonitor"):
        if any(one["port"] not in ports for one in monitor["spec"]["podMetricsEndpoints"]):
            yield "the monitor scrapes a port that no pod has"


def _backends(objects: Objects) -> Iterator[tuple[str, Any]]:
    for ingress in of_kind(objects, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                yield service["name"], service["port"].get("name", service["port"].get("number"))
    for route in of_kind(objects, "HTTPRoute"):
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                yield backend["name"], backend["port"]


def _references(objects: Objects) -> Iterator[str]:
    names = {(one["kind"], one["metadata"]["name"]) for one in objects}
    for scaler in of_kind(objects, "HorizontalPodAutoscaler") + of_kind(objects, "ScaledObject"):
        target = scaler["spec"]["scaleTargetRef"]
        if (target["kind"], target["name"]) not in names:
            yield f"the autoscaler scales {target['name']}, which is not there"
        if scaler["kind"] == "HorizontalPodAutoscaler" and not scaler["spec"]["metrics"]:
            yield "the autoscaler has no metric"
