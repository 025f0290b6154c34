"""Conversations -> token rows: ids, which of them are learned, and where embedded pictures go.

The ids are those the server makes of the same conversation: same template, tokenizer and image blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.nano.data.talk import Talk
from model.text.chat import IMAGE_PLACE, ChatTemplate
from model.text.prompt import ImageTokens, image_block
from model.text.tiles import TilePlan
from model.text.tokenizer import Tokenizer

NOT_AN_IMAGE = -1


@dataclass(frozen=True)
class TokenRow:
    """One conversation. `is_learned[i]`: id i is the model's. `places[i]`: (view, row of its embedding)."""

    ids: list[int]
    is_learned: list[bool]
    places: list[tuple[int, int]]


class RowMaker:
    """Knows template and tokenizer of a checkpoint directory."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = Tokenizer.load(directory)
        self._template = ChatTemplate.load(directory, self.tokenizer)
        self._image = ImageTokens.of(self.tokenizer)
        self._patch = self.tokenizer.control_id(IMAGE_PLACE)
        self._think = self.tokenizer.control_id("<think>")
        self._end = self.tokenizer.control_id("<|im_end|>")

    def row(self, talk: Talk, plans: Sequence[TilePlan]) -> TokenRow:
        """`plans[i]` is the plan of view i of the lesson."""
        pieces = self._template.render(talk.conversation).pieces
        ids = [self.tokenizer.control_id(self.tokenizer.bos_token or "")]
        places = [(NOT_AN_IMAGE, 0)]
        views = iter(talk.views)
        for token_id in self.tokenizer.encode_prompt(pieces):
            if token_id != self._patch:
                ids.append(token_id)
                places.append((NOT_AN_IMAGE, 0))
                continue
            view = next(views)
            rows = iter(range(plans[view].num_rows))
            for block_id in image_block(plans[view], self._image):
                ids.append(block_id)
                places.append((view, next(rows)) if block_id == self._patch else (NOT_AN_IMAGE, 0))
        return TokenRow(ids, self._learned(ids), places)

    def _learned(self, ids: list[int]) -> list[bool]:
        """What the model writes: after `<think>` and its line feed, up to the end of the turn.

        Turns without a think block (earlier ones) are not learned again.
        """
        learned = [False] * len(ids)
        inside = False
        for index, token_id in enumerate(ids):
            if index >= 2 and ids[index - 2] == self._think and not inside:
                inside = True
            learned[index] = inside
            if token_id == self._end:
                inside = False
        return learned
