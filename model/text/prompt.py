"""Any kind of prompt -> ids with image slots, ready for a `Request`.

A chat, a raw text or ids come in; out come ids, the spans that images fill, and the checked images
whose pixels the caller makes one by one (`PlannedImage.tile`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.errors import CheckpointError, InvalidRequest
from model.text.chat import IMAGE_PLACE, ChatTemplate, Conversation
from model.text.images import ImageInput, ImageLimits, PlannedImage, check_image
from model.text.splices import TURN_BEGIN, OpenTurn, Splices, Turns
from model.text.tiles import GLOBAL_TOKENS, TILE_TOKENS, TilePlan
from model.text.tokenizer import Piece, Tokenizer
from model.types import ImageSpan


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt that can be submitted.

    `text` is the rendered prompt without BOS, an image place written once ("" for given ids).
    `spans` are in order of position; image i's rows are its tiles in order, then its global view.
    `tools` are those a chat declares: what reads the answer's calls needs their schemas.
    """

    prompt_ids: tuple[int, ...]
    spans: tuple[ImageSpan, ...] = ()
    images: tuple[PlannedImage, ...] = ()
    text: str = ""
    starts_in_thinking: bool = False
    think_end_id: int | None = None  # of the token that ends the thinking in which the answer begins
    tools: tuple[Mapping[str, Any], ...] = ()
    prefix_ends: tuple[int, ...] = ()  # behind system and tools, and behind all that was said
    open_turn: OpenTurn | None = None  # which the answer completes: to keep its ids under

    @property
    def num_image_tokens(self) -> int:
        """Positions that hold image rows."""
        return sum(span.num_tokens for span in self.spans)


@dataclass(frozen=True)
class ImageTokens:
    """Ids of the tokens around and in an image."""

    patch: int
    start: int
    end: int
    tile_start: int
    tile_end: int
    newline: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ImageTokens:
        """The ids of a tokenizer. Raises CheckpointError if one is missing."""
        return cls(
            patch=tokenizer.control_id(IMAGE_PLACE),
            start=tokenizer.control_id("<im_start>"),
            end=tokenizer.control_id("<im_end>"),
            tile_start=tokenizer.control_id("<patch_start>"),
            tile_end=tokenizer.control_id("<patch_end>"),
            newline=tokenizer.control_id("<patch_newline>"),
        )


def image_block(plan: TilePlan, tokens: ImageTokens) -> list[int]:
    """Ids of one image: tiles row by row, a newline after each row but the last, the global view."""
    tile = [tokens.tile_start, *[tokens.patch] * TILE_TOKENS, tokens.tile_end]
    row = tile * plan.cols
    ids: list[int] = []
    for index in range(plan.rows):
        ids += row if index == 0 else [tokens.newline, *row]
    return [*ids, tokens.start, *[tokens.patch] * GLOBAL_TOKENS, tokens.end]


def image_spans(plan: TilePlan, key: str, start: int) -> list[ImageSpan]:
    """Spans of an image whose block starts at position `start`: one per tile, one for the global view."""
    spans: list[ImageSpan] = []
    position = start
    for tile in range(plan.tiles):
        starts_row = tile > 0 and tile % plan.cols == 0
        position += starts_row
        spans.append(ImageSpan(position + 1, TILE_TOKENS, key, tile * TILE_TOKENS, content=key))
        position += TILE_TOKENS + 2
    return [*spans, ImageSpan(position + 1, GLOBAL_TOKENS, key, plan.tiles * TILE_TOKENS, content=key)]


def check_ids(ids: Sequence[int], vocab_size: int) -> PreparedPrompt:
    """Given ids as a prompt, used as they are; needs no tokenizer. Raises InvalidRequest."""
    if not ids:
        raise InvalidRequest("token_ids", "empty, at least one id is needed")
    for index, token_id in enumerate(ids):
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(f"token_ids[{index}]", f"{token_id} is not in 0..{vocab_size - 1}")
    return PreparedPrompt(tuple(ids))


class PromptBuilder:
    """Makes prompts for one checkpoint. Holds nothing that changes; safe to use from several threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        *,
        vocab_size: int,
        limits: ImageLimits | None = None,
        has_vision: bool = True,
    ) -> None:
        """`vocab_size` is the model's own, not the tokenizer's. Without a template: no chats."""
        self.tokenizer = tokenizer
        self.limits = limits if limits is not None else ImageLimits()
        self._template = template
        self._vocab_size = vocab_size
        self._has_vision = has_vision

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        vocab_size: int,
        limits: ImageLimits | None = None,
        has_vision: bool = True,
    ) -> PromptBuilder:
        """From a checkpoint directory. Raises CheckpointError."""
        tokenizer = Tokenizer.load(directory)
        has_template = (Path(directory) / "chat_template.jinja").exists()
        template = ChatTemplate.load(directory, tokenizer) if has_template else None
        return cls(tokenizer, template, vocab_size=vocab_size, limits=limits, has_vision=has_vision)

    def from_chat(self, conversation: Conversation, splices: Splices | None = None) -> PreparedPrompt:
        """Render, encode, place the images. BOS stands once, at the start. Raises InvalidRequest.

        A turn that `splices` know keeps the ids with which it was answered.
        """
        if self._template is None:
            raise CheckpointError("chat_template.jinja: missing; give the prompt as text or ids")
        inputs, fields = _images_of(conversation)
        self._check_count(len(inputs), "messages")
        pieces = self._template.render(conversation).pieces
        prompt = self._assemble(pieces, self._check(inputs, fields), "messages", splices)
        return replace(prompt, tools=conversation.tools)

    def from_text(self, text: str, images: Sequence[ImageInput] = ()) -> PreparedPrompt:
        """A raw text whose author writes control tokens; each `<im_patch>` is the place of an image.

        BOS is put in front unless the text begins with it.
        """
        if not text:
            raise InvalidRequest("text", "empty")
        self._check_count(len(images), "images")
        pieces = self.tokenizer.split(text)
        if pieces[0] == Piece(self.tokenizer.bos_token or "", is_control=True):
            del pieces[0]
        return self._assemble(pieces, self._check(images, _numbered(images)), "text")

    def from_ids(self, ids: Sequence[int], images: Sequence[ImageInput] = ()) -> PreparedPrompt:
        """Given ids, used as they are. With images, the ids hold each image's block, in order.

        Without images an `<im_patch>` id is a token like any other.
        """
        prompt = check_ids(ids, self._vocab_size)
        self._check_count(len(images), "images")
        planned = self._check(images, _numbered(images))
        spans: list[ImageSpan] = []
        position = 0
        for image in planned:
            block = image_block(image.plan, ImageTokens.of(self.tokenizer))
            start = _find(prompt.prompt_ids, block, position)
            if start is None:
                message = f"its {image.plan.tokens} tokens are not in token_ids after position {position}"
                raise InvalidRequest(image.field, message)
            spans += image_spans(image.plan, image.key, start)
            position = start + len(block)
        made = PreparedPrompt(prompt.prompt_ids, tuple(spans), planned)
        return self._with_thinking(made)

    def _assemble(
        self,
        pieces: Iterable[Piece],
        images: tuple[PlannedImage, ...],
        field: str,
        splices: Splices | None = None,
    ) -> PreparedPrompt:
        """Encode the text between image places and known turns, put blocks and ids into the places."""
        pieces = tuple(pieces)
        place = Piece(IMAGE_PLACE, is_control=True)
        num_places = pieces.count(place)
        if num_places != len(images):
            raise InvalidRequest(field, f"{num_places} image places in the prompt, {len(images)} images")
        turns = Turns({}, None)
        if splices is not None:
            turns = splices.read(pieces, [image.key for image in images])
        ids = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        spans: list[ImageSpan] = []
        remaining = iter(images)
        start = 0
        for index, piece in enumerate(pieces):
            turn = turns.spliced.get(index)
            if piece != place and turn is None:
                continue
            ids += self.tokenizer.encode_prompt(pieces[start:index])
            if turn is not None:
                ids += turn.ids
                start = turn.end
                continue
            image, start = next(remaining), index + 1
            spans += image_spans(image.plan, image.key, len(ids))
            ids += image_block(image.plan, ImageTokens.of(self.tokenizer))
        ids += self.tokenizer.encode_prompt(pieces[start:])
        text = "".join(piece.text for piece in pieces)
        made = PreparedPrompt(
            tuple(ids),
            tuple(spans),
            images,
            text,
            prefix_ends=self._prefix_ends(ids),
            open_turn=self._open_turn(turns, ids),
        )
        return self._with_thinking(made)

    def _open_turn(self, turns: Turns, ids: Sequence[int]) -> OpenTurn | None:
        """The turn that the answer completes, if the prompt ends inside of one."""
        if turns.before is None:
            return None
        turn = self.tokenizer.control_id(TURN_BEGIN.text)
        begin = next(position for position in range(len(ids) - 1, -1, -1) if ids[position] == turn)
        return OpenTurn(turns.before, tuple(ids[begin + 1 :]))

    def _prefix_ends(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Where the second turn begins (the first says system and tools), and the one to be written.

        What stands behind the latter is not what the next request says there: its thinking is dropped.
        """
        turn = self.tokenizer.token_id("<|im_start|>")
        turns = [position for position, token_id in enumerate(ids) if token_id == turn]
        return tuple(sorted({turns[1], turns[-1]})) if len(turns) > 1 else ()

    def _check(self, inputs: Sequence[ImageInput], fields: Sequence[str]) -> tuple[PlannedImage, ...]:
        """Check the headers of all images."""
        return tuple(
            check_image(image.data, self.limits, max_tiles=image.max_tiles, field=field)
            for image, field in zip(inputs, fields, strict=True)
        )

    def _check_count(self, num_images: int, field: str) -> None:
        if num_images > self.limits.max_images:
            raise InvalidRequest(field, f"{num_images} images, at most {self.limits.max_images}")
        if num_images and not self._has_vision:
            raise InvalidRequest(field, f"{num_images} images, and this model has no vision tower")

    def _with_thinking(self, prompt: PreparedPrompt) -> PreparedPrompt:
        """The prompt, and whether it leaves a `<think>` open, so that the output begins as reasoning."""
        think, think_end = self.tokenizer.token_id("<think>"), self.tokenizer.token_id("</think>")
        turn = self.tokenizer.token_id("<|im_start|>")
        marks = (token_id for token_id in reversed(prompt.prompt_ids) if token_id in (think, think_end, turn))
        last = next(marks, None)
        if last is None or last != think:
            return prompt
        return replace(prompt, starts_in_thinking=True, think_end_id=think_end)


def _images_of(conversation: Conversation) -> tuple[list[ImageInput], list[str]]:
    """All images in order of reading, and where each stands."""
    inputs: list[ImageInput] = []
    fields: list[str] = []
    for index, message in enumerate(conversation.messages):
        if isinstance(message.content, str):
            continue
        for position, part in enumerate(message.content):
            if part.type != "image":
                continue
            field = f"messages[{index}].content[{position}].image"
            if part.image is None:
                raise InvalidRequest(field, "no image given")
            inputs.append(part.image)
            fields.append(field)
    return inputs, fields


def _numbered(images: Sequence[ImageInput]) -> list[str]:
    return [f"images[{index}]" for index in range(len(images))]


def _find(ids: Sequence[int], block: Sequence[int], start: int) -> int | None:
    """First position from `start` on where `block` stands in `ids`."""
    for position in range(start, len(ids) - len(block) + 1):
        if all(ids[position + index] == token_id for index, token_id in enumerate(block)):
            return position
    return None
