"""The committed stubs are those of the .proto files, and the public interface only grows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from protos.fluyt.v1 import inference_pb2 as pb
from protos.fluyt.v1 import steps_pb2
from tests.cluster.front.snapshot import SNAPSHOT, interface


def test_stubs_are_what_the_proto_files_give(repo_root: Path, tmp_path: Path) -> None:
    sources = sorted(
        path.relative_to(repo_root).as_posix() for path in repo_root.glob("protos/fluyt/v1/*.proto")
    )
    assert len(sources) >= 2
    outs = [f"--{kind}={tmp_path}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *outs, *sources], cwd=repo_root, check=True
    )
    made = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.py*")}
    kept = {
        path.relative_to(repo_root).as_posix(): path.read_text()
        for path in (repo_root / "protos").rglob("*_pb2*")
        if path.suffix in {".py", ".pyi"}
    }
    assert made == kept


def test_stubs_import_on_the_oldest_client_we_allow(repo_root: Path) -> None:
    stub = (repo_root / "protos/fluyt/v1/inference_pb2.py").read_text()
    major, minor = re.findall(r"Protobuf Python Version: (\d+)\.(\d+)", stub)[0]
    assert (int(major), int(minor)) <= (6, 33), "the floor of pyproject.toml"
    grpc_stub = (repo_root / "protos/fluyt/v1/inference_pb2_grpc.py").read_text()
    assert "GRPC_GENERATED_VERSION = '1.76.0'" in grpc_stub


def test_nothing_of_the_last_release_is_gone_or_different() -> None:
    released, now = json.loads(SNAPSHOT.read_text()), interface()
    changed = {name: (value, now.get(name)) for name, value in released.items() if now.get(name) != value}
    assert not changed


def test_no_field_number_of_a_message_is_used_twice() -> None:
    numbers: dict[str, list[int]] = {}
    for name, value in interface().items():
        if isinstance(value, list) and isinstance(value[0], int):
            numbers.setdefault(name.rpartition(".")[0], []).append(value[0])
    assert all(len(set(given)) == len(given) for given in numbers.values())


def test_the_service_has_the_five_methods_and_only_generate_streams() -> None:
    service = pb.DESCRIPTOR.services_by_name["Inference"]
    streaming = {method.name: method.server_streaming for method in service.methods}
    assert streaming == {
        "Generate": True,
        "Abort": False,
        "Tokenize": False,
        "GetModelInfo": False,
        "GetLoad": False,
    }
    assert not any(method.client_streaming for method in service.methods)


def test_every_scalar_sampling_field_is_optional() -> None:
    fields = pb.SamplingOptions.DESCRIPTOR.fields
    assert all(field.has_presence or field.is_repeated for field in fields)


def test_the_tenant_is_no_field_anywhere() -> None:
    assert not [name for name in interface() if "tenant" in name.lower()]


@pytest.mark.parametrize("name", ["GenerateEvent", "Usage", "ModelInfo"])
def test_public_names_are_not_those_of_the_internal_service(name: str) -> None:
    assert name not in steps_pb2.DESCRIPTOR.message_types_by_name
