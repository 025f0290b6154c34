"""From exchanges to conversations that the checkpoint's template renders."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from PIL import Image

from model.nano import default_checkpoint
from model.nano.data.canvas import Style
from model.nano.data.fonts import held_out_faces
from model.nano.data.looking import TOO_SMALL, look_lesson
from model.nano.data.scene import Exchange, Scene
from model.nano.data.searching import search_lesson
from model.nano.data.talk import Lesson, Talk, lesson_of, talk_of, thinking
from model.nano.data.tasks import scene_lesson, text_lesson
from model.text.chat import IMAGE_PLACE, ChatTemplate
from model.text.tokenizer import Piece, Tokenizer

STYLE = Style(held_out_faces())
EXCHANGE = Exchange("How many?", "3", thought="1 and 2", steps="1. 2. 1 + 2 = 3")
Make = Callable[[random.Random], Lesson]


def looking(rng: random.Random) -> Lesson:
    return look_lesson(rng, STYLE)


def searching(rng: random.Random) -> Lesson:
    return search_lesson(rng, STYLE, 420, 400)


def scenes(rng: random.Random) -> Lesson:
    return scene_lesson(rng, STYLE, (420, 400), 2)


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    directory = default_checkpoint()
    return ChatTemplate.load(directory, Tokenizer.load(directory))


def talks(make: Make, num_seeds: int) -> Iterator[tuple[Lesson, Talk]]:
    for seed in range(num_seeds):
        lesson = make(random.Random(seed))
        yield from ((lesson, talk) for talk in lesson.talks)


def test_low_effort_thinks_nothing() -> None:
    assert thinking(EXCHANGE, "low") == ""


def test_high_effort_thinks_the_thought_and_the_steps() -> None:
    assert thinking(EXCHANGE, "high") == f"{EXCHANGE.thought}\n{EXCHANGE.steps}"


def test_high_effort_without_steps_thinks_the_thought() -> None:
    assert thinking(replace(EXCHANGE, steps=""), "high") == EXCHANGE.thought


def test_no_effort_named_thinks_the_thought() -> None:
    assert thinking(EXCHANGE, None) == EXCHANGE.thought


def test_thinking_and_answer_stand_behind_the_question(template: ChatTemplate) -> None:
    talk = talk_of("text", EXCHANGE, (), "high")
    text = template.render(talk.conversation).text
    assert "Reasoning: high" in text
    assert text.endswith(
        f"<think>\n{EXCHANGE.thought}\n{EXCHANGE.steps}\n</think>\n{EXCHANGE.answer}<|im_end|>\n"
    ), text


@pytest.mark.parametrize("make", [looking, searching, scenes, text_lesson])
def test_a_conversation_has_a_place_for_each_view(template: ChatTemplate, make: Make) -> None:
    for lesson, talk in talks(make, 12):
        pieces = template.render(talk.conversation).pieces
        assert pieces.count(Piece(IMAGE_PLACE, is_control=True)) == len(talk.views)
        assert set(talk.views) <= set(range(len(lesson.views)))


@pytest.mark.parametrize("make", [looking, searching])
def test_each_call_is_answered_before_the_model_goes_on(make: Make) -> None:
    calls = 0
    for _, talk in talks(make, 12):
        roles = [message.role for message in talk.conversation.messages]
        asked = [index for index, message in enumerate(talk.conversation.messages) if message.tool_calls]
        assert roles[0] == "user" and roles[-1] == "assistant"
        assert [index + 1 for index in asked] == [i for i, role in enumerate(roles) if role == "tool"]
        calls += len(asked)
    assert calls > 3


def test_without_the_tool_what_is_too_small_is_said_to_be() -> None:
    toolless = [talk for _, talk in talks(looking, 30) if not talk.conversation.tools]
    assert TOO_SMALL in {talk.conversation.messages[-1].content for talk in toolless}
    assert all(len(talk.views) == 1 for talk in toolless)


def test_with_the_tool_nothing_is_said_to_be_too_small() -> None:
    answers = {
        talk.conversation.messages[-1].content for _, talk in talks(looking, 30) if talk.conversation.tools
    }
    assert TOO_SMALL not in answers and len(answers) > 10


def test_a_lesson_asks_no_more_than_the_scene_has() -> None:
    scene = Scene(Image.new("RGB", (9, 9)), (), (EXCHANGE,))
    assert len(lesson_of("read", scene, random.Random(0), 3).talks) == 1
