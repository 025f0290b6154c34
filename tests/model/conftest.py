"""Puts this folder on the path, so that tests below it can `import checkpoints`.

Under --import-mode=importlib pytest adds no folder of tests to the path itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

_HERE = str(Path(__file__).parent)
if _HERE not in sys.path:
    sys.path.append(_HERE)


# The models of these tests are so small that a second thread costs more than it brings.
torch.set_num_threads(1)
