"""What is minimised: next tokens, drafts of the MTP layers, and what stands where in each view.

Shapes: R rows of L tokens, X learned positions, H hidden, V views, M cells of a view, S slots, C kinds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F  # noqa: N812

from model.nano.data.tasks import NAMES
from model.nano.train.chunks import Chunk, ChunkShape
from model.nano.train.network import Network

EMPTY_SLOT_WEIGHT = 0.05  # nearly all slots are empty


@dataclass(frozen=True)
class Weights:
    """Weights of the sums: per learned token, per labelled slot, per drafted token. Tensors, for a graph."""

    token: torch.Tensor
    place: torch.Tensor
    draft: torch.Tensor


@dataclass(frozen=True)
class Measured:
    """Loss to go back through, and what is logged. `exact_K2`: rows right as a whole, rows, by task.

    `draft_right_I2`: drafts that were right, drafts, by MTP layer.
    """

    loss: torch.Tensor
    load_LE: torch.Tensor
    token_loss: torch.Tensor
    exact_K2: torch.Tensor
    place_right_2: torch.Tensor
    draft_right_I2: torch.Tensor

    def copied(self) -> Measured:
        """The numbers by themselves: a graph overwrites its own at the next replay."""
        return Measured(**{f.name: getattr(self, f.name).detach().clone() for f in fields(self)})


def measure(
    network: Network, chunk: Chunk, shape: ChunkShape, weights: Weights, *, has_drafts: bool
) -> Measured:
    """Forward of one chunk. Every shape follows from `shape`, and nothing waits for a value."""
    rows_XH, place_loss, place_right_2 = _pictures(network, chunk, shape)
    embedded_RLH = network.embed(chunk.ids_RL, chunk.place_RL, rows_XH)
    # Rows are filled up with id 0; else it is the first token alone, one of hundreds.
    hidden = network.decode(embedded_RLH, chunk.ids_RL != 0)
    is_real_X = (chunk.depth_X >= 0).float()
    targets_X = chunk.ids_RL.flatten()[chunk.target_X]
    logits_XC = network.logits(F.embedding(chunk.target_X - 1, hidden.last_BLH.flatten(0, 1))).float()
    token_loss = (F.cross_entropy(logits_XC, targets_X, reduction="none") * is_real_X).sum()
    loss = token_loss * weights.token + place_loss * weights.place
    draft_right_I2 = torch.zeros(len(network.mtp.layers), 2, device=loss.device)
    if has_drafts:
        draft_loss, draft_right_I2 = _drafts(network, chunk, embedded_RLH, hidden.last_BLH)
        loss = loss + draft_loss * weights.draft
    wrong_X = (logits_XC.argmax(-1) != targets_X).float() * is_real_X
    row_X = chunk.target_X // chunk.ids_RL.shape[1]
    exact_K2 = _exact_rows(row_X, wrong_X, is_real_X, chunk.task_R)
    return Measured(loss, hidden.load_LE, token_loss, exact_K2, place_right_2, draft_right_I2)


def _exact_rows(
    row_X: torch.Tensor, wrong_X: torch.Tensor, is_real_X: torch.Tensor, task_R: torch.Tensor
) -> torch.Tensor:
    zeros_R = torch.zeros(task_R.shape[0], device=wrong_X.device)
    wrong_R = zeros_R.index_add(0, row_X, wrong_X)
    has_R = (zeros_R.index_add(0, row_X, is_real_X) > 0).float()
    exact_K2 = torch.zeros(len(NAMES), 2, device=wrong_X.device)
    right_R2 = torch.stack(((wrong_R == 0).float() * has_R, has_R), dim=1)
    return exact_K2.index_add(0, task_R, right_R2)


def _drafts(
    network: Network, chunk: Chunk, embedded_RLH: torch.Tensor, last_RLH: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Layer i at position t drafts token t + 2 + i; the tokens between are the answer's own."""
    total, right = torch.zeros((), device=last_RLH.device), []
    targets_X = chunk.ids_RL.flatten()[chunk.target_X]
    for index, hidden_RLH in enumerate(network.draft_hidden(embedded_RLH, last_RLH)):
        counts_X = (chunk.depth_X > index).float()
        rows_XH = F.embedding(chunk.target_X - 2 - index, hidden_RLH.flatten(0, 1))
        logits_XC = network.mtp.layers[index].logits(rows_XH).float()
        total = total + (F.cross_entropy(logits_XC, targets_X, reduction="none") * counts_X).sum()
        right_X = (logits_XC.argmax(-1) == targets_X).float() * counts_X
        right.append(torch.stack((right_X.sum(), counts_X.sum())))
    return total, torch.stack(right)


def _pictures(
    network: Network, chunk: Chunk, shape: ChunkShape
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embedding rows of all views, the loss of their labels, and (right, all) labelled slots."""
    device, hidden = chunk.ids_RL.device, network.text.hidden_size
    rows = [torch.zeros(0, hidden, dtype=network.places.dtype, device=device)]
    if shape.num_globals:
        rows.append(network.encode(chunk.globals_GSS3).flatten(0, 1))
    if shape.num_tiles:
        rows.append(network.encode(chunk.tiles_NSS3).flatten(0, 1))
    rows_XH = torch.cat(rows)
    if not rows_XH.shape[0]:
        return rows_XH, torch.zeros((), device=device), torch.zeros(2, device=device)
    row_M, slot_M, kind_M = chunk.mark_M3.unbind(1)
    # One row more than there are: what a chunk is filled up with goes there.
    labels_XS = torch.zeros(rows_XH.shape[0] + 1, network.num_slots, dtype=torch.long, device=device)
    labels_XS[row_M, slot_M] = kind_M
    loss, right_2 = _slots(network, rows_XH, labels_XS[:-1])
    return rows_XH, loss, right_2


def _slots(
    network: Network, rows_XH: torch.Tensor, labels_XS: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits_XSC = F.linear(rows_XH, network.places).unflatten(-1, (network.num_slots, network.num_kinds))
    class_weights = torch.ones(network.num_kinds, device=rows_XH.device)
    class_weights[:1].fill_(EMPTY_SLOT_WEIGHT)  # an assignment would copy from the host: not in a graph
    flat = logits_XSC.flatten(0, 1).float()
    loss = F.cross_entropy(flat, labels_XS.flatten(), weight=class_weights, reduction="sum")
    is_labelled = labels_XS.flatten() > 0
    with torch.no_grad():
        right = (flat.argmax(-1) == labels_XS.flatten()) & is_labelled
    return loss, torch.stack((right.sum(), is_labelled.sum())).float()
