from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def number(name: str, line: str) -> int:
    found = re.findall(rf"{name}:?\s?(\d+)", line)
    return int(found[0]) if found else 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kernels_compile_for_hopper_and_load_16_bytes_at_a_time(repo_root: Path, tmp_path: Path) -> None:
    """The interpreter runs what the compiler refuses, and knows nothing of layouts that make loads wide."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.model.kernels.compile_linear", "few"],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, cwd=repo_root,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    print(result.stdout)
    lines = result.stdout.splitlines()
    assert len(lines) == 34
    for line in lines:
        assert number("stack", line) == 0, line
        if "gemv_kernel" in line:
            # Four rows of weights at least, and x; barriers for the sums at the end alone.
            assert number(r"LDG\.E\.128", line) >= 4, line
            assert number("BAR", line) <= 6, line
        if "dot_kernel" in line:
            assert number(r"LDGSTS\.E\.BYPASS\.128", line) > 0, line
            assert number("HGMMA", line) > 0, line
            assert number(r"F2F\.", line) == 0, "fp8 is converted by the slow instruction: " + line
