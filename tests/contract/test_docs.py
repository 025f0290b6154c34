"""The README tells the truth where a program can check it."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from pathlib import Path
from typing import Self

import pytest
from google.protobuf import json_format

from cluster import client
from cluster.config import ClusterConfig
from cluster.convert import MAX_ID_BYTES
from cluster.frontdoor_server import ServerOptions
from cluster.identity import TenantLimits
from model import errors
from model.sampling import MAX_STOP_STRING_CHARS, MAX_STOP_STRINGS
from model.text.images import ImageLimits
from protos.fluyt.v1 import inference_pb2 as pb

MIB = 1 << 20
SECTIONS = (
    "Use it",
    "The path of a request",
    "Files",
    "Ports",
    "Limits",
    "Status codes",
    "What bad input gets",
    "Numbers",
    "On Kubernetes",
)


@pytest.fixture(scope="module")
def readme(repo_root: Path) -> str:
    return (repo_root / "README.md").read_text()


def rows(readme: str, section: str) -> dict[str, str]:
    """First cell -> second cell of the first table under a heading."""
    text = readme.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    cells = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0].strip(): row[1].strip() for row in cells[2:]}


def block(readme: str, language: str) -> str:
    """The first fenced block of a language."""
    return readme.split(f"```{language}\n", 1)[1].split("```", 1)[0]


def test_the_readme_has_its_sections(readme: str) -> None:
    assert [section for section in SECTIONS if f"\n## {section}\n" not in readme] == []


def test_links_lead_to_files(repo_root: Path) -> None:
    broken = [
        f"{page.relative_to(repo_root)}: {target}"
        for page in [*repo_root.glob("*.md"), *repo_root.glob("[a-z]*/README.md")]
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_the_files_table_names_folders_that_exist(repo_root: Path, readme: str) -> None:
    named = re.findall(r"`([a-z0-9/]+/)`", "\n".join(rows(readme, "Files")))
    assert named
    assert [name for name in named if not (repo_root / name).is_dir()] == []


def test_the_ports_are_the_defaults(readme: str) -> None:
    frontdoor = ClusterConfig().frontdoor
    assert [port for port in rows(readme, "Ports") if port.isdigit()] == [
        str(frontdoor.port),
        str(frontdoor.health_port),
    ]


def test_the_limits_are_the_defaults(readme: str) -> None:
    images, config = ImageLimits(), ClusterConfig()
    table = rows(readme, "Limits")
    expected = {
        "images in a request": f"{images.max_images}",
        "tiles of an image": f"{images.max_tiles}",
        "side of an image; pixels of an image (from the header, before decoding)": (
            f"{images.max_side_px}; {images.max_pixels // 10**6} MP"
        ),
        "size of a message": f"{ServerOptions().max_message_bytes // MIB} MiB",
        "stop strings; characters of one": f"{MAX_STOP_STRINGS}; {MAX_STOP_STRING_CHARS}",
        "samples of a request": f"{config.admission.max_samples}",
        "`request_id`, `task_id`": f"{MAX_ID_BYTES} bytes",
        "longest deadline, also that of a call without one": f"{config.admission.max_deadline_s:.0f} s",
        "open requests of a front door, and of one tenant at it": f"{config.admission.max_open_requests}",
        "bytes of open requests at a front door": f"{config.admission.max_open_bytes // MIB} MiB",
        "waiting requests; waiting tokens, per gang": (
            f"{config.queue.max_requests}; {config.queue.max_tokens}"
        ),
    }
    assert table == expected
    assert TenantLimits().max_open_requests == config.admission.max_open_requests


def test_every_error_of_the_tree_has_a_status_row(readme: str) -> None:
    tree = [value for value in vars(errors).values() if inspect.isclass(value)]
    codes = {value.code for value in tree if issubclass(value, errors.FluytError)}
    assert {row.strip("`") for row in rows(readme, "Status codes")} == codes


def test_the_grpcurl_line_is_a_request_the_service_takes(readme: str) -> None:
    command = block(readme, "sh")
    match = re.search(r"-d '(.+)' localhost:(\d+) ([\w.]+)/(\w+)", command)
    assert match
    request = json_format.ParseDict(json.loads(match[1]), pb.GenerateRequest())
    assert request.WhichOneof("prompt") == "chat"
    service = pb.DESCRIPTOR.services_by_name["Inference"]
    assert (match[3], int(match[2])) == (service.full_name, ClusterConfig().frontdoor.port)
    assert match[4] in service.methods_by_name


def test_the_python_example_reads_as_the_client_is(
    readme: str, repo_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class FakeClient:
        def __init__(self, address: str) -> None:
            self.address = address

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *exc: object) -> None:
            pass

        async def generate(self, request: pb.GenerateRequest):  # type: ignore[no-untyped-def]
            assert request.chat.messages[0].content[0].image.data.startswith(b"\x89PNG")
            assert request.sampling.max_tokens == 64
            yield pb.GenerateEvent(delta=pb.Delta(text=f"from {self.address}"))

    assert set(inspect.signature(client.Client.generate).parameters) >= {"self", "request"}
    monkeypatch.setattr(client, "Client", FakeClient)
    monkeypatch.chdir(repo_root)
    exec(compile(block(readme, "python"), "README.md", "exec"), {"asyncio": asyncio})
    assert capsys.readouterr().out == "from localhost:50051"
