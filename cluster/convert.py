"""Public messages <-> our own types, and what can be checked about a message by itself.

Pure functions. Fields in errors are paths in the request as the client wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

from model.errors import InvalidRequest, Unsupported
from model.grammar import Grammar
from model.sampling import SamplingOptions
from model.text.chat import IMAGE_PLACE, ChatMessage, ContentPart, Conversation, ToolCall
from model.text.form import Form
from model.text.images import ImageInput
from model.text.output import OutputEvent
from model.text.outputs import OutputStreams
from model.text.prompt import PreparedPrompt
from model.text.tools import CallEnd, CallPiece
from model.types import (
    Channel,
    Delta,
    FinishReason,
    PromptLogprobs,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from protos.fluyt.v1 import inference_pb2 as pb

MAX_ID_BYTES = 128
MAX_LABELS = 16
MAX_PRIORITY = 100

_CHANNELS = {
    Channel.TEXT: pb.CHANNEL_TEXT,
    Channel.REASONING: pb.CHANNEL_REASONING,
    Channel.TOOL_CALL: pb.CHANNEL_TOOL_CALL,
}
_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
    FinishReason.LOOP: pb.FINISH_REASON_LOOP,
    FinishReason.ABORTED: pb.FINISH_REASON_ABORTED,
}
_CALL_ENDS = {
    None: pb.TOOL_CALL_END_UNSPECIFIED,
    CallEnd.COMPLETE: pb.TOOL_CALL_END_COMPLETE,
    CallEnd.CUT: pb.TOOL_CALL_END_CUT,
}

ImageLookup = Callable[[str], bytes]  # hex sha256 -> bytes; raises NotFound


class Serving(Protocol):
    """What Started says about who answers."""

    @property
    def epoch(self) -> str:
        """The scheduler's."""

    @property
    def fingerprint(self) -> str:
        """The model's."""


def check_request(request: pb.GenerateRequest) -> None:
    """Everything about a request that needs no model. Raises InvalidRequest, Unsupported."""
    _check_id("request_id", request.request_id)
    _check_id("task_id", request.task_id)
    if request.resume_after_tokens > 0:
        raise Unsupported("resume_after_tokens", f"{request.resume_after_tokens}: resuming is not served yet")
    if not -MAX_PRIORITY <= request.priority <= MAX_PRIORITY:
        raise InvalidRequest("priority", f"{request.priority} is not in -{MAX_PRIORITY}..{MAX_PRIORITY}")
    if len(request.labels) > MAX_LABELS:
        raise InvalidRequest("labels", f"{len(request.labels)} labels, at most {MAX_LABELS}")
    for name, value in request.labels.items():
        _check_id("labels", name)
        _check_id(f"labels[{name}]", value)
    if request.WhichOneof("prompt") is None:
        raise InvalidRequest("prompt", "missing: give one of chat, token_ids, text")


def checked_request_id(request_id: str) -> str:
    """An id that must be there. Raises InvalidRequest."""
    if not request_id:
        raise InvalidRequest("request_id", "empty")
    _check_id("request_id", request_id)
    return request_id


def _check_id(field: str, value: str) -> None:
    num_bytes = len(value.encode())
    if num_bytes > MAX_ID_BYTES:
        raise InvalidRequest(field, f"{num_bytes} bytes, at most {MAX_ID_BYTES}")


def image_input(image: pb.Image, field: str, lookup: ImageLookup) -> ImageInput:
    """An image with its bytes. Raises InvalidRequest, NotFound."""
    max_tiles = image.max_tiles if image.HasField("max_tiles") else None
    source = image.WhichOneof("source")
    if source is None:
        raise InvalidRequest(field, "neither data nor sha256 is set")
    return ImageInput(image.data if source == "data" else lookup(image.sha256), max_tiles)


def conversation(chat: pb.ChatPrompt, lookup: ImageLookup) -> Conversation:
    """A chat prompt. Raises InvalidRequest, NotFound."""
    return Conversation(
        messages=tuple(
            _message(message, f"messages[{i}]", lookup) for i, message in enumerate(chat.messages)
        ),
        tools=tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(chat.tools)),
        reasoning_effort=chat.reasoning_effort if chat.HasField("reasoning_effort") else None,
        add_generation_prompt=(
            chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True
        ),
    )


def _message(message: pb.ChatMessage, field: str, lookup: ImageLookup) -> ChatMessage:
    parts = tuple(_part(part, f"{field}.content[{i}]", lookup) for i, part in enumerate(message.content))
    plain = len(parts) == 1 and parts[0].type == "text"
    return ChatMessage(
        role=message.role,
        # One text is a string to the template, as most clients of chat models send it.
        content=parts[0].text if plain else parts or "",
        name=message.name or None,
        reasoning_content=message.reasoning_content if message.HasField("reasoning_content") else None,
        tool_calls=tuple(ToolCall(call.name, call.arguments, call.id) for call in message.tool_calls),
        tool_call_id=message.tool_call_id or None,
    )


def _part(part: pb.ContentPart, field: str, lookup: ImageLookup) -> ContentPart:
    kind = part.WhichOneof("part")
    if kind is None:
        raise InvalidRequest(field, "neither text nor image is set")
    if kind == "text":
        return ContentPart("text", text=part.text)
    return ContentPart("image", image=image_input(part.image, f"{field}.image", lookup))


def _tool(text: str, field: str) -> dict[str, Any]:
    try:
        tool = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(field, f"not JSON: {error}") from error
    if not isinstance(tool, dict):
        raise InvalidRequest(field, f"expected a JSON object, found {type(tool).__name__}")
    return tool


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def raw_text(prompt: pb.TextPrompt, lookup: ImageLookup) -> tuple[str, list[ImageInput]]:
    """A raw prompt with the image token in the places of images, and the images."""
    text: list[str] = []
    images: list[ImageInput] = []
    for index, part in enumerate(prompt.parts):
        content = _part(part, f"text.parts[{index}]", lookup)
        text.append(content.text if content.image is None else IMAGE_PLACE)
        if content.image is not None:
            images.append(content.image)
    return "".join(text), images


def sampling_options(options: pb.SamplingOptions) -> SamplingOptions:
    """The options that are set; `model.sampling.resolve` checks them."""
    known = {
        name: getattr(options, name)
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "seed",
            "max_tokens",
            "min_tokens",
            "ignore_eos",
            "mtp",
            "num_logprobs",
            "num_prompt_logprobs",
            "max_think_tokens",
            "n",
        )
        if options.HasField(name)  # type: ignore[arg-type, unused-ignore]
    }
    if options.stop:
        known["stop"] = tuple(options.stop)
    if options.stop_token_ids:
        known["stop_token_ids"] = tuple(options.stop_token_ids)
    if options.logit_bias:
        known["logit_bias"] = tuple(options.logit_bias.items())
    return SamplingOptions(**known)


def form(request: pb.GenerateRequest) -> Form:
    """What the answer shall be. Raises InvalidRequest."""
    if not request.HasField("response_format"):
        return Form(None, request.tool_choice)
    asked = request.response_format
    kind = asked.WhichOneof("format")
    if kind is None:
        raise InvalidRequest("response_format", "none of json_schema, regex, ebnf, choice is set")
    grammar = Grammar.choice(asked.choice.texts) if kind == "choice" else Grammar(kind, getattr(asked, kind))
    return Form(grammar, request.tool_choice)


def tokenized(prompt: PreparedPrompt) -> pb.TokenizeResponse:
    """The answer of Tokenize."""
    return pb.TokenizeResponse(prompt=prompt.text, token_ids=prompt.prompt_ids, images=_image_infos(prompt))


def started_event(
    request_id: str, instance: str, serving: Serving, prompt: PreparedPrompt, sampling: SamplingParams
) -> pb.GenerateEvent:
    """The first event."""
    started = pb.Started(
        request_id=request_id,
        instance=instance,
        epoch=serving.epoch,
        seed=sampling.seed,
        model_fingerprint=serving.fingerprint,
        num_prompt_tokens=len(prompt.prompt_ids),
        images=_image_infos(prompt),
    )
    return pb.GenerateEvent(started=started)


def prompt_event(prompt_ids: Sequence[int], piece: PromptLogprobs) -> pb.GenerateEvent:
    """Log-probabilities of a piece of the prompt."""
    first = piece.first_token_index
    message = pb.PromptLogprobs(first_token_index=first)
    for token_id, item in zip(prompt_ids[first:], piece.logprobs, strict=False):
        token = message.tokens.add(token_id=token_id)
        if item is not None:
            token.logprob = item.logprob
            token.top.extend(_top(item))
    return pb.GenerateEvent(prompt_logprobs=message)


def delta_event(event: OutputEvent, sample: int) -> pb.GenerateEvent:
    """New output of a sample."""
    delta = pb.Delta(
        choice=sample,
        first_token_index=event.first_token_index,
        channel=_CHANNELS[event.channel],
        text=event.text,
        token_ids=event.token_ids,
        logprobs=[_logprob(item) for item in event.logprobs],
        tool_calls=[_tool_call_delta(piece) for piece in event.calls],
    )
    return pb.GenerateEvent(delta=delta)


def finished_event(delta: Delta, outputs: OutputStreams, vision_us: int) -> pb.GenerateEvent:
    """The end of a sample, and of the request. A stop string outweighs what the scheduler ended with."""
    assert delta.finish_reason is not None, delta
    output = outputs[delta.sample]
    finished = pb.Finished(choice=delta.sample, reason=_REASONS[output.finish_reason(delta.finish_reason)])
    if delta.is_final:
        usage = outputs.usage(delta.usage or Usage(), vision_us)
        finished.usage.MergeFrom(
            pb.Usage(**{name: getattr(usage, name) for name in Usage.__dataclass_fields__})
        )
    if output.matched_stop is not None:
        finished.stop_string = output.matched_stop
    elif delta.stop_token_id is not None:
        finished.stop_token_id = delta.stop_token_id
    return pb.GenerateEvent(finished=finished)


def aborted_events(request: pb.GenerateRequest, max_samples: int) -> list[pb.GenerateEvent]:
    """The last events of a request that was aborted before anything was computed, one for each sample."""
    num_samples = min(max(request.sampling.n, 1), max_samples)
    ends = [pb.Finished(choice=i, reason=pb.FINISH_REASON_ABORTED) for i in range(num_samples)]
    ends[-1].usage.SetInParent()
    return [pb.GenerateEvent(finished=end) for end in ends]


def _image_infos(prompt: PreparedPrompt) -> list[pb.ImageInfo]:
    return [pb.ImageInfo(num_tiles=image.plan.tiles, num_tokens=image.plan.tokens) for image in prompt.images]


def _tool_call_delta(piece: CallPiece) -> pb.ToolCallDelta:
    return pb.ToolCallDelta(
        index=piece.index, name=piece.name, arguments=piece.arguments, end=_CALL_ENDS[piece.end]
    )


def _logprob(item: TokenLogprob) -> pb.TokenLogprob:
    return pb.TokenLogprob(logprob=item.logprob, top=_top(item))


def _top(item: TokenLogprob) -> Sequence[pb.TopLogprob]:
    return [pb.TopLogprob(token_id=token, logprob=value) for token, value in item.top]
