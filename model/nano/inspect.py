"""What answers alone do not show: accepted drafts, load of the experts, distance of two checkpoints.

Runs the training forward over whole conversations: prompt and the engine's own greedy answer.

Shapes: L tokens, H hidden, V vocabulary, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from model.local import open_server, prompt_builder
from model.nano.data.canvas import Style
from model.nano.data.episodes import ROWS, episodes
from model.nano.evaluate import MAX_TOKENS
from model.nano.train.finish import network_of
from model.nano.train.network import Network
from model.options import EngineOptions
from model.sampling import SamplingOptions
from model.text.prompt import PreparedPrompt


@dataclass(frozen=True)
class Spoken:
    """A prompt and the model's greedy answer to it."""

    prompt: PreparedPrompt
    answer_ids: tuple[int, ...]


@torch.inference_mode()
def inspect_checkpoint(
    directory: Path, style: Style, *, count: int, seed: int, against: Path | None = None
) -> dict[str, Any]:
    """Acceptance, loads and, with `against`, KL and agreement of next tokens, over `count` answers in all."""
    spoken = list(_speak(directory, style, count, seed))
    network = network_of(directory)
    other = network_of(against) if against is not None else None
    counts = torch.zeros(2, len(network.mtp.layers))
    loads, distances, num_agreed, num_tokens = [], [], 0, 0
    for one in spoken:
        embedded_1LH = _embed(network, one)
        hidden = network.decode(embedded_1LH)
        loads.append(hidden.load_LE * embedded_1LH.shape[1])
        counts += _accepted(network, embedded_1LH, hidden.last_BLH, one)
        if other is not None:
            ours_LV = _answer_logits(network, hidden.last_BLH, one)
            their_hidden = other.decode(_embed(other, one)).last_BLH
            theirs_LV = _answer_logits(other, their_hidden, one)
            distances.append(
                F.kl_div(ours_LV.log_softmax(-1), theirs_LV.log_softmax(-1), log_target=True, reduction="sum")
            )
            num_agreed += int((ours_LV.argmax(-1) == theirs_LV.argmax(-1)).sum())
            num_tokens += ours_LV.shape[0]
    load_LE = torch.stack(loads).sum(0)
    relative_LE = load_LE / load_LE.mean(1, keepdim=True)
    result: dict[str, Any] = {
        "drafts_accepted": [round(float(share), 4) for share in counts[0] / counts[1].clamp(min=1)],
        "expert_load": {
            "least": round(float(relative_LE.min()), 3),
            "most": round(float(relative_LE.max()), 3),
        },
    }
    if other is not None:
        result["kl"] = round(float(torch.stack(distances).sum()) / num_tokens, 6)
        result["same_next_token"] = round(num_agreed / num_tokens, 5)
    return result


def _speak(directory: Path, style: Style, count: int, seed: int) -> Iterator[Spoken]:
    """First turns of every row of the examination, answered greedily."""
    with open_server(directory, EngineOptions()) as server:
        builder = prompt_builder(server.checkpoint)
        options = SamplingOptions(temperature=0.0, max_tokens=MAX_TOKENS)
        for row in ROWS:
            prompts = [
                builder.from_chat(episode.conversation)
                for episode in episodes(row, style, max(1, count // len(ROWS)), seed)
            ]
            answers = [server.submit(prompt, options, builder) for prompt in prompts]
            server.run()
            for prompt, answer in zip(prompts, answers, strict=True):
                yield Spoken(prompt, tuple(answer.token_ids))


def _embed(network: Network, spoken: Spoken) -> torch.Tensor:
    ids_1L = torch.tensor([[*spoken.prompt.prompt_ids, *spoken.answer_ids]])
    embedded_1LH = F.embedding(ids_1L, network.decoder.embedding).clone()
    rows = {image.key: network.vision.encode(image.tile()) for image in spoken.prompt.images}
    for span in spoken.prompt.spans:
        part = rows[span.key][span.offset : span.offset + span.num_tokens]
        embedded_1LH[0, span.start : span.start + span.num_tokens] = part
    return embedded_1LH


def _answer_logits(network: Network, last_1LH: torch.Tensor, spoken: Spoken) -> torch.Tensor:
    first = len(spoken.prompt.prompt_ids) - 1
    return network.logits(last_1LH[0, first : first + len(spoken.answer_ids)])


def _accepted(
    network: Network, embedded_1LH: torch.Tensor, last_1LH: torch.Tensor, spoken: Spoken
) -> torch.Tensor:
    """[2, drafts]: verify steps in which drafts 1..i all held, verify steps that had an i-th token to draft.

    Drafts that hold are the answer's own tokens, so one pass over the finished answer gives the same
    numbers as drafting step by step would.
    """
    hidden = network.draft_hidden(embedded_1LH, last_1LH)
    drafts = [
        layer.logits(rows[0]).argmax(-1).tolist()
        for layer, rows in zip(network.mtp.layers, hidden, strict=True)
    ]
    return count_accepted(
        drafts, [*spoken.prompt.prompt_ids, *spoken.answer_ids], len(spoken.prompt.prompt_ids)
    )


def count_accepted(drafts: Sequence[Sequence[int]], ids: Sequence[int], first: int) -> torch.Tensor:
    """`drafts[i][t]` is layer i's guess for token t + 2 + i; `first` is the answer's first token.

    [2, number of drafts], as `_accepted` returns it.
    """
    counts = torch.zeros(2, len(drafts))
    last_known = first
    while last_known < len(ids) - 1:
        num_held = 0
        for index, guesses in enumerate(drafts):
            target = last_known + 1 + index
            if target >= len(ids):
                break
            counts[1, index] += 1
            if num_held == index and guesses[last_known - 1] == ids[target]:
                counts[0, index] += 1
                num_held += 1
        last_known += num_held + 1
    return counts
