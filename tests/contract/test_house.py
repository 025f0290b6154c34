"""Sizes, READMEs, pins: what keeps the house tidy, held by a test."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TOP_FOLDERS = ("cluster", "model", "protos", "deploy", "tests")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


@pytest.fixture(scope="module")
def project(repo_root: Path) -> dict[str, Any]:
    return tomllib.loads((repo_root / "pyproject.toml").read_text())


def python_files(root: Path) -> Iterator[Path]:
    for top in TOP_FOLDERS:
        for path in sorted((root / top).rglob("*.py")):
            if not path.stem.endswith(("_pb2", "_pb2_grpc")):
                yield path


def requirement_name(requirement: str) -> str:
    """`Ray[serve]>=2` -> ray, spelled as an index does."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def test_no_file_is_longer_than_400_lines(repo_root: Path) -> None:
    sizes = {
        str(path.relative_to(repo_root)): len(path.read_text().splitlines())
        for path in python_files(repo_root)
    }
    assert sizes
    assert {path: size for path, size in sizes.items() if size > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_60_lines(repo_root: Path) -> None:
    long = []
    for path in python_files(repo_root):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if num_lines > MAX_FUNCTION_LINES:
                    long.append(f"{path.relative_to(repo_root)}:{node.name} {num_lines}")
    assert long == []


@pytest.mark.parametrize("folder", TOP_FOLDERS)
def test_every_top_folder_has_a_readme(repo_root: Path, folder: str) -> None:
    assert len((repo_root / folder / "README.md").read_text().splitlines()) > 3


def test_the_tests_are_no_packages(repo_root: Path) -> None:
    assert list((repo_root / "tests").rglob("__init__.py")) == []


def test_the_base_install_is_the_client_alone(project: dict[str, Any]) -> None:
    names = {requirement_name(requirement) for requirement in project["project"]["dependencies"]}
    assert names == {"grpcio", "protobuf", "rich", "typer"}


def test_every_declared_package_is_pinned(repo_root: Path, project: dict[str, Any]) -> None:
    pins = [
        line for line in (repo_root / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    ]
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    extras = project["project"]["optional-dependencies"]
    declared = [*project["project"]["dependencies"], *extras["server"], *extras["dev"]]
    missing = {requirement_name(line) for line in declared} - {requirement_name(pin) for pin in pins}
    assert missing == set()


def test_torch_is_pinned_without_a_build(repo_root: Path) -> None:
    assert "torch==2.13.0" in (repo_root / "constraints.txt").read_text().splitlines()


def test_ci_can_be_run(repo_root: Path) -> None:
    assert os.access(repo_root / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("target", ["setup", "demo", "test", "test-fast", "check", "bench", "protos", "down"])
def test_make_target_stands_on_the_installation(repo_root: Path, target: str) -> None:
    rules = dict(re.findall(r"^([a-z-]+): (.+)$", (repo_root / "Makefile").read_text(), re.MULTILINE))
    assert rules[target] == "$(STAMP)"
