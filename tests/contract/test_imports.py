"""Who may import whom, read from the source: also imports inside functions count."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Ban:
    """Files matching `files` but `allowed` import nothing that `modules` names or contains, save `but`."""

    files: str
    modules: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    but: tuple[str, ...] = ()  # modules below those banned that may be imported


TOP_FOLDERS = ("model", "cluster", "protos", "deploy")

BANS = (
    Ban("model/**/*.py", ("ray", "grpc", "grpc_health", "grpc_status", "cluster", "protos")),
    Ban("protos/**/*.py", ("ray", "torch", "model", "cluster")),
    Ban("model/sched/**/*.py", ("torch", "numpy")),
    Ban("model/text/**/*.py", ("torch",), allowed=("model/text/images.py", "model/text/pixels.py")),
    Ban("*/**/*.py", ("deepspeed",), allowed=("model/parallel.py",)),
    Ban("*/**/*.py", ("triton",), allowed=("model/kernels/",)),
    Ban("*/**/*.py", ("ray",), allowed=("cluster/",)),
    Ban(
        "*/**/*.py",
        ("grpc", "grpc_health", "grpc_reflection", "grpc_status"),
        allowed=("cluster/", "protos/"),
    ),
    # Inside model: the plain types at the bottom, then the books, then what computes, then the loop.
    Ban("model/types.py", ("model",), but=("model.grammar",)),
    Ban("model/grammar.py", ("model",)),
    Ban("model/errors.py", ("model",)),
    Ban("model/sched/**/*.py", ("model.net", "model.text", "model.kernels", "model.engine", "model.runner")),
    Ban(
        "model/kernels/**/*.py", ("model.net", "model.text", "model.engine", "model.runner", "model.dispatch")
    ),
    # The device engine computes what it is told: of books steps and sizes, of the network a few functions.
    Ban(
        "model/device/**/*.py",
        ("model.text", "model.engine", "model.runner", "model.dispatch", "model.local", "model.sched"),
        but=("model.sched.blocks", "model.sched.step", "model.sched.config"),
    ),
    Ban("model/kernels/**/*.py", ("model.device",)),
    Ban("model/net/**/*.py", ("model.device",)),
    Ban("model/net/**/*.py", ("model.engine", "model.runner", "model.text.chat", "model.local")),
    Ban("model/parallel.py", ("model.net", "model.dispatch", "model.engine", "model.runner", "model.text")),
    Ban("model/dispatch.py", ("model.net", "model.engine", "model.runner", "model.text")),
    Ban("model/text/**/*.py", ("model.net", "model.engine", "model.runner", "model.parallel")),
)


@cache  # every file is under several bans
def imports(source: str) -> tuple[tuple[int, str], ...]:
    """Line and full name of everything imported: `from a import b` gives a.b."""
    return tuple(_imports(source))


def _imports(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            for name in node.names:
                yield node.lineno, f"{node.module}.{name.name}"


def source_files(root: Path, pattern: str) -> Iterator[Path]:
    """Our own Python outside of tests, relative to the root; the first part may be `*`."""
    first, rest = pattern.split("/", 1)
    for top in TOP_FOLDERS if first == "*" else (first,):
        yield from (path.relative_to(root) for path in sorted((root / top).glob(rest)))


def offences(root: Path, ban: Ban) -> list[str]:
    """Every import that `ban` forbids, as `file:line imports module`."""
    found = []
    for path in source_files(root, ban.files):
        if any(path.as_posix().startswith(allowed) for allowed in ban.allowed):
            continue
        for line, name in imports((root / path).read_text()):
            if _is_below(name, ban.modules) and not _is_below(name, ban.but):
                found.append(f"{path}:{line} imports {name}")
    return found


def _is_below(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


@pytest.mark.parametrize("ban", BANS, ids=lambda ban: f"{ban.files}-{ban.modules[0]}")
def test_imports_point_in_one_direction(repo_root: Path, ban: Ban) -> None:
    assert offences(repo_root, ban) == []


def test_every_ban_looks_at_a_file(repo_root: Path) -> None:
    blind = [ban.files for ban in BANS if not list(source_files(repo_root, ban.files))]
    assert blind == []


@pytest.mark.parametrize(
    "line",
    [
        "import ray",
        "from ray import serve",
        "def f():\n    import ray.serve as s",
        "from cluster.app import build",
    ],
)
def test_an_import_against_the_direction_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "model" / "sched").mkdir(parents=True)
    (tmp_path / "model" / "sched" / "bad.py").write_text(line + "\n")
    (tmp_path / "model" / "good.py").write_text("import rayon\nfrom model import types\n")
    assert len(offences(tmp_path, BANS[0])) == 1


def test_scheduling_needs_no_torch_at_run_time(repo_root: Path) -> None:
    modules = [
        path.with_suffix("").as_posix().replace("/", ".")
        for path in source_files(repo_root, "model/sched/*.py")
    ]
    code = f"import sys\nfor m in {modules}: __import__(m)\nsys.exit('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=repo_root, check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
