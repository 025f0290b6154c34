from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

WEIGHTS_OF_A_THREAD = 256  # in a turn: 32 rows of a warp, two groups of 128


def number(name: str, line: str) -> int:
    found = re.findall(rf"\b{name}:?\s?(\d+)", line)
    return int(found[0]) if found else 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_int4_costs_less_than_two_instructions_a_weight(repo_root: Path, tmp_path: Path) -> None:
    """Three took longer than reading them, and only the compiler shows what moves between threads."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.model.kernels.compile_experts"],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, cwd=repo_root,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    print(result.stdout)
    lines = result.stdout.splitlines()
    assert all(number("stack", line) == 0 for line in lines)
    # Only unpacking nibbles takes so many; the other loop of a kernel is the shared expert's.
    quads = [line for line in lines if line.startswith("int4") and number("SHF", line) >= 90]
    assert len(quads) == 4
    for line in quads:
        assert number("loop", line) < 2 * WEIGHTS_OF_A_THREAD, line
        assert number("STS", line) == 0, line
        assert number("BAR", line) <= 2, line
        assert number("LDGSTS", line) > 0 and number("HMMA", line) > 0, line
