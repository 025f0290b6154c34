"""Who yields to whom on shared cores."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

GIVE_WAY = """
import os
from cluster.process_setup import give_way_to_ranks

os.nice({before})
if os.getuid() == 0:
    os.setuid(65534)  # root may do what a pod's user may not
give_way_to_ranks()
print(os.nice(0))
"""


@pytest.mark.parametrize(("before", "after"), [(0, 4), (4, 4), (15, 15)])
def test_a_replica_becomes_nicer_and_never_less_nice(before: int, after: int) -> None:
    if os.nice(0) != 0:
        pytest.skip("the tests themselves run at another niceness than 0")
    command = [sys.executable, "-c", GIVE_WAY.format(before=before)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert int(result.stdout) == after
