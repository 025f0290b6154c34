"""Puts this folder on the path, so that tests below it can `import checkpoints`.

Under --import-mode=importlib pytest adds no folder of tests to the path itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.gang import spawn_gang
from tests.model import gangs

_HERE = str(Path(__file__).parent)
if _HERE not in sys.path:
    sys.path.append(_HERE)


# The models of these tests are so small that a second thread costs more than it brings.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def gang_of_two() -> Iterator[gangs.Gang]:
    """A resident gang for whatever leaves it alive: each rank that starts imports torch, for seconds."""
    runner = spawn_gang(2, gangs.TaskWorker, num_threads=1)
    yield gangs.Gang(runner)
    runner.close()
