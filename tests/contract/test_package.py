"""What an installation gets."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

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


def test_the_demo_pictures_are_what_their_script_draws(repo_root: Path) -> None:
    folder = repo_root / "deploy" / "demo"
    script = runpy.run_path(str(folder / "draw.py"))
    try:
        drawn = script["draw"]()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    questions = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    assert [asdict(question) for _, question in drawn] == questions
    for picture, question in drawn:
        assert (folder / question.picture).stat().st_size < 60_000
        with Image.open(folder / question.picture) as committed:
            difference = ImageChops.difference(committed.convert("RGB"), picture.convert("RGB"))
        # Other versions of a font library or of JPEG may round a pixel differently.
        assert sum(ImageStat.Stat(difference).mean) < 1
