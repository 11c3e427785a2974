"""Schemas of the custom resources in k8s/, from the public references of their operators.

Prometheus operator: ``monitoring.coreos.com/v1`` (ServiceMonitor, PodMonitor, PrometheusRule). KEDA:
``keda.sh/v1alpha1`` (ScaledObject). They hold what the references say of the fields that k8s/ uses and of their
neighbours. Invariant: an unknown field is refused, as `kubectl apply --validate=strict` does.
"""

import re
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
TEXTS: Schema = {"type": "array", "items": TEXT}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
# The operator's pattern of durations.
DURATION: Schema = {
    "type": "string",
    "pattern": r"^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$",
    "minLength": 1,
}


def strict(properties: Schema, *required: str) -> Schema:
    """Return the schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def items(schema: Schema) -> Schema:
    """Return the schema of a list that is not empty."""
    return {"type": "array", "items": schema, "minItems": 1}


def resource(version: str, kind: str, spec: Schema) -> Schema:
    """Return the schema of a namespaced object."""
    metadata = strict({"name": TEXT, "namespace": TEXT, "labels": LABELS, "annotations": LABELS}, "name")
    return strict(
        {"apiVersion": {"const": version}, "kind": {"const": kind}, "metadata": metadata, "spec": spec},
        "apiVersion", "kind", "metadata", "spec",
    )  # fmt: skip


EXPRESSION = strict(
    {"key": TEXT, "operator": {"enum": ["In", "NotIn", "Exists", "DoesNotExist"]}, "values": TEXTS}, "key", "operator"
)
SELECTOR = strict({"matchLabels": LABELS, "matchExpressions": items(EXPRESSION)})
SECRET_KEY = strict({"name": TEXT, "key": TEXT, "optional": FLAG}, "key")
ENDPOINT = strict(
    {
        "port": TEXT,
        "targetPort": {"type": ["integer", "string"]},
        "path": {"type": "string", "pattern": "^/"},
        "scheme": {"enum": ["http", "https", "HTTP", "HTTPS"]},
        "params": {"type": "object", "additionalProperties": TEXTS},
        "interval": DURATION,
        "scrapeTimeout": DURATION,
        "honorLabels": FLAG,
        "honorTimestamps": FLAG,
        "authorization": strict({"type": TEXT, "credentials": SECRET_KEY}),
        "followRedirects": FLAG,
        "enableHttp2": FLAG,
    }
)
SERVICE_MONITOR = resource(
    "monitoring.coreos.com/v1",
    "ServiceMonitor",
    strict(
        {
            "jobLabel": TEXT,
            "targetLabels": TEXTS,
            "podTargetLabels": TEXTS,
            "selector": SELECTOR,
            "namespaceSelector": strict({"any": FLAG, "matchNames": TEXTS}),
            "endpoints": items(ENDPOINT),
            "sampleLimit": COUNT,
        },
        "endpoints",
        "selector",
    ),
)
POD_MONITOR = resource(
    "monitoring.coreos.com/v1",
    "PodMonitor",
    strict(
        {
            "jobLabel": TEXT,
            "podTargetLabels": TEXTS,
            "selector": SELECTOR,
            "namespaceSelector": strict({"any": FLAG, "matchNames": TEXTS}),
            "podMetricsEndpoints": items(ENDPOINT),
            "sampleLimit": COUNT,
        },
        "podMetricsEndpoints",
        "selector",
    ),
)
RULE = strict(
    {
        "alert": TEXT,
        "record": TEXT,
        "expr": {"type": ["string", "integer"]},
        "for": DURATION,
        "keep_firing_for": DURATION,
        "labels": LABELS,
        "annotations": LABELS,
    },
    "expr",
)
GROUP = strict(
    {"name": TEXT, "interval": DURATION, "limit": COUNT, "partial_response_strategy": TEXT, "rules": items(RULE)},
    "name",
)
PROMETHEUS_RULE = resource("monitoring.coreos.com/v1", "PrometheusRule", strict({"groups": items(GROUP)}))

POLICY = strict(
    {"type": {"enum": ["Pods", "Percent"]}, "value": {"type": "integer", "minimum": 1},
     "periodSeconds": {"type": "integer", "minimum": 1, "maximum": 1800}},
    "type", "value", "periodSeconds",
)  # fmt: skip
SCALING = strict(
    {
        "stabilizationWindowSeconds": {"type": "integer", "minimum": 0, "maximum": 3600},
        "selectPolicy": {"enum": ["Max", "Min", "Disabled"]},
        "policies": items(POLICY),
    }
)
# Values of a trigger's metadata are texts; those of each kind are in the reference of its scaler.
PROMETHEUS_FIELDS = (
    "serverAddress",
    "query",
    "threshold",
    "activationThreshold",
    "namespace",
    "ignoreNullValues",
    "cortexOrgID",
    "unsafeSsl",
    "timeout",
    "authModes",
    "customHeaders",
    "queryParameters",
)
PROMETHEUS_TRIGGER = strict(dict.fromkeys(PROMETHEUS_FIELDS, TEXT), "serverAddress", "query", "threshold")
CPU_TRIGGER = strict({"value": TEXT, "containerName": TEXT}, "value")


def _trigger(kind: str, metadata: Schema, *metric_types: str) -> Schema:
    return strict(
        {"type": {"const": kind}, "name": TEXT, "useCachedMetrics": FLAG, "metricType": {"enum": list(metric_types)},
         "metadata": metadata, "authenticationRef": strict({"name": TEXT, "kind": TEXT}, "name")},
        "type", "metadata",
    )  # fmt: skip


SCALED_OBJECT = resource(
    "keda.sh/v1alpha1",
    "ScaledObject",
    strict(
        {
            "scaleTargetRef": strict(
                {"apiVersion": TEXT, "kind": TEXT, "name": TEXT, "envSourceContainerName": TEXT}, "name"
            ),
            "pollingInterval": COUNT,
            "cooldownPeriod": COUNT,
            "initialCooldownPeriod": COUNT,
            "idleReplicaCount": COUNT,
            "minReplicaCount": COUNT,
            "maxReplicaCount": {"type": "integer", "minimum": 1},
            "fallback": strict({"failureThreshold": COUNT, "replicas": COUNT}, "failureThreshold", "replicas"),
            "advanced": strict(
                {
                    "restoreToOriginalReplicaCount": FLAG,
                    "horizontalPodAutoscalerConfig": strict(
                        {"name": TEXT, "behavior": strict({"scaleUp": SCALING, "scaleDown": SCALING})}
                    ),
                }
            ),
            "triggers": items(
                {
                    "oneOf": [
                        _trigger("prometheus", PROMETHEUS_TRIGGER, "AverageValue", "Value"),
                        _trigger("cpu", CPU_TRIGGER, "AverageValue", "Utilization"),
                    ]
                }
            ),
        },
        "scaleTargetRef",
        "triggers",
    ),
)
SCHEMAS = {
    schema["properties"]["kind"]["const"]: schema
    for schema in (SERVICE_MONITOR, POD_MONITOR, PROMETHEUS_RULE, SCALED_OBJECT)
}


def is_custom(document: dict[str, Any]) -> bool:
    """Return whether an object is of a group that Kubernetes itself does not have."""
    group = document["apiVersion"].rpartition("/")[0]
    return bool(re.search(r"\.", group)) and not group.endswith(".k8s.io")
