"""transformers' own model as the oracle, and the only excuse for differing from it: a near tie.

Float32 sums depend on their order, so a router or an argmax whose candidates almost tie may go either
way. The float64 reference says how close they were: the top two logits closer than 1e-4 at a position,
or the last chosen and first rejected expert closer than 2e-6 at or before it.
"""

from __future__ import annotations

from typing import Any

import torch

LOGIT_TIE = 1e-4
ROUTER_TIE = 2e-6


@torch.inference_mode()
def logits_along(model: Any, prompt: list[int], token_ids: list[int], **images: Any) -> torch.Tensor:
    """Logits [len(token_ids), V] from which the model would choose each of `token_ids`.

    If every token is the argmax of its row, `token_ids` is the model's own greedy continuation.
    """
    ids = torch.tensor([prompt + token_ids[:-1]])
    logits: torch.Tensor = model(input_ids=ids, **images).logits[0, len(prompt) - 1 :]
    return logits


@torch.inference_mode()
def first_near_tie(model64: Any, prompt: list[int], token_ids: list[int], **images: Any) -> int:
    """Index of the first output token whose logits a near tie in the float64 model excuses.

    From a router tie at position p on, every token is excused; a logit tie excuses the token chosen
    there and those that follow. len(token_ids) if there is none.
    """
    gaps: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda m, _args, out: gaps.append(_router_gaps(m, out[0])))
        for module in model64.modules()
        if type(module).__name__ == "Step3p7TopKRouter"
    ]
    logits = model64(input_ids=torch.tensor([prompt + token_ids]), **images).logits[0]
    for hook in hooks:
        hook.remove()
    closest = torch.stack(gaps).amin(0)
    for index in range(len(token_ids)):
        position = len(prompt) - 1 + index
        top = logits[position].topk(2).values
        if float(top[0] - top[1]) < LOGIT_TIE or float(closest[: position + 1].min()) < ROUTER_TIE:
            return index
    return len(token_ids)


def _router_gaps(router: Any, logits_TE: torch.Tensor) -> torch.Tensor:
    scores_TE = logits_TE.float().sigmoid().double() + router.e_score_correction_bias
    top = scores_TE.topk(router.top_k + 1, dim=-1).values
    return top[:, -2] - top[:, -1]
