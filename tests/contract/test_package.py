"""What an installation gets."""

from __future__ import annotations

import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageChops

PACKAGES = ("cluster", "model", "protos")


@pytest.fixture(scope="module")
def wheel(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    subprocess.run(command, cwd=repo_root, check=True, capture_output=True)
    (path,) = target.glob("*.whl")
    return zipfile.ZipFile(path)


def test_every_file_of_the_packages_is_in_the_wheel(repo_root: Path, wheel: zipfile.ZipFile) -> None:
    here = {
        path.relative_to(repo_root).as_posix()
        for package in PACKAGES
        for path in (repo_root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert here - set(wheel.namelist()) == set()


def test_the_wheel_holds_nothing_but_the_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {*PACKAGES, "fluyt-0.1.0.dist-info"}


@pytest.mark.parametrize(
    "name",
    [
        "cluster/py.typed",
        "model/py.typed",
        "protos/py.typed",
        "protos/fluyt/v1/inference.proto",
        "protos/fluyt/v1/inference_pb2.pyi",
        "model/nano/chat_template.jinja",
        "model/nano/checkpoint/config.json",
        "model/nano/checkpoint/tokenizer.json",
    ],
)
def test_the_wheel_brings_what_is_no_python(wheel: zipfile.ZipFile, name: str) -> None:
    assert name in wheel.namelist()


def test_the_demo_picture_is_what_its_script_draws(repo_root: Path) -> None:
    folder = repo_root / "deploy" / "demo"
    assert (folder / "receipt.png").stat().st_size < 60_000
    drawn = runpy.run_path(str(folder / "receipt.py"))["draw_picture"]()
    with Image.open(folder / "receipt.png") as committed:
        difference = ImageChops.difference(committed.convert("RGB"), drawn)
    # 64 colours stand for all: no pixel may be far from its own.
    assert max(high for _, high in difference.getextrema()) <= 48
