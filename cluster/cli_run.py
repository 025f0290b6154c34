"""`fluyt run`, `fluyt tokenize` and `fluyt check`: the engine in this process, without Ray."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cluster.checkpoint import checkpoint_dir
from cluster.cli_calls import calls_json, calls_text, request_json
from cluster.cli_flags import Prompts, Sampling, read_bytes
from cluster.cli_print import SamplePrinter
from model.errors import CheckpointError, InvalidRequest
from model.local import Answer, LocalServer, open_server, prompt_builder
from model.nano import ABOUT
from model.options import EngineOptions
from model.sampling import SamplingOptions
from model.text.chat_json import question, read_conversation
from model.text.form import FREE, Form
from model.text.form_json import read_bias, read_form
from model.text.images import ImageInput
from model.text.output import OutputEvent
from model.text.prompt import PreparedPrompt, PromptBuilder, check_ids
from model.types import Channel
from model.weights import Checkpoint, open_checkpoint

_CONVERSATION_KEYS = ("messages", "tools", "reasoning_effort", "add_generation_prompt")
_FORM_KEYS = ("response_format", "tool_choice")
_SAMPLING_KEYS = tuple(field.name for field in fields(SamplingOptions))


@dataclass(frozen=True)
class Task:
    """One prompt and how to go on from it."""

    prompt: PreparedPrompt
    sampling: SamplingOptions
    form: Form = FREE
    where: str = ""  # the line it came from, for errors


def run(
    prompts: Prompts, model: Path | None, sampling: Sampling, options: EngineOptions, as_json: bool
) -> None:
    """Answer everything together, print in order."""
    directory = checkpoint_dir(str(model or ""))
    checkpoint = open_checkpoint(directory)
    builder = _builder_or_none(checkpoint)
    tasks = read_tasks(prompts, sampling, checkpoint, builder)
    if model is None and not as_json:
        print(ABOUT, file=sys.stderr)
    streams = len(tasks) == 1 and (tasks[0].sampling.n or 1) == 1 and not as_json
    with open_server(directory, options) as server:
        answers = _answer(server, tasks, builder, streams=streams)
    for samples in answers:
        _print_answers(samples, as_json, is_printed=streams and builder is not None)


def _answer(
    server: LocalServer, tasks: Sequence[Task], builder: PromptBuilder | None, *, streams: bool
) -> list[list[Answer]]:
    on_event = _print_event if streams else None
    answers = [_submit(server, task, builder, on_event) for task in tasks]
    server.run()
    return answers


def _submit(
    server: LocalServer,
    task: Task,
    builder: PromptBuilder | None,
    on_event: Callable[[OutputEvent], None] | None,
) -> list[Answer]:
    try:
        return server.submit_samples(task.prompt, task.sampling, builder, on_event, task.form)
    except InvalidRequest as error:
        if not task.where:
            raise
        raise InvalidRequest(f"{task.where}: {error.field}", error.description) from error


def _print_event(event: OutputEvent) -> None:
    text = calls_text(event.calls) if event.channel is Channel.TOOL_CALL else event.text
    print(text, end="", flush=True)


def _print_answers(samples: Sequence[Answer], as_json: bool, *, is_printed: bool) -> None:
    if as_json:
        print(json.dumps(to_json(samples)))
    elif is_printed:
        print()
    else:
        printer = SamplePrinter(len(samples), lambda text: print(text, end=""))
        for sample, answer in enumerate(samples):
            text = answer.text + calls_text(answer.tool_calls)
            printer.add(sample, text or answer.reasoning or ",".join(map(str, answer.token_ids)))
            printer.end(sample)


def to_json(samples: Sequence[Answer]) -> dict[str, Any]:
    """What `--json` prints, the same as `fluyt ask`."""
    usage = samples[0].usage
    assert usage is not None, samples
    scores = [None if item is None else asdict(item) for item in samples[0].prompt_logprobs]
    return request_json([_sample_json(answer) for answer in samples], asdict(usage), scores)


def _sample_json(answer: Answer) -> dict[str, Any]:
    assert answer.finish_reason is not None, answer
    result: dict[str, Any] = {
        "token_ids": answer.token_ids,
        "text": answer.text,
        "reasoning": answer.reasoning,
        "tool_calls": calls_json(answer.tool_calls),
        "finish_reason": answer.finish_reason.value,
    }
    if answer.logprobs:
        result["logprobs"] = [asdict(logprob) for logprob in answer.logprobs]
    return result


# ---- what to answer


def read_tasks(
    prompts: Prompts, sampling: Sampling, checkpoint: Checkpoint, builder: PromptBuilder | None
) -> list[Task]:
    """Tasks of the flags. Raises InvalidRequest naming flag, line and field."""
    given = [name for name in ("text", "prompt_ids", "requests") if getattr(prompts, name) is not None]
    if len(given) != 1:
        found = ", ".join(given) or "none"
        raise InvalidRequest("prompt", f"give one of text, --prompt-ids and --requests; given: {found}")
    if prompts.requests is not None:
        lines = read_bytes(prompts.requests, "--requests").decode(errors="replace").splitlines()
        return [
            _read_line(line, f"{prompts.requests}:{number}", sampling, checkpoint, builder)
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
    images = read_images(prompts.images)
    if prompts.prompt_ids is not None:
        prompt = _from_ids(parse_ids(prompts.prompt_ids), images, checkpoint, builder)
    else:
        prompt = need(builder, checkpoint).from_chat(question(prompts.text or "", images))
    return [Task(prompt, SamplingOptions(**sampling.given()))]


def _read_line(
    line: str, where: str, sampling: Sampling, checkpoint: Checkpoint, builder: PromptBuilder | None
) -> Task:
    """{"text" | "prompt_ids" | "messages", ...; "images": [paths]; form; sampling}; flags are defaults."""
    try:
        request = _read_object(line)
        images = read_images([Path(path) for path in request.get("images", ())])
        chosen = {name: request[name] for name in _SAMPLING_KEYS if name in request}
        for name in ("stop", "stop_token_ids"):
            if isinstance(chosen.get(name), list):
                chosen[name] = tuple(chosen[name])
        if chosen.get("logit_bias") is not None:
            chosen["logit_bias"] = read_bias(chosen["logit_bias"], "logit_bias")
        options = SamplingOptions(**{**sampling.given(), **chosen})
        prompt = _read_prompt(request, images, checkpoint, builder)
        return Task(prompt, options, read_form(request), where)
    except json.JSONDecodeError as error:
        raise InvalidRequest(where, f"not JSON ({error})") from None
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error.field}", error.description) from error


def _read_object(line: str) -> dict[str, Any]:
    request = json.loads(line)
    if not isinstance(request, dict):
        raise InvalidRequest("request", f"expected an object, found {line[:40]!r}")
    known = {"text", "prompt_ids", "images", *_CONVERSATION_KEYS, *_FORM_KEYS, *_SAMPLING_KEYS}
    if unknown := sorted(set(request) - known):
        raise InvalidRequest(unknown[0], f"unknown; known: {', '.join(sorted(known))}")
    return request


def _read_prompt(
    request: dict[str, Any], images: list[ImageInput], checkpoint: Checkpoint, builder: PromptBuilder | None
) -> PreparedPrompt:
    if "prompt_ids" in request:
        ids = request["prompt_ids"]
        if not isinstance(ids, list) or not all(type(token_id) is int for token_id in ids):
            raise InvalidRequest("prompt_ids", "expected a list of whole numbers")
        return _from_ids(ids, images, checkpoint, builder)
    if "messages" in request:
        chat = {name: request[name] for name in _CONVERSATION_KEYS if name in request}
        return need(builder, checkpoint).from_chat(read_conversation(chat, images))
    if not isinstance(request.get("text"), str):
        raise InvalidRequest("prompt", "one of text, prompt_ids and messages is needed")
    return need(builder, checkpoint).from_chat(question(request["text"], images))


def _from_ids(
    ids: Sequence[int], images: Sequence[ImageInput], checkpoint: Checkpoint, builder: PromptBuilder | None
) -> PreparedPrompt:
    if images or builder is not None:  # which knows whether the ids end in thinking
        return need(builder, checkpoint).from_ids(ids, images)
    return check_ids(ids, checkpoint.config.text.vocab_size)


def parse_ids(text: str) -> list[int]:
    """1,2,3 or @FILE with the same (brackets and line ends allowed). Raises InvalidRequest."""
    if text.startswith("@"):
        text = read_bytes(Path(text[1:]), "--prompt-ids").decode(errors="replace")
    pieces = text.replace(",", " ").strip().removeprefix("[").removesuffix("]").split()
    try:
        return [int(piece) for piece in pieces]
    except ValueError as error:
        raise InvalidRequest("--prompt-ids", str(error)) from error


def read_images(paths: Sequence[Path]) -> list[ImageInput]:
    """Files as they are; they are looked at later."""
    return [ImageInput(read_bytes(path, "--image")) for path in paths]


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises InvalidRequest."""
    if value not in choices:
        raise InvalidRequest(f"--{name}", f"{value!r} is not one of {', '.join(choices)}")


def _builder_or_none(checkpoint: Checkpoint) -> PromptBuilder | None:
    """Without tokenizer files a checkpoint still answers ids with ids."""
    if not (checkpoint.directory / "tokenizer.json").exists():
        return None
    return prompt_builder(checkpoint)


def need(builder: PromptBuilder | None, checkpoint: Checkpoint) -> PromptBuilder:
    """The text stage. Raises CheckpointError where there is none."""
    if builder is None:
        raise CheckpointError(
            f"{checkpoint.directory}/tokenizer.json: missing; only --prompt-ids can be answered"
        )
    return builder


# ---- tokenize, check


def tokenize(
    text: str | None, messages: Path | None, images: Sequence[Path], model: Path | None, as_json: bool
) -> None:
    """Print what a prompt becomes."""
    if (text is None) == (messages is None):
        raise InvalidRequest("prompt", "give either text or --messages")
    checkpoint = open_checkpoint(checkpoint_dir(str(model or "")))
    builder = need(_builder_or_none(checkpoint), checkpoint)
    inputs = read_images(images)
    if messages is not None:
        try:
            value = json.loads(read_bytes(messages, "--messages"))
        except ValueError as error:
            raise InvalidRequest(str(messages), f"not JSON ({error})") from error
        prompt = builder.from_chat(read_conversation(value, inputs))
    else:
        prompt = builder.from_chat(question(text or "", inputs))
    result = {
        "prompt": prompt.text,
        "token_ids": list(prompt.prompt_ids),
        "images": [{"tiles": image.plan.tiles, "tokens": image.plan.tokens} for image in prompt.images],
    }
    if as_json:
        print(json.dumps(result))
    else:
        print(prompt.text)
        print(f"{len(prompt.prompt_ids)} tokens: {','.join(map(str, prompt.prompt_ids))}")


def check(directory: Path) -> None:
    """Print what a checkpoint holds. Raises CheckpointError."""
    checkpoint = open_checkpoint(directory)
    text = checkpoint.config.text
    builder = _builder_or_none(checkpoint)
    num_moe = sum(layer.is_moe for layer in text.layers)
    lines = {
        "fingerprint": checkpoint.fingerprint(),
        "tensors": len(checkpoint.stored),
        "layers": len(text.layers),
        "moe layers": f"{num_moe}, {text.num_experts} experts of which {text.experts_per_token} are active",
        "vocabulary": text.vocab_size,
        "context": text.context_len,
        "vision": "yes" if checkpoint.has_vision else "no",
        "mtp": "yes" if checkpoint.has_mtp else "no",
        "tokenizer": "no" if builder is None else f"{builder.tokenizer.vocab_size} ids",
    }
    for name, value in lines.items():
        print(f"{name:12} {value}")
