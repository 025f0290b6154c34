"""From a question and its answer to a conversation as the model sees it.

A lesson is what one training example or one test question is made from: pictures, and conversations
about them. The same makers feed both.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from model.nano.data.scene import Exchange, Mark, Scene
from model.text.chat import ChatMessage, ContentPart, Conversation

Effort = Literal["low", "high"] | None
IMAGE = ContentPart("image")
DRILL_SHARE = 0.8  # of the lessons whose scene has one


@dataclass(frozen=True)
class View:
    """A picture that enters a conversation. `max_tiles` 0: its global view alone (lower resolution)."""

    picture: Image.Image
    marks: tuple[Mark, ...] = ()
    max_tiles: int | None = None


@dataclass(frozen=True)
class Talk:
    """A whole conversation with the model's turns in it; its image places are `views` in order."""

    task: str
    conversation: Conversation
    views: tuple[int, ...] = ()


@dataclass(frozen=True)
class Lesson:
    """Pictures and conversations about them."""

    views: tuple[View, ...]
    talks: tuple[Talk, ...]


def draw_effort(rng: random.Random) -> Effort:
    """None is the usual case."""
    drawn = rng.random()
    return None if drawn < 0.6 else "low" if drawn < 0.8 else "high"


def thinking(exchange: Exchange, effort: Effort) -> str:
    """What stands in the think block: nothing at low effort, at high effort the steps as well."""
    if effort == "low":
        return ""
    if effort == "high":
        return "\n".join(part for part in (exchange.thought, exchange.steps) if part)
    return exchange.thought


def talk_of(task: str, exchange: Exchange, views: tuple[int, ...], effort: Effort) -> Talk:
    """Question about the pictures, thinking, answer."""
    answer = ChatMessage("assistant", exchange.answer, reasoning_content=thinking(exchange, effort))
    return Talk(task, conversation((question_turn(exchange.question, len(views)), answer), effort), views)


def question_turn(question: str, num_images: int) -> ChatMessage:
    """A user's turn: images, then the question."""
    if num_images == 0:
        return ChatMessage("user", question)
    return ChatMessage("user", (*[IMAGE] * num_images, ContentPart("text", question)))


def conversation(
    messages: tuple[ChatMessage, ...], effort: Effort, tools: tuple[Mapping[str, Any], ...] = ()
) -> Conversation:
    """A conversation that ends with a turn of the model."""
    return Conversation(messages, tools, effort, add_generation_prompt=False)


def lesson_of(task: str, scene: Scene, rng: random.Random, num_talks: int) -> Lesson:
    """Some of the exchanges of a scene, one conversation each; often a drill is one of them."""
    chosen = rng.sample(scene.exchanges, min(num_talks, len(scene.exchanges)))
    if scene.drills and rng.random() < DRILL_SHARE:
        chosen[0] = rng.choice(scene.drills)
    talks = tuple(talk_of(task, exchange, (0,), draw_effort(rng)) for exchange in chosen)
    return Lesson((View(scene.picture, scene.marks),), talks)
