"""What a run of training says: a line of JSON every so many steps."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from model.nano.data.tasks import NAMES
from model.nano.train.losses import Measured


class Log:
    """Sums since the last line; a line every 50 steps, from the first rank."""

    EVERY = 50

    def __init__(self, path: Path, rank: int) -> None:
        """Other ranks than the first say nothing."""
        self._file = path.open("a", encoding="utf-8") if rank == 0 else None
        self._pending: list[tuple[Measured, int]] = []
        self._since_s = time.perf_counter()
        self._spent_s = [0.0, 0.0]

    def add(
        self,
        step: int,
        progress: float,
        num_made: int,
        results: list[tuple[Measured, int]],
        spent_s: tuple[float, float],
    ) -> None:
        """Results of a step with their numbers of tokens; `spent_s`: taking in chunks, and the step."""
        if self._file is None:
            return
        self._spent_s = [self._spent_s[0] + spent_s[0], self._spent_s[1] + spent_s[1]]
        self._pending += [(m, n) for m, n in results]
        if step % self.EVERY:
            return
        exact_K2 = torch.stack([m.exact_K2 for m, _ in self._pending]).sum(0).tolist()
        places = torch.stack([m.place_right_2 for m, _ in self._pending]).sum(0).tolist()
        drafts = torch.stack([m.draft_right_I2 for m, _ in self._pending]).sum(0).tolist()
        load_LE = torch.stack([m.load_LE for m, _ in self._pending]).mean(0)
        num_experts = load_LE.shape[1]
        now_s = time.perf_counter()
        line = {
            "step": step,
            "progress": round(progress, 4),
            "steps_per_s": round(self.EVERY / (now_s - self._since_s), 2),
            "chunks_made": num_made,
            "intake_step_ms": [round(spent_s * 1e3 / self.EVERY) for spent_s in self._spent_s],
            "loss": round(
                float(sum(m.token_loss for m, _ in self._pending)) / sum(n for _, n in self._pending), 4
            ),
            "exact": {k: round(a / b, 3) for k, (a, b) in zip(NAMES, exact_K2, strict=True) if b},
            "places": round(places[0] / max(places[1], 1), 3),
            "drafts": [round(right / max(count, 1), 3) for right, count in drafts],
            "load": [
                round(float(load_LE.min()) * num_experts, 2),
                round(float(load_LE.max()) * num_experts, 2),
            ],
        }
        self._pending, self._since_s, self._spent_s = [], now_s, [0.0, 0.0]
        text = json.dumps(line)
        self._file.write(text + "\n")
        self._file.flush()
        print(text, flush=True)  # noqa: T201 - a run of minutes shows how it goes

    def close(self) -> None:
        """End the file."""
        if self._file is not None:
            self._file.close()
