"""The client is all that a base install has to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BLOCKER = """
import importlib.abc, sys

ALLOWED = {"grpc", "google", "cluster", "protos", "typing_extensions"}

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        top = name.partition(".")[0]
        extra = name.startswith(("google.rpc", "google.api"))
        if top in sys.stdlib_module_names or (top in ALLOWED and not extra):
            return None
        raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run_blocked(code: str, repo_root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKER + code],
        cwd=repo_root,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_client_imports_with_grpcio_and_protobuf_alone(repo_root: Path) -> None:
    done = run_blocked(
        "import cluster.client; print(cluster.client.Client('localhost:1').address)", repo_root
    )
    assert done.stdout == "localhost:1\n", done.stderr


def test_the_blocker_of_this_test_blocks(repo_root: Path) -> None:
    for name in ("torch", "google.rpc.status_pb2", "cluster.status"):
        assert "blocked" in run_blocked(f"import {name}", repo_root).stderr, name


def test_an_error_is_read_with_its_details_by_the_client_alone(repo_root: Path) -> None:
    code = """
import base64, grpc
from cluster.client import to_server_error
from google.protobuf import any_pb2
from protos.fluyt.v1 import error_details_pb2 as d

def packed(kind, message):
    return any_pb2.Any(type_url="type.googleapis.com/google.rpc." + kind, value=message.SerializeToString())

bad = d.ErrorBadRequest(field_violations=[d.ErrorBadRequest.FieldViolation(field="f", description="wrong")])
retry = d.ErrorRetryInfo(); retry.retry_delay.seconds = 2
status = d.ErrorStatus(
    code=8, message="full", details=[packed("BadRequest", bad), packed("RetryInfo", retry)])
error = grpc.aio.AioRpcError(
    grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(),
    grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString())), "full")
seen = to_server_error(error)
print(seen.code, seen.violations, seen.retry_after_s)
"""
    done = run_blocked(code, repo_root)
    assert done.stdout == "RESOURCE_EXHAUSTED (('f', 'wrong'),) 2.0\n", done.stderr
