"""Examines a checkpoint with the engine that serves it: held-out fonts, held-out seeds.

.venv/bin/python -m model.nano evaluate --json
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.local import Answer, LocalServer, open_server, prompt_builder
from model.nano.data.canvas import Style
from model.nano.data.episodes import Episode, Reply, episodes
from model.nano.data.talk import Effort
from model.options import EngineOptions
from model.sampling import SamplingOptions
from model.text.chat import Conversation, ToolCall
from model.text.prompt import PromptBuilder

MAX_TOKENS = 320
SEED = 2  # of the examination; training draws from others
AT_ONCE = 32  # conversations in the engine: their embeddings and pixels are held

# Conversations in, replies in the same order out.
Replier = Callable[[Sequence[Conversation]], list[Reply]]


@dataclass
class Score:
    """Of one row: how many were right, what was answered, how long the thinking was."""

    num_right: int = 0
    num_asked: int = 0
    num_reasoning_characters: int = 0
    seconds: float = 0.0
    wrong: list[tuple[str, str]] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of right answers."""
        return self.num_right / max(self.num_asked, 1)

    def summary(self) -> dict[str, Any]:
        """What --json prints."""
        return {
            "right": round(self.share, 4),
            "asked": self.num_asked,
            "reasoning_characters": round(self.num_reasoning_characters / max(self.num_asked, 1), 1),
            "seconds": round(self.seconds, 1),
        }


def examine(
    row: str, style: Style, replies: Replier, *, count: int, seed: int, effort: Effort = None
) -> Score:
    """One row of the examination."""
    score, began_s = Score(), time.perf_counter()
    waiting = list(episodes(row, style, count, seed, effort))
    while waiting:
        now, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        for episode, reply in zip(now, replies([e.conversation for e in now]), strict=True):
            score.num_reasoning_characters += len(reply.reasoning)
            outcome = episode.proceed(reply)
            if isinstance(outcome, Episode):
                waiting.append(outcome)
                continue
            score.num_asked += 1
            score.num_right += outcome
            if not outcome:
                score.wrong.append((_question_of(episode), reply.shown))
    score.seconds = time.perf_counter() - began_s
    return score


def _question_of(episode: Episode) -> str:
    content = episode.conversation.messages[0].content
    return content if isinstance(content, str) else " ".join(part.text for part in content if part.text)


def local_replier(server: LocalServer, builder: PromptBuilder) -> Replier:
    """Greedy answers of an engine in this process."""

    def replies(conversations: Sequence[Conversation]) -> list[Reply]:
        options = SamplingOptions(temperature=0.0, max_tokens=MAX_TOKENS)
        answers = [server.submit(builder.from_chat(c), options, builder) for c in conversations]
        server.run()
        return [_reply(answer) for answer in answers]

    return replies


def _reply(answer: Answer) -> Reply:
    calls = (ToolCall(call.name, call.arguments) for call in answer.tool_calls if call.is_complete)
    return Reply(answer.text, answer.reasoning, tuple(calls))


def examine_checkpoint(
    directory: Path,
    style: Style,
    rows: Sequence[str],
    *,
    count: int,
    seed: int,
    effort: Effort = None,
    num_threads: int | None = None,
) -> dict[str, Score]:
    """All rows, one engine."""
    with open_server(directory, EngineOptions(), num_threads) as server:
        replies = local_replier(server, prompt_builder(server.checkpoint))
        return {row: examine(row, style, replies, count=count, seed=seed, effort=effort) for row in rows}
