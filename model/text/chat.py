"""Messages -> prompt text, with the checkpoint's own chat template.

Control-token literals in what users write stay text. Before rendering, each such literal is marked
by a character that occurs nowhere else; the template carries the marks along; afterwards a literal
with a mark is text and one without was written by the template. The marks are gone before BPE, so
joins across the border are those of the unmarked text. A mark stands before its literal, except at
the start of a string, where it stands behind: so a template still sees how a string starts or ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import jinja2
import jinja2.sandbox

from model.errors import CheckpointError, InvalidRequest
from model.text.images import ImageInput
from model.text.tokenizer import Piece, Tokenizer

ROLES = ("system", "user", "assistant", "tool")
EFFORTS = ("low", "medium", "high")
IMAGE_PLACE = "<im_patch>"


@dataclass(frozen=True)
class ContentPart:
    """Text or an image, in the order of reading."""

    type: Literal["text", "image"]
    text: str = ""
    image: ImageInput | None = None


@dataclass(frozen=True)
class ToolCall:
    """A function an assistant turn called. `arguments`: an object, or a string that holds one in JSON."""

    name: str
    arguments: str | Mapping[str, Any] = ""
    id: str = ""


@dataclass(frozen=True)
class ChatMessage:
    """One turn. `reasoning_content` is an assistant's thinking, when it is not inside of the content."""

    role: str
    content: str | tuple[ContentPart, ...] = ""
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True)
class Conversation:
    """Everything the template reads. `tools` are JSON objects in the order given."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    reasoning_effort: str | None = None
    add_generation_prompt: bool = True


@dataclass(frozen=True)
class Rendered:
    """A rendered prompt without BOS, cut into text and control tokens."""

    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """The prompt as one string."""
        return "".join(piece.text for piece in self.pieces)


class ChatTemplate:
    """A compiled `chat_template.jinja` and the control tokens it may write."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        """Raises CheckpointError if the template does not compile."""
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise CheckpointError(f"chat_template.jinja: {error}") from error
        self._source = source
        self._literals = tokenizer.control_pattern
        self._bos_token = tokenizer.bos_token

    @classmethod
    def load(cls, directory: str | Path, tokenizer: Tokenizer) -> ChatTemplate:
        """Read the template of a checkpoint directory. Raises CheckpointError if it has none."""
        path = Path(directory) / "chat_template.jinja"
        try:
            return cls(path.read_text(encoding="utf-8"), tokenizer)
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}; chat prompts need it") from error

    def render(self, conversation: Conversation) -> Rendered:
        """Render. Raises InvalidRequest naming the field, as `messages[1].role`."""
        check_conversation(conversation)
        try:
            values = _template_values(conversation)
            marks = _choose_marks(values, self._source)
            text = self._template.render(bos_token="", **_mark(values, self._literals, marks))
            text.encode()
        except RecursionError as error:
            raise InvalidRequest("messages", "nested too deeply") from error
        except UnicodeEncodeError as error:
            raise InvalidRequest("messages", "the text holds half of a surrogate pair") from error
        except jinja2.TemplateError as error:
            raise InvalidRequest("messages", str(error)) from error
        pieces = list(_cut(text, self._literals, marks))
        if pieces and pieces[0] == Piece(self._bos_token or "", is_control=True):
            del pieces[0]  # a template that spells BOS out instead of using bos_token
        return Rendered(tuple(pieces))


def render(
    template: ChatTemplate,
    messages: Sequence[ChatMessage],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    reasoning_effort: str | None = None,
    add_generation_prompt: bool = True,
) -> Rendered:
    """Render messages; see `ChatTemplate.render`."""
    return template.render(
        Conversation(tuple(messages), tuple(tools), reasoning_effort, add_generation_prompt)
    )


def check_conversation(conversation: Conversation) -> None:
    """What must hold for any template. Raises InvalidRequest naming the field."""
    if not conversation.messages:
        raise InvalidRequest("messages", "empty, at least one message is needed")
    effort = conversation.reasoning_effort
    if effort is not None and effort not in EFFORTS:
        raise InvalidRequest("reasoning_effort", f"{effort!r} is none of {', '.join(EFFORTS)}")
    for index, message in enumerate(conversation.messages):
        if message.role not in ROLES:
            raise InvalidRequest(
                f"messages[{index}].role", f"{message.role!r} is unknown; one of {', '.join(ROLES)}"
            )
        if message.tool_calls and message.role != "assistant":
            raise InvalidRequest(f"messages[{index}].tool_calls", f"not allowed in role {message.role}")
    for index, tool in enumerate(conversation.tools):
        function = tool.get("function", tool)
        if not (isinstance(function, Mapping) and isinstance(function.get("name"), str)):
            raise InvalidRequest(f"tools[{index}].function.name", "missing")


def _template_values(conversation: Conversation) -> dict[str, Any]:
    """The template's variables, as plain JSON-like data."""
    values: dict[str, Any] = {
        "messages": [_message_values(m, i) for i, m in enumerate(conversation.messages)],
        "add_generation_prompt": conversation.add_generation_prompt,
    }
    if conversation.tools:
        values["tools"] = [dict(tool) for tool in conversation.tools]
    if conversation.reasoning_effort is not None:
        values["reasoning_effort"] = conversation.reasoning_effort
    return values


def _message_values(message: ChatMessage, index: int) -> dict[str, Any]:
    content: Any = message.content
    thinking = message.reasoning_content
    if not isinstance(content, str):
        content = [
            {"type": "text", "text": part.text} if part.type == "text" else {"type": "image"}
            for part in content
        ]
    elif message.role == "assistant" and thinking is None and "</think>" in content:
        thinking, content = _split_thinking(content)
    values: dict[str, Any] = {"role": message.role, "content": content}
    if message.name is not None:
        values["name"] = message.name
    if thinking is not None:
        values["reasoning_content"] = thinking
    if message.tool_call_id is not None:
        values["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        field = f"messages[{index}].tool_calls"
        values["tool_calls"] = [_call_values(c, f"{field}[{i}]") for i, c in enumerate(message.tool_calls)]
    return values


def _split_thinking(content: str) -> tuple[str, str]:
    """(thinking, answer) of a turn that has its thinking inside.

    Done here and not left to the template, so that its markers count and any others in the answer
    stay text.
    """
    before, answer = content.split("</think>", 1)
    return before.rstrip("\n").split("<think>")[-1].lstrip("\n"), answer.lstrip("\n")


def _call_values(call: ToolCall, field: str) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": _arguments(call.arguments, field)},
    }


def _arguments(arguments: str | Mapping[str, Any], field: str) -> dict[str, Any]:
    """Arguments as an object; a string is parsed as JSON first, an empty one is an empty object."""
    parsed: Any = arguments
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments, parse_constant=_refuse_constant) if arguments.strip() else {}
        except ValueError as error:
            raise InvalidRequest(f"{field}.function.arguments", f"not JSON: {error}") from error
    if not isinstance(parsed, Mapping):
        raise InvalidRequest(
            f"{field}.function.arguments", f"expected an object, found {type(parsed).__name__}"
        )
    return dict(parsed)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


@dataclass(frozen=True)
class _Marks:
    """Two characters that occur nowhere: what follows is text; what precedes is text."""

    before: str
    behind: str


def _choose_marks(values: Any, source: str) -> _Marks:
    """Two private-use characters that neither the input nor the template contains."""
    everything = source + json.dumps(values, ensure_ascii=False)
    free = (char for char in map(chr, range(0xE000, 0xF900)) if char not in everything)
    try:
        return _Marks(next(free), next(free))
    except StopIteration:
        raise InvalidRequest("messages", "use every private-use character there is") from None


def _mark(value: Any, literals: re.Pattern[str], marks: _Marks) -> Any:
    """A copy with every control-token literal marked, also in the keys of objects."""
    if isinstance(value, str):
        return literals.sub(_marker(marks), value)
    if isinstance(value, Mapping):
        return {_mark(key, literals, marks): _mark(item, literals, marks) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mark(item, literals, marks) for item in value]
    return value


def _marker(marks: _Marks) -> Callable[[re.Match[str]], str]:
    def marked(match: re.Match[str]) -> str:
        literal = match.group()
        return literal + marks.behind if match.start() == 0 else marks.before + literal

    return marked


def _cut(text: str, literals: re.Pattern[str], marks: _Marks) -> Iterator[Piece]:
    """Pieces of a rendered text: literals without a mark are control tokens. Takes the marks out."""
    unmarked = str.maketrans("", "", marks.before + marks.behind)
    start = 0
    for match in literals.finditer(text):
        begin, end = match.span()
        if text[begin - 1 : begin] == marks.before or text[end : end + 1] == marks.behind:
            continue
        if begin > start:
            yield Piece(text[start:begin].translate(unmarked))
        yield Piece(match.group(), is_control=True)
        start = end
    if start < len(text):
        yield Piece(text[start:].translate(unmarked))


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Like `json.dumps`: Jinja's own filter escapes HTML, which would change the prompt."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
