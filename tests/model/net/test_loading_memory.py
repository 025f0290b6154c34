"""A rank needs memory for its share of the weights, and for one tensor more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import checkpoints
import pytest

LOAD_AND_MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from model.placement import ExpertMap
from model.weights import load_decoder, open_checkpoint

def anonymous_bytes():
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("RssAnon"))
    return int(line.split()[1]) << 10

directory, world_size, rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
checkpoint = open_checkpoint(directory)
before, peak, done = anonymous_bytes(), [0], threading.Event()
def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous_bytes())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
experts = ExpertMap(checkpoint.config.text.num_experts, world_size)
decoder = load_decoder(checkpoint, experts, rank, torch.float32, torch.device("cpu"))
done.set()
thread.join()
share = sum(p.numel() * p.element_size() for p in decoder.parameters())
print(max(peak[0], anonymous_bytes()) - before, share)
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_peak_is_the_share_and_one_tensor(tmp_path: Path) -> None:
    directory = checkpoints.make_hub_checkpoint(
        tmp_path, hidden=512, num_experts=64, expert_width=512, num_files=6, with_vision=False
    )
    assert sum(file.stat().st_size for file in directory.glob("*.safetensors")) >= 1 << 30
    largest_tensor = 64 * 512 * 512 * 4
    for rank in (0, 1):
        command = [sys.executable, "-c", LOAD_AND_MEASURE, str(directory), "2", str(rank)]
        output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
        peak, share = map(int, output.split())
        print(f"rank {rank}: peak {peak >> 20} MiB, share {share >> 20} MiB")
        assert share < 0.6 * (1 << 30), "half of the experts"
        assert peak <= 1.15 * share + largest_tensor, (peak, share)
