"""What travels between front door, scheduler and text stage. Plain data, no torch.

Request -> scheduler -> Delta -> text stage -> client. Everything here is frozen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from model.grammar import Grammar


class FinishReason(str, Enum):
    """Why a sequence ended; the names are those of the wire."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    LOOP = "loop"
    ABORTED = "aborted"


class Channel(str, Enum):
    """Where a piece of output text belongs."""

    TEXT = "text"
    REASONING = "reasoning"
    TOOL_CALL = "tool_call"


@dataclass(frozen=True)
class RequestKey:
    """Identity of a request everywhere: two tenants may use the same request id."""

    tenant: str
    request_id: str


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when a sequence ends. Complete: made by `model.sampling.resolve`.

    temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off; `eos_token_ids` is empty
    under ignore_eos; `num_logprobs` None is off, 0 gives the chosen token's alone, and so
    `num_prompt_logprobs` for the tokens of the prompt.
    """

    max_tokens: int
    seed: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    num_logprobs: int | None = None
    mtp: bool = True  # drafts may be verified; the tokens are the same without
    starts_in_thinking: bool = False  # the prompt leaves a <think> open
    grammar: Grammar | None = None  # what the answer has to be, behind its thinking
    max_think_tokens: int | None = None  # then `</think>` comes, if it has not come before
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit), ascending
    think_end_id: int | None = None  # set where `max_think_tokens` is
    num_samples: int = 1  # answers to one prompt; all else here is of each
    sample: int = 0  # whose noise it is; of several samples, that of the first
    num_prompt_logprobs: int | None = None


@dataclass(frozen=True)
class ImageSpan:
    """Image slots in a prompt: positions, never ids (a given image-token id is ordinary text).

    The slots [start, start + num_tokens) hold the rows of the embedding stored under `key`
    (sha256 of the bytes + tiling version). The markers around the patches are ordinary tokens and
    lie outside of spans: an image with tiles has one span per tile and one for the global view;
    `offset` is the first row of the embedding that this span takes.
    """

    start: int
    num_tokens: int
    key: str
    offset: int = 0
    content: str = ""  # what the picture is, whoever sent it: names prefixes


@dataclass(frozen=True)
class Request:
    """One prompt to continue, ready for a scheduler: ids, not text; keys, not pixels."""

    key: RequestKey
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    images: tuple[ImageSpan, ...] = ()
    task_id: str = ""
    priority: int = (
        0  # higher goes first; one that is lower is passed by so many tokens of others and no more
    )
    prefix_ends: tuple[int, ...] = ()  # positions of the prompt from which on other requests may differ
    # Where the owning rank fetches embeddings ("" = they are already in the runner's store).
    embeddings_address: str = ""


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of a chosen token, and of the most probable ones, before any filter."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), most probable first


@dataclass(frozen=True)
class PromptLogprobs:
    """Log-probabilities of prompt tokens from `first_token_index` on, each given the tokens before it.

    None for the first token of all, and for slots of images.
    """

    first_token_index: int
    logprobs: tuple[TokenLogprob | None, ...]


@dataclass(frozen=True)
class Usage:
    """What a request consumed; added up by `Scheduler.commit`, times in microseconds.

    Of all samples together, the prompt counted once.
    """

    num_prompt_tokens: int = 0
    num_image_tokens: int = 0
    num_cached_tokens: int = 0
    num_completion_tokens: int = 0
    num_reasoning_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    queue_us: int = 0
    vision_us: int = 0
    prefill_us: int = 0
    decode_us: int = 0
    compute_us: int = 0


@dataclass(frozen=True)
class Delta:
    """New tokens of one sample of a request, or a piece of what was asked about its prompt.

    The last one of a sample carries `finish_reason`, the last one of all carries `usage` besides. An
    `error` ends all samples.
    """

    key: RequestKey
    first_token_index: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    usage: Usage | None = None
    error: Exception | None = field(default=None, compare=False)
    sample: int = 0  # which of the request's, from 0
    num_samples_left: int = 0  # that go on behind one that ends
    prompt: PromptLogprobs | None = None

    @property
    def is_final(self) -> bool:
        """True for exactly one delta of a request."""
        ends_all = self.finish_reason is not None and self.num_samples_left == 0
        return ends_all or self.error is not None
