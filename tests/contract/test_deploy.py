"""What deploy/ ships is valid, and says what cluster/config says."""

from __future__ import annotations

import copy
import importlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from cluster.app import DRAIN_MARGIN_S
from cluster.config import ClusterConfig, parse
from cluster.health import INFERENCE_SERVICE
from tests.contract.manifests import (
    CORE_SCHEMAS,
    Document,
    Schema,
    base_documents,
    containers,
    crd_schema,
    load_all,
    validate,
)


@pytest.fixture(scope="module")
def base(repo_root: Path) -> Path:
    return repo_root / "deploy" / "kuberay" / "base"


@pytest.fixture(scope="module")
def documents(base: Path) -> list[Document]:
    return base_documents(base)


@pytest.fixture(scope="module")
def rayservice(documents: list[Document]) -> Document:
    return next(document for document in documents if document["kind"] == "RayService")


@pytest.fixture(scope="module")
def rayservice_schema(shared_dir: Path) -> Schema:
    return crd_schema(shared_dir / "kuberay-crds" / "ray.io_rayservices.yaml")


@pytest.fixture(scope="module")
def serve_config(rayservice: Document) -> Document:
    return load_all(rayservice["spec"]["serveConfigV2"])[0]


@pytest.fixture(scope="module")
def config(serve_config: Document) -> ClusterConfig:
    return parse(serve_config["applications"][0]["args"])


def groups(rayservice: Document) -> dict[str, Document]:
    """Head and worker groups by name."""
    cluster = rayservice["spec"]["rayClusterConfig"]
    return {"head": cluster["headGroupSpec"]} | {
        group["groupName"]: group for group in cluster["workerGroupSpecs"]
    }


def custom_resources(group: Document) -> dict[str, int]:
    """What `ray start --resources=...` receives once a shell has read the line."""
    (argument,) = shlex.split(group["rayStartParams"]["resources"])
    resources: dict[str, int] = json.loads(argument)
    return resources


def port(container: Document, name: str) -> int:
    return next(int(item["containerPort"]) for item in container["ports"] if item["name"] == name)


# Valid by the schemas.


def test_rayservice_is_valid_by_its_crd(rayservice: Document, rayservice_schema: Schema) -> None:
    validate(rayservice, rayservice_schema)


def test_every_other_document_is_of_a_checked_kind_and_valid(documents: list[Document]) -> None:
    kinds = [document["kind"] for document in documents if document["kind"] != "RayService"]
    assert sorted(set(kinds)) == sorted(CORE_SCHEMAS)
    for document in documents:
        if document["kind"] != "RayService":
            validate(document, CORE_SCHEMAS[document["kind"]])


WRONG_RAYSERVICES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "unknown key in spec": (("spec", "serveConfigV3"), "applications: []"),
    "unknown key in a worker group": (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "maxReplica"), 2),
    "misspelt container key": (
        ("spec", "rayClusterConfig", "headGroupSpec", "template", "spec", "containers", 0, "imagePullpolicy"),
        "Always",
    ),
    "text for a number": (("spec", "rayClusterConfig", "workerGroupSpecs", 1, "replicas"), "two"),
    "number for text": (("spec", "rayClusterConfig", "rayVersion"), 2.6),
    "not one of the choices": (("spec", "rayClusterConfig", "authOptions", "mode"), "tokens"),
    "start parameter that is no text": (
        ("spec", "rayClusterConfig", "headGroupSpec", "rayStartParams", "num-cpus"),
        0,
    ),
}


@pytest.mark.parametrize("case", WRONG_RAYSERVICES)
def test_a_wrong_rayservice_is_refused(case: str, rayservice: Document, rayservice_schema: Schema) -> None:
    path, value = WRONG_RAYSERVICES[case]
    wrong = copy.deepcopy(rayservice)
    at: Any = wrong
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(wrong, rayservice_schema)


def test_a_worker_group_without_max_replicas_is_refused(
    rayservice: Document, rayservice_schema: Schema
) -> None:
    wrong = copy.deepcopy(rayservice)
    del wrong["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplicas"]
    with pytest.raises(jsonschema.ValidationError, match="maxReplicas"):
        validate(wrong, rayservice_schema)


@pytest.mark.parametrize("kind", sorted(CORE_SCHEMAS))
def test_an_unknown_key_in_a_core_kind_is_refused(kind: str, documents: list[Document]) -> None:
    wrong = copy.deepcopy(next(document for document in documents if document["kind"] == kind))
    wrong["spec"]["colour"] = "blue"
    with pytest.raises(jsonschema.ValidationError, match="colour"):
        validate(wrong, CORE_SCHEMAS[kind])


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(AssertionError, match="given twice"):
        load_all("spec:\n  replicas: 1\n  replicas: 2\n")


# What the operator checks only when it reconciles.


def test_the_name_leaves_room_for_what_the_operator_appends(rayservice: Document) -> None:
    name = rayservice["metadata"]["name"]
    assert len(name) <= 47
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)


def test_ray_in_the_manifest_is_ray_in_the_image(rayservice: Document, repo_root: Path) -> None:
    version = rayservice["spec"]["rayClusterConfig"]["rayVersion"]
    assert f"ray=={version}" in (repo_root / "constraints.txt").read_text().splitlines()


def test_ray_asks_for_a_token(rayservice: Document) -> None:
    assert rayservice["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}


def test_the_upgrade_never_splits_a_gang(rayservice: Document) -> None:
    assert rayservice["spec"]["upgradeStrategy"]["type"] == "NewCluster"


def test_the_head_has_the_port_the_operator_insists_on(rayservice: Document) -> None:
    assert port(dict(containers(rayservice))["head"], "serve") == 8000


def test_every_worker_group_says_how_many(rayservice: Document) -> None:
    for group in rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"], group["groupName"]


# What the manifests say is what the application asks for.


def test_serve_accepts_the_serve_config(serve_config: Document) -> None:
    ServeDeploySchema.model_validate(serve_config)


def test_the_application_is_ours_and_no_serve_proxy_runs(serve_config: Document) -> None:
    (application,) = serve_config["applications"]
    module, _, name = application["import_path"].partition(":")
    built = getattr(importlib.import_module(module), name)(application["args"])
    assert isinstance(built, Application)
    assert module == "cluster.app"
    assert serve_config["proxy_location"] == "Disabled"


def test_the_pods_bring_exactly_the_resources_the_deployments_take(
    rayservice: Document, config: ClusterConfig
) -> None:
    brought: dict[str, int] = {}
    for group in groups(rayservice).values():
        for resource, amount in custom_resources(group).items():
            brought[resource] = brought.get(resource, 0) + amount * group.get("replicas", 1)
    assert brought == config.resources()


def test_each_worker_group_brings_the_resource_it_is_named_for(rayservice: Document) -> None:
    for name, group in groups(rayservice).items():
        expected = "scheduler" if name == "head" else name.replace("-", "_")
        assert custom_resources(group) == {expected: 1}


def test_ports_of_the_front_door_agree_everywhere(
    documents: list[Document], rayservice: Document, config: ClusterConfig
) -> None:
    front = dict(containers(rayservice))["frontdoor"]
    service = next(document for document in documents if document["kind"] == "Service")
    served = {item["name"]: item["port"] for item in service["spec"]["ports"]}
    expected = {"grpc": config.frontdoor.port, "health": config.frontdoor.health_port}
    assert served == expected
    assert {name: port(front, name) for name in expected} == expected
    assert front["readinessProbe"]["grpc"]["port"] == config.frontdoor.health_port


def test_ports_in_the_manifest_are_the_defaults(config: ClusterConfig) -> None:
    default = ClusterConfig().frontdoor
    assert (config.frontdoor.port, config.frontdoor.health_port) == (default.port, default.health_port)


def test_the_front_door_listens_beyond_its_pod(config: ClusterConfig) -> None:
    assert config.frontdoor.host == "0.0.0.0"


def test_readiness_asks_for_the_service_that_health_knows(rayservice: Document) -> None:
    assert dict(containers(rayservice))["frontdoor"]["readinessProbe"]["grpc"]["service"] == INFERENCE_SERVICE


def test_every_pod_has_probes_of_its_own(rayservice: Document) -> None:
    for name, container in containers(rayservice):
        assert {"readinessProbe", "livenessProbe"} <= container.keys(), name
        assert container["livenessProbe"]["httpGet"] == {"path": "/api/local_raylet_healthz", "port": 52365}


def test_the_default_model_needs_neither_gpu_nor_volume(rayservice: Document) -> None:
    for name, group in groups(rayservice).items():
        assert "volumes" not in group["template"]["spec"], name
    for name, container in containers(rayservice):
        assert set(container["resources"]["limits"]) == {"cpu", "memory"}, name


def test_our_drain_ends_before_rays_and_rays_before_the_pod_is_killed(
    rayservice: Document, config: ClusterConfig
) -> None:
    for name, container in containers(rayservice):
        env = {item["name"]: item["value"] for item in container["env"]}
        grace_s = groups(rayservice)[name]["template"]["spec"]["terminationGracePeriodSeconds"]
        ray_drain_s = float(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert config.frontdoor.drain_s + DRAIN_MARGIN_S < ray_drain_s < grace_s, name


def test_no_pod_runs_as_root(rayservice: Document, repo_root: Path) -> None:
    for name, group in groups(rayservice).items():
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"] is True, name
    users = re.findall(r"^USER (\d+)", (repo_root / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert users
    assert int(users[-1]) > 0


# Selectors meet pods.


def selectors(documents: list[Document]) -> dict[str, dict[str, str]]:
    found = {}
    for document in documents:
        spec = document["spec"]
        selector = spec.get("podSelector") or spec.get("selector")
        if document["kind"] != "RayService":
            found[f"{document['kind']}/{document['metadata']['name']}"] = selector.get(
                "matchLabels", selector
            )
    return found


def selected(selector: dict[str, str], rayservice: Document) -> list[str]:
    """Names of the groups whose pods carry all labels; the operator adds the group's own."""
    names = []
    for name, group in groups(rayservice).items():
        labels = group["template"]["metadata"]["labels"] | {"ray.io/group": name}
        if selector.items() <= labels.items():
            names.append(name)
    return names


def test_the_service_selects_the_front_door_alone(documents: list[Document], rayservice: Document) -> None:
    assert selected(selectors(documents)["Service/fluyt-frontdoor"], rayservice) == ["frontdoor"]


def test_every_worker_group_has_a_disruption_budget_that_lets_one_pod_go(
    documents: list[Document], rayservice: Document
) -> None:
    budgets = {
        tuple(selected(document["spec"]["selector"]["matchLabels"], rayservice)): document["spec"][
            "minAvailable"
        ]
        for document in documents
        if document["kind"] == "PodDisruptionBudget"
    }
    replicas = {(name,): group["replicas"] for name, group in groups(rayservice).items() if name != "head"}
    assert budgets == {name: count - 1 for name, count in replicas.items()}


def test_every_pod_is_under_a_network_policy(documents: list[Document], rayservice: Document) -> None:
    assert selected(selectors(documents)["NetworkPolicy/fluyt-internal"], rayservice) == list(
        groups(rayservice)
    )


# kubectl's own reading.


def test_kubectl_builds_the_same_documents_with_the_image_filled_in(
    base: Path, documents: list[Document]
) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    built = load_all(
        subprocess.run([kubectl, "kustomize", str(base)], check=True, capture_output=True, text=True).stdout
    )
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert sorted((document["kind"], document["metadata"]["name"]) for document in built) == sorted(names)
    rayservice = next(document for document in built if document["kind"] == "RayService")
    assert {container["image"] for _, container in containers(rayservice)} == {"fluyt:0.1.0"}
