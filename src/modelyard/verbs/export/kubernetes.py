"""Manifests that run the image of `docker` (which is written beside them): Deployment, Service, HorizontalPodAutoscaler, and KServe's InferenceService.

    kubectl create secret generic churn-token --from-literal=token=…
    kubectl apply --filename deployment.yaml --filename service.yaml --filename autoscaler.yaml        # or inference-service.yaml with KServe
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelyard.runtime.model import Model
from modelyard.verbs.export import docker

TAKES = docker.TAKES
GRACE = 45
"""Seconds from SIGTERM to SIGKILL: the server's drain and a little more."""


def make(model: Model, target: Path, *, trust_code: bool = False, image: str | None = None) -> dict[str, Any]:
    """Writes the manifests and `image/`. Raises as `docker.make` does."""
    name = docker.label(model.name)
    image = image or f"{name}:{model.version}"
    found = docker.make(model, target / "image", trust_code=trust_code, image=image)
    for file, content in manifests(name, image, model.version).items():
        write(target / file, content)
    return found


def manifests(name: str, image: str, version: str) -> dict[str, dict[str, Any]]:
    """File → object."""
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/version": version, "app.kubernetes.io/managed-by": "modelyard"}
    selector = {"app.kubernetes.io/name": name}
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": GRACE,
        "securityContext": {"runAsNonRoot": True, "runAsUser": docker.USER, "fsGroup": docker.USER, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container(name, image, f"{name}-token")],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}}],
    }
    served = container("kserve-container", image, f"{name}-token")  # KServe's name for the container that predicts; it brings its own probes' gate
    return {
        "deployment.yaml": _object("apps/v1", "Deployment", name, labels) | {"spec": {
            "replicas": 2, "selector": {"matchLabels": selector},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        }},
        "service.yaml": _object("v1", "Service", name, labels) | {"spec": {
            "selector": selector, "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        }},
        "autoscaler.yaml": _object("autoscaling/v2", "HorizontalPodAutoscaler", name, labels) | {"spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}, "minReplicas": 2, "maxReplicas": 10,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}],
        }},
        "inference-service.yaml": _object("serving.kserve.io/v1beta1", "InferenceService", name, labels) | {"spec": {
            "predictor": {"minReplicas": 1, "maxReplicas": 10, "containers": [served], "volumes": pod["volumes"], "securityContext": pod["securityContext"]},
        }},
    }  # fmt: skip


def container(name: str, image: str, secret: str) -> dict[str, Any]:
    """The container; its token comes from a secret, its probes ask what the server answers without one."""
    probe = {"periodSeconds": 5, "timeoutSeconds": 2}
    return {
        "name": name, "image": image,
        "env": [{"name": "MODELYARD_TOKEN", "valueFrom": {"secretKeyRef": {"name": secret, "key": "token"}}}],
        "ports": [{"name": "http", "containerPort": docker.PORT, "protocol": "TCP"}],
        "startupProbe": {"httpGet": {"path": "/v2/health/ready", "port": "http"}, "failureThreshold": 30, **probe},
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": "http"}, **probe},
        "livenessProbe": {"httpGet": {"path": "/v2/health/live", "port": "http"}, "failureThreshold": 6, **probe},
        "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }  # fmt: skip


def _object(version: str, kind: str, name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": labels}}


def write(file: Path, content: dict[str, Any]) -> None:
    """YAML without anchors: one object is written twice where it stands twice."""
    import json

    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    with file.open("w", encoding="utf-8") as out:
        yaml.dump(json.loads(json.dumps(content)), out)
