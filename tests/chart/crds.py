"""The fields of the custom resources that the chart makes.

An API server drops a field that a resource does not have, without a word, and the validators of
@kubernetes-models pass over such a field. The fields are those of the resources' own definitions:
the Prometheus operator's monitoring.coreos.com/v1, KEDA's keda.sh/v1alpha1 and the Gateway API's
gateway.networking.k8s.io/v1. None stands for anything.
"""

from __future__ import annotations

from typing import Any

Fields = dict[str, "Fields | None"]

_POLICY: Fields = {"type": None, "value": None, "periodSeconds": None}
_SCALING: Fields = {
    "stabilizationWindowSeconds": None,
    "selectPolicy": None,
    "policies": _POLICY,
}
_ENDPOINT: Fields = {
    "port": None,
    "path": None,
    "scheme": None,
    "interval": None,
    "scrapeTimeout": None,
    "tlsConfig": None,
    "authorization": {"type": None, "credentials": {"name": None, "key": None}},
    "relabelings": {"targetLabel": None, "replacement": None, "sourceLabels": None, "action": None},
}
_RULE: Fields = {
    "record": None,
    "alert": None,
    "expr": None,
    "for": None,
    "keep_firing_for": None,
    "labels": None,
    "annotations": None,
}
KINDS: dict[str, Fields] = {
    "ServiceMonitor": {"selector": None, "endpoints": _ENDPOINT},
    "PodMonitor": {"selector": None, "podMetricsEndpoints": _ENDPOINT},
    "PrometheusRule": {
        "groups": {"name": None, "interval": None, "labels": None, "limit": None, "rules": _RULE}
    },
    "ScaledObject": {
        "scaleTargetRef": {"apiVersion": None, "kind": None, "name": None},
        "minReplicaCount": None,
        "maxReplicaCount": None,
        "pollingInterval": None,
        "cooldownPeriod": None,
        "fallback": {"failureThreshold": None, "replicas": None},
        "advanced": {
            "horizontalPodAutoscalerConfig": {
                "behavior": {"scaleUp": _SCALING, "scaleDown": _SCALING}
            }
        },
        "triggers": {
            "type": None,
            "name": None,
            "metricType": None,
            "metadata": None,
            "authenticationRef": {"name": None, "kind": None},
        },
    },
    "HTTPRoute": {
        "parentRefs": None,
        "hostnames": None,
        "rules": {
            "matches": {"path": {"type": None, "value": None}},
            "timeouts": {"request": None, "backendRequest": None},
            "backendRefs": {"name": None, "port": None},
        },
    },
    "BackendTLSPolicy": {
        "targetRefs": {"group": None, "kind": None, "name": None, "sectionName": None},
        "validation": {
            "hostname": None,
            "caCertificateRefs": {"group": None, "kind": None, "name": None},
        },
    },
}


def unknown_fields(one: dict[str, Any]) -> list[str]:
    """Paths of the fields that a resource does not have."""
    return _unknown(one["spec"], KINDS[one["kind"]], "spec")


def _unknown(value: Any, fields: Fields | None, at: str) -> list[str]:
    if fields is None:
        return []
    if isinstance(value, list):
        return [path for inner in value for path in _unknown(inner, fields, at)]
    if not isinstance(value, dict):
        return [at]
    found = [f"{at}.{name}" for name in value if name not in fields]
    for name in value.keys() & fields.keys():
        found += _unknown(value[name], fields[name], f"{at}.{name}")
    return found
