"""The examination without a model: replies are scripted, what counts is the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.nano.data import episodes as module
from model.nano.data.canvas import Style
from model.nano.data.episodes import ROWS, Episode, Reply, episodes, is_right
from model.nano.data.fonts import held_out_faces
from model.nano.data.looking import MAX_LOOKS, TOO_SMALL, LookTask, look_box
from model.nano.data.scene import Exchange
from model.nano.data.searching import SearchTask
from model.nano.evaluate import AT_ONCE, examine
from model.nano.tools import SEARCH, ZOOM
from model.text.chat import Conversation, ToolCall
from model.text.tool_values import ToolSchemas
from model.text.tools import CallEnd, CallParser, join

STYLE = Style(held_out_faces())
SEED = 3
Task = Exchange | LookTask | SearchTask
# Task and number of the turn in, reply out.
Answerer = Callable[[Task, int], Reply]


@dataclass(frozen=True)
class Posed:
    """An episode and what its maker knows about it."""

    episode: Episode
    task: Task


def posed(row: str, count: int) -> Iterator[Posed]:
    """Episodes with their tasks, looked at on the way."""
    with pytest.MonkeyPatch.context() as patch:
        seen: list[Task] = []
        asked, look_task, search_task = module._asked, module.look_task, module.search_task

        def asking(row: str, picture: object, exchange: Exchange, effort: object) -> Episode:
            seen.append(exchange)
            return asked(row, picture, exchange, effort)

        def looking(*args: object, **options: object) -> LookTask:
            seen.append(look_task(*args, **options))
            return seen[-1]

        def searching(*args: object) -> SearchTask:
            seen.append(search_task(*args))
            return seen[-1]

        patch.setattr(module, "_asked", asking)
        patch.setattr(module, "look_task", looking)
        patch.setattr(module, "search_task", searching)
        for episode in episodes(row, STYLE, count, SEED):
            yield Posed(episode, seen[-1])


def called(name: str, parameter: str, value: str) -> Reply:
    """As the engine gives a tool call."""
    return replied(f"<function={name}>\n<parameter={parameter}>\n{value}\n</parameter>\n</function>\n")


def replied(block: str) -> Reply:
    """The calls of a block."""
    parser = CallParser(ToolSchemas.of((ZOOM, SEARCH)))
    stretches = [*parser.push(block), *parser.close(CallEnd.COMPLETE)]
    calls = join(piece for stretch in stretches for piece in stretch.pieces)
    return Reply("", tool_calls=tuple(ToolCall(call.name, call.arguments) for call in calls))


def zoomed(task: LookTask, turn: int) -> Reply:
    return called("zoom", "box", json.dumps(look_box(task.cards[turn], task.desk.picture.size)))


def perfect(task: Task, turn: int) -> Reply:
    if isinstance(task, LookTask) and turn < len(task.cards):
        return zoomed(task, turn)
    if isinstance(task, SearchTask) and task.needs_search and turn == 0:
        return called("search", "query", task.query)
    return Reply(task.answer)


def verdict(one: Posed, answerer: Answerer) -> tuple[bool, int]:
    """Right or wrong, and after how many turns."""
    outcome: Episode | bool = one.episode
    turn = 0
    while isinstance(outcome, Episode):
        outcome = outcome.proceed(answerer(one.task, turn))
        turn += 1
    return outcome, turn


@pytest.fixture(scope="module")
def look() -> Posed:
    return next(posed("look", 1))


@pytest.fixture(scope="module")
def searches() -> list[Posed]:
    found = list(posed("search", 10))
    assert {one.task.needs_search for one in found if isinstance(one.task, SearchTask)} == {True, False}
    return found


def screen_point() -> Posed:
    return next(one for one in posed("screens", 20) if isinstance(one.task, Exchange) and one.task.box)


@pytest.mark.parametrize("row", ROWS)
def test_who_knows_everything_is_right(row: str) -> None:
    for one in posed(row, 4):
        assert verdict(one, perfect)[0], one.task


@pytest.mark.parametrize("row", ROWS)
def test_who_says_nothing_is_wrong(row: str) -> None:
    for one in posed(row, 2):
        assert verdict(one, lambda task, turn: Reply("")) == (False, 1)


@pytest.mark.parametrize("row", ROWS)
def test_the_same_seed_asks_the_same(row: str) -> None:
    one, other = ([e.conversation for e in episodes(row, STYLE, 2, SEED)] for _ in range(2))
    assert one == other


def test_it_is_not_too_small_for_who_can_look_closer() -> None:
    for one in posed("look", 6):
        assert verdict(one, lambda task, turn: Reply(TOO_SMALL)) == (False, 1)


def test_a_crop_comes_back_at_low_resolution(look: Posed) -> None:
    assert isinstance(look.task, LookTask)
    more = look.episode.proceed(zoomed(look.task, 0))
    assert isinstance(more, Episode)
    *_, call, result = more.conversation.messages
    assert call.tool_calls[0].name == "zoom" and result.role == "tool"
    assert not isinstance(result.content, str)
    image = result.content[0].image
    assert image is not None and image.max_tiles == 0


def test_looks_are_counted(look: Posed) -> None:
    def endless(task: Task, turn: int) -> Reply:
        assert isinstance(task, LookTask)
        return zoomed(task, 0)

    assert verdict(look, endless) == (False, MAX_LOOKS + 1)


numbers = st.integers() | st.floats() | st.none() | st.text(max_size=3)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(value=st.text(max_size=30) | st.lists(numbers, max_size=5).map(json.dumps))
def test_a_box_without_sense_is_wrong_and_no_error(look: Posed, value: str) -> None:
    outcome = look.episode.proceed(called("zoom", "box", value))
    if isinstance(outcome, Episode):
        left, top, right, bottom = (int(edge) for edge in json.loads(value))
        assert 0 <= left < right <= 1000 and 0 <= top < bottom <= 1000
    else:
        assert outcome is False


@settings(max_examples=80, deadline=None, derandomize=True)
@given(text=st.text(max_size=60))
def test_a_call_without_sense_is_wrong_and_no_error(look: Posed, text: str) -> None:
    assert look.episode.proceed(replied(text)) is False


@pytest.mark.parametrize(
    "value", ["[0, 0, 1e999, 9]", "[NaN, 0, 9, 9]", "[9, 9, 0, 0]", "[0, 0, 9]", "{}", "7", ""]
)
def test_a_box_that_is_none_is_wrong(look: Posed, value: str) -> None:
    assert look.episode.proceed(called("zoom", "box", value)) is False


def test_another_tool_than_the_one_at_hand_is_wrong(look: Posed, searches: list[Posed]) -> None:
    assert look.episode.proceed(called("search", "query", "[0, 0, 9, 9]")) is False
    assert not any(one.episode.proceed(called("zoom", "box", "[0, 0, 9, 9]")) for one in searches)


def test_a_search_that_was_not_needed_is_wrong(searches: list[Posed]) -> None:
    for one in searches:
        assert isinstance(one.task, SearchTask)
        if not one.task.needs_search:
            assert one.episode.proceed(called("search", "query", one.task.query)) is False


def test_who_does_not_search_where_it_is_needed_is_wrong(searches: list[Posed]) -> None:
    for one in searches:
        assert isinstance(one.task, SearchTask)
        assert one.episode.proceed(Reply(one.task.answer)) is (not one.task.needs_search)


def test_another_query_finds_nothing(searches: list[Posed]) -> None:
    one = next(one for one in searches if isinstance(one.task, SearchTask) and one.task.needs_search)
    more = one.episode.proceed(called("search", "query", "weather"))
    assert isinstance(more, Episode) and more.conversation.messages[-1].content == "nothing found"


def test_a_point_has_to_lie_in_its_box() -> None:
    box, size = (100.0, 20.0, 200.0, 40.0), (400, 200)
    exchange = Exchange("Where?", "", box=box)
    assert is_right(exchange, '{"point": [375, 150]}', size)
    assert is_right(exchange, '{"point": [251, 101], "box": [0, 0, 0, 0]}', size)
    assert not is_right(exchange, '{"point": [249, 150]}', size)
    assert not is_right(exchange, '{"point": [375, 201]}', size)


def test_the_middle_of_something_else_is_wrong() -> None:
    one = screen_point()
    assert one.episode.proceed(Reply('{"point": [1000, 1000]}')) is False


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    answer=st.text(max_size=20)
    | st.lists(numbers, max_size=3).map(lambda point: json.dumps({"point": point}))
)
def test_a_point_without_sense_is_wrong_and_no_error(answer: str) -> None:
    exchange = Exchange("Where?", "", box=(-2.0, -2.0, -1.0, -1.0))
    assert is_right(exchange, answer, (100, 100)) in (True, False)


@pytest.mark.parametrize("answer", ["", "7", "null", "[]", '{"point": [1]}', '{"point": [1e999, 1]}'])
def test_what_is_no_point_is_wrong(answer: str) -> None:
    assert not is_right(Exchange("Where?", "", box=(0, 0, 10, 10)), answer, (10, 10))


def test_a_number_too_large_for_a_float_is_wrong() -> None:
    answer = json.dumps({"point": [10**400, 1]})
    assert not is_right(Exchange("Where?", "", box=(0, 0, 10, 10)), answer, (10, 10))


def test_keys_of_json_may_come_in_any_order() -> None:
    exchange = Exchange("As JSON", '{"total": 12.50, "shop": "Ladder"}')
    assert is_right(exchange, '{"shop":"Ladder","total":12.5}', (1, 1))
    assert not is_right(exchange, '{"shop": "Ladder"}', (1, 1))
    assert not is_right(exchange, '{"shop": "Ladder", "total": "12.50"}', (1, 1))
    assert not is_right(exchange, "Ladder", (1, 1))


def test_a_text_has_to_be_the_very_text() -> None:
    exchange = Exchange("What does it say?", "K7XQ2")
    assert is_right(exchange, " K7XQ2\n", (1, 1))
    assert not is_right(exchange, "k7xq2", (1, 1))


def test_an_examination_counts_what_is_right_and_what_was_asked() -> None:
    tasks = {one.episode.conversation: one.task for one in posed("text", 7)}

    def knows_some(conversations: Sequence[Conversation]) -> list[Reply]:
        asked = [list(tasks).index(conversation) for conversation in conversations]
        answers = [tasks[conversation].answer for conversation in conversations]
        return [
            Reply(answer if index % 3 == 0 else "no", "12345")
            for index, answer in zip(asked, answers, strict=True)
        ]

    score = examine("text", STYLE, knows_some, count=7, seed=SEED)
    assert (score.num_right, score.num_asked, score.num_reasoning_characters) == (3, 7, 35)
    assert score.share == 3 / 7 and [answer for _, answer in score.wrong] == ["no"] * 4


def test_who_zooms_for_ever_is_stopped() -> None:
    batches = []

    def zooms(conversations: Sequence[Conversation]) -> list[Reply]:
        batches.append(len(conversations))
        return [called("zoom", "box", "[0, 0, 500, 500]") for _ in conversations]

    score = examine("look", STYLE, zooms, count=2, seed=SEED)
    assert (score.num_right, score.num_asked) == (0, 2)
    assert batches == [2] * (MAX_LOOKS + 1)


def test_no_more_conversations_than_the_engine_holds_are_asked_at_once() -> None:
    batches = []

    def nothing(conversations: Sequence[Conversation]) -> list[Reply]:
        batches.append(len(conversations))
        return [Reply("")] * len(conversations)

    assert examine("text", STYLE, nothing, count=AT_ONCE + 3, seed=SEED).num_asked == AT_ONCE + 3
    assert batches == [AT_ONCE, 3]
