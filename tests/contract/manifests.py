"""Strict offline validation of Kubernetes manifests, and reading what we ship.

A plain OpenAPI check lets unknown fields pass (the API server prunes them silently), so every
object that lists its properties is closed here. Core kinds have no CRD: a table below names the
fields that we use of them, and anything else is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

Document = dict[str, Any]
Schema = dict[str, Any]

# libyaml where it is built in: a CRD is a megabyte, seconds in pure Python.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(LOADER):  # type: ignore[misc, unused-ignore]
    """Refuses a key given twice, which YAML readers let pass and the API server refuses."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(map(str, keys))), f"a key is given twice {node.start_mark}: {keys}"
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def load_all(text: str) -> list[Document]:
    """The documents of a YAML file; a key given twice is an error."""
    return [document for document in yaml.load_all(text, Loader=_StrictLoader) if document]


def base_documents(base: Path) -> list[Document]:
    """Every document that the kustomization in `base` lists, as written."""
    kustomization = load_all((base / "kustomization.yaml").read_text())[0]
    return [
        document for name in kustomization["resources"] for document in load_all((base / name).read_text())
    ]


def closed(schema: Any) -> Any:
    """The schema with every object closed, `metadata` opened, int-or-string spelled out."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    properties = schema.get("properties")
    if isinstance(properties, dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result["additionalProperties"] = False
        if isinstance(properties.get("metadata"), dict):
            result["properties"]["metadata"] = {"type": "object"}
    return result


def crd_schema(path: Path, version: str = "v1") -> Schema:
    """The closed schema of a CustomResourceDefinition file."""
    definition = yaml.load(path.read_text(), Loader=LOADER)
    by_name = {item["name"]: item for item in definition["spec"]["versions"]}
    schema: Schema = closed(by_name[version]["schema"]["openAPIV3Schema"])
    return schema


def validate(document: Document, schema: Schema) -> None:
    """Raises jsonschema.ValidationError naming the path of what is wrong."""
    jsonschema.Draft202012Validator(schema).validate(document)


def _object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


_NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_LABELS = {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1}
_SELECTOR = _object(matchLabels=_LABELS)
_POLICY_PORT = _object(("protocol", "port"), protocol={"enum": ["TCP"]}, port=_PORT)
_SERVICE_PORT = _object(
    ("name", "port", "targetPort"), name=_NAME, port=_PORT, targetPort=_NAME, appProtocol={"type": "string"}
)


def _kind(api_version: str, kind: str, spec: Schema) -> Schema:
    metadata = _object(("name",), name=_NAME, labels=_LABELS)
    return _object(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": api_version},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )


CORE_SCHEMAS: dict[str, Schema] = {
    "Service": _kind(
        "v1", "Service", _object(("selector", "ports"), selector=_LABELS, ports=_list(_SERVICE_PORT))
    ),
    # An integer: without a scale subresource nothing else is evaluated.
    "PodDisruptionBudget": _kind(
        "policy/v1",
        "PodDisruptionBudget",
        _object(
            ("selector", "minAvailable"), selector=_SELECTOR, minAvailable={"type": "integer", "minimum": 1}
        ),
    ),
    "NetworkPolicy": _kind(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        _object(
            ("podSelector", "policyTypes", "ingress"),
            podSelector=_SELECTOR,
            policyTypes=_list({"enum": ["Ingress", "Egress"]}),
            ingress=_list(
                {
                    "type": "object",
                    "properties": {
                        "from": _list(_object(podSelector=_SELECTOR, namespaceSelector=_SELECTOR)),
                        "ports": _list(_POLICY_PORT),
                    },
                    "additionalProperties": False,
                }
            ),
        ),
    ),
}


def containers(document: Document) -> Iterator[tuple[str, Document]]:
    """Group name and container of every pod template of a RayService."""
    cluster = document["spec"]["rayClusterConfig"]
    yield "head", cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]["containers"][0]
