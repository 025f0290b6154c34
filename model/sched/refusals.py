"""What the scheduler does not take: requests that are wrong, or can never fit, or find the queue full."""

from __future__ import annotations

from model.errors import InvalidRequest, Overloaded
from model.sched.blocks import num_blocks
from model.sched.config import Load, SchedulerConfig
from model.types import Request

_RETRY_RANGE_S = (1.0, 60.0)  # told to callers when the queue is full


def check_request(config: SchedulerConfig, request: Request) -> None:
    """Raises InvalidRequest for a request that is over the context, or could not run even alone."""
    num_prompt, max_tokens = len(request.prompt_ids), request.sampling.max_tokens
    if num_prompt == 0:
        raise InvalidRequest("prompt", "is empty")
    if max_tokens < 1:
        raise InvalidRequest("sampling.max_tokens", f"{max_tokens} is below 1")
    if request.sampling.num_samples < 1:
        raise InvalidRequest("sampling.n", f"{request.sampling.num_samples} is below 1")
    if num_prompt >= config.context_len:
        raise InvalidRequest(
            "prompt",
            f"{num_prompt} tokens; the context of {config.context_len} has no room for an answer",
        )
    if num_prompt + max_tokens > config.context_len:
        raise InvalidRequest(
            "sampling.max_tokens",
            f"{max_tokens} after a prompt of {num_prompt} is over the context of {config.context_len}",
        )
    _check_fits(config, num_prompt, max_tokens)


def _check_fits(config: SchedulerConfig, num_prompt: int, max_tokens: int) -> None:
    """Samples of one request run alone at worst, so what one needs is what counts."""
    needed = num_blocks(num_prompt + max_tokens - 1, config.block_size)
    sliding_needed = min(needed, config.min_sliding_blocks)
    for group, need, have in (
        ("full", needed, config.num_full_blocks),
        ("sliding", sliding_needed, config.num_sliding_blocks),
    ):
        if need > have:
            raise InvalidRequest(
                "prompt" if num_prompt >= config.capacity_tokens else "sampling.max_tokens",
                f"prompt of {num_prompt} and max_tokens of {max_tokens} need {need} {group}-attention "
                f"blocks of {config.block_size} tokens; there are {have}",
            )


def check_queue(config: SchedulerConfig, request: Request, load: Load, tokens_per_s: float) -> None:
    """Raises Overloaded when the queue is full; one that is empty takes a prompt of any length.

    `tokens_per_s` is what the gang computes, 0 while unknown: it says when to come again.
    """
    num_tokens = load.num_queued_tokens + len(request.prompt_ids)
    if load.num_waiting >= config.max_queued:
        text, subject = f"{load.num_waiting} requests wait, the limit is {config.max_queued}", "queue"
    elif load.num_waiting and num_tokens > config.max_queued_tokens:
        text = f"{num_tokens} prompt tokens would wait, the limit is {config.max_queued_tokens}"
        subject = "queued_tokens"
    else:
        return
    shortest_s, longest_s = _RETRY_RANGE_S
    wait_s = load.num_queued_tokens / tokens_per_s if tokens_per_s else shortest_s
    raise Overloaded(text, retry_after_s=min(max(wait_s, shortest_s), longest_s), subject=subject)
