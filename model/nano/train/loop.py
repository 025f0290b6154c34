"""The loop: chunks from worker processes into a buffer on the GPU, one step from several chunks.

One process per GPU (`torchrun`), gradients averaged by all-reduce. Progress is time, not steps: a run
that was given ten minutes ends after ten minutes with its learning rate at zero.
"""

from __future__ import annotations

import math
import random
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from model.config import read_config
from model.nano.train.chunks import (
    LOOKS,
    NUM_KINDS,
    NUM_SLOTS,
    SHAPES,
    SMALL,
    TEXT,
    TILED,
    TOOLS,
    ChunkShape,
    ChunkStream,
)
from model.nano.train.finish import network_of
from model.nano.train.graphs import ChunkRunner
from model.nano.train.intake import Intake, Kept
from model.nano.train.log import Log
from model.nano.train.losses import Measured
from model.nano.train.muon import Muon
from model.nano.train.network import Network, initialise, narrow

# Chunks of a step: while only reading is learned, then by turns.
READING_STEP = (SMALL, SMALL, TEXT)
WHOLE_STEPS: tuple[tuple[ChunkShape, ...], ...] = tuple(
    (SMALL, TEXT, third) for third in (TILED, LOOKS, TILED, LOOKS, TILED, TOOLS)
)
# A step takes in so many new chunks; those it has are used several times, with other neighbours.
MOST_TAKEN = 2
NUM_KEPT = {SMALL: 60, TILED: 40, LOOKS: 60, TOOLS: 40, TEXT: 60}
# A worker's seconds for one chunk differ; how often each is made follows from the steps' needs.
READING_SHARES, WHOLE_SHARES = (4.0, 0.0, 0.0, 0.0, 0.4, 1.0), (3.0, 1.5, 1.0, 0.4, 0.7, 0.0)
CLOCK_EVERY = 20  # steps
WARM_STEPS = 100
BIAS_RATE = 2e-3  # of the router biases, DeepSeek-V3's way of balancing
# Weights beside that of the answers' tokens: labels of places, first and later; drafts.
PLACE_WEIGHT, LATE_PLACE_WEIGHT, PLACES_UNTIL = 1.0, 0.3, 0.6
DRAFT_WEIGHT = 0.1
ADAM_BETAS = (0.9, 0.98)
MATRICES = ("qkvg", "attention.output", "gate_up", "down", "in_proj.weight", "out_proj.weight", "fc1.weight",
            "fc2.weight", "projector", "eh_proj", "down1.weight", "down2.weight")  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How a run goes. Times in seconds, learning rate in AdamW's terms."""

    fonts: Path
    checkpoint: Path
    out: Path
    run_s: float
    stop_at_s: float = math.inf  # of the epoch: whatever was planned, the run ends then
    start_s: float = 0.0  # of the whole, what earlier runs have had
    total_s: float = 0.0
    reading_share: float = 0.12  # of the whole: reading alone
    draft_share: float = 0.25  # of the whole: when the MTP layers join in
    decay_share: float = 0.45  # of the whole: the learning rate falls to zero over so much of the end
    learning_rate: float = 2e-3
    seed: int = 1
    num_workers: int = 14
    resume: Path | None = None


class Trainer:
    """One GPU's part of a run."""

    def __init__(self, plan: Plan, rank: int, world_size: int, device: torch.device) -> None:
        self.plan, self.rank, self.world_size, self.device = plan, rank, world_size, device
        config = read_config(plan.checkpoint)
        self.network = Network(config, NUM_SLOTS, NUM_KINDS)
        initialise(self.network, torch.Generator().manual_seed(plan.seed))
        self.network.to(device)
        self.trained = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        # What the optimizers move, in float32; the network computes with copies in bfloat16.
        self.masters = {n: nn.Parameter(p.detach().clone()) for n, p in self.trained.items()}
        self.muon = Muon(p for n, p in self.masters.items() if _is_matrix(n, p))
        self.adam = torch.optim.AdamW(
            [p for n, p in self.masters.items() if not _is_matrix(n, p)],
            lr=plan.learning_rate, betas=ADAM_BETAS, weight_decay=0.0, fused=device.type == "cuda",
        )  # fmt: skip
        self.step = 0
        if plan.resume is not None:
            self._load(plan.resume)
        narrow(self.network)
        self.runner = ChunkRunner(self.network, self.trained.values(), device)
        self.shares = torch.tensor(READING_SHARES).share_memory_()
        self.kept: dict[ChunkShape, deque[Kept]] = {s: deque(maxlen=NUM_KEPT[s]) for s in SHAPES}
        self.rng = random.Random(plan.seed + rank)
        self.began_s = time.perf_counter()

    @property
    def progress(self) -> float:
        """Share of the whole that is behind."""
        spent_s = self.plan.start_s + time.perf_counter() - self.began_s
        return min(1.0, spent_s / (self.plan.total_s or self.plan.run_s))

    def run(self) -> None:
        """Steps until the time is over; writes the log as it goes, the state at the end."""
        self.began_s = time.perf_counter()
        seed = self.plan.seed * 97 + self.rank + 7919 * int(self.plan.start_s)
        stream = ChunkStream(self.plan.fonts, self.plan.checkpoint, seed, self.shares)
        loader = DataLoader(
            stream, batch_size=None, num_workers=self.plan.num_workers, prefetch_factor=2, in_order=False
        )
        with (
            closing(Log(self.plan.out / "log.jsonl", self.rank)) as log,
            closing(Intake(loader, self.device)) as intake,
        ):
            self._run(intake, log)
        self._save()
        if self.rank == 0:
            spent_s = self.plan.start_s + time.perf_counter() - self.began_s
            print(f"{spent_s:.0f} s of training, {self.step} steps", flush=True)  # noqa: T201

    def _run(self, intake: Intake, log: Log) -> None:
        num_made = 0
        while self._goes_on():
            progress = self.progress
            is_reading = progress < self.plan.reading_share
            self.shares.copy_(torch.tensor(READING_SHARES if is_reading else WHOLE_SHARES))
            wanted = READING_STEP if is_reading else WHOLE_STEPS[self.step % len(WHOLE_STEPS)]
            entered_s = time.perf_counter()
            num_made += self._take_in(intake, wanted)
            taken_s = time.perf_counter()
            chosen = [self.rng.choice(self.kept[shape]) for shape in wanted]
            has_drafts = progress >= self.plan.draft_share
            with intake.lock:
                for kept in chosen:
                    self.runner.prepare(kept.shape, kept.chunk, has_drafts=has_drafts)
            measured = self._step(chosen, progress, has_drafts=has_drafts)
            log.add(
                self.step, progress, num_made, measured, (taken_s - entered_s, time.perf_counter() - taken_s)
            )

    def _take_in(self, intake: Intake, wanted: tuple[ChunkShape, ...]) -> int:
        """Take what has come in; wait only while a kind that this step needs has nothing at all."""
        num_taken = 0
        while True:
            has_all = all(self.kept[shape] for shape in wanted)
            if has_all and num_taken >= MOST_TAKEN:
                return num_taken
            kept = intake.take(wait=not has_all)
            if kept is None:
                return num_taken
            self.kept[kept.shape].append(kept)
            num_taken += 1

    def _step(self, chosen: list[Kept], progress: float, *, has_drafts: bool) -> list[tuple[Measured, int]]:
        self.runner.zero()
        num_tokens = sum(kept.num_targets for kept in chosen)
        num_globals = max(1, sum(kept.shape.num_globals for kept in chosen))
        place = PLACE_WEIGHT if progress < PLACES_UNTIL else LATE_PLACE_WEIGHT
        results: list[tuple[Measured, int]] = []
        for kept in chosen:
            share = kept.shape.num_globals / num_globals / max(1, kept.num_marks)
            measured = self.runner.run(
                kept.shape, kept.chunk,
                token=1 / num_tokens, place=place * share, draft=DRAFT_WEIGHT / num_tokens,
                has_drafts=has_drafts,
            )  # fmt: skip
            results.append((measured, kept.num_targets))
        self._share_gradients()
        rate = self.plan.learning_rate * self._rate(progress)
        norm = torch.nn.utils.clip_grad_norm_(self.masters.values(), 1.0)
        assert self.step % Log.EVERY or bool(norm.isfinite()), "the gradient is not finite"
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.muon.step(rate)
        with torch.no_grad():
            torch._foreach_copy_(list(self.trained.values()), list(self.masters.values()))
        self._balance([m.load_LE for m, _ in results], self._rate(progress))
        self.step += 1
        return results

    def _rate(self, progress: float) -> float:
        warm = min(1.0, (self.step + 1) / WARM_STEPS)
        return warm * min(1.0, (1 - progress) / self.plan.decay_share)

    def _share_gradients(self) -> None:
        """Mean over the GPUs, in float32, onto the masters."""
        flat = torch.cat([_grad_of(parameter).float().flatten() for parameter in self.trained.values()])
        if self.world_size > 1:
            dist.all_reduce(flat, op=dist.ReduceOp.AVG)
        parts = flat.split([master.numel() for master in self.masters.values()])
        for master, part in zip(self.masters.values(), parts, strict=True):
            master.grad = part.view_as(master)

    def _balance(self, loads: list[torch.Tensor], rate: float) -> None:
        """Experts with less than their share get a higher bias, and the other way round."""
        load_LE = torch.stack(loads).mean(0)
        if self.world_size > 1:
            dist.all_reduce(load_LE, op=dist.ReduceOp.AVG)
        moes = [layer.mlp for layer in self.network.decoder.layers if layer.is_moe]
        for moe, load_E in zip(moes, load_LE, strict=True):
            moe.router_bias += BIAS_RATE * rate * (load_E.mean() - load_E).sign()

    def _goes_on(self) -> bool:
        """Asked by all ranks alike, answered by the first one's clock; now and then, because it waits."""
        if self.step % CLOCK_EVERY:
            return True
        is_over = time.perf_counter() - self.began_s >= self.plan.run_s or time.time() >= self.plan.stop_at_s
        answer = torch.tensor(is_over, dtype=torch.int32, device=self.device)
        if self.world_size > 1:
            dist.broadcast(answer, 0)
        return not bool(answer)

    def _save(self) -> None:
        if self.rank != 0:
            return
        state = {
            "network": self.network.state_dict() | {n: p.detach() for n, p in self.masters.items()},
            "adam": self.adam.state_dict(),
            "muon": self.muon.state_dict(),
            "step": self.step,
        }
        torch.save(state, self.plan.out / "state.pt")

    def _take_masters(self) -> None:
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(self.trained[name])

    def _load(self, path: Path) -> None:
        """A state goes on as it was; a checkpoint's weights get a fresh optimizer and label head."""
        if path.is_dir():
            weights = network_of(path).state_dict()
            del weights["places"]
            self.network.load_state_dict(weights, strict=False)
            # From zeros the new head learns before it sends anything back: the tower knows its letters.
            torch.nn.init.zeros_(self.network.places)
            self._take_masters()
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self._take_masters()
        self.adam.load_state_dict(state["adam"])
        self.muon.load_state_dict(state["muon"])
        self.step = state["step"]


def _grad_of(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None, parameter.shape
    return parameter.grad


def _is_matrix(name: str, parameter: torch.Tensor) -> bool:
    return parameter.dim() >= 2 and name.endswith(MATRICES)


def train(plan: Plan, rank: int, world_size: int) -> None:
    """One process of a run: set up the device and the group, train, leave."""
    torch.set_float32_matmul_precision("high")
    if torch.cuda.is_available():
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if world_size > 1:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", device_id=device if device.type == "cuda" else None
        )
    trainer = Trainer(plan, rank, world_size, device)
    trainer.run()
    if world_size > 1:
        dist.destroy_process_group()
