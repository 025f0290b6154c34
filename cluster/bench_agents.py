"""`fluyt bench agents`: agents that share a long tool list and come back with a growing history.

Each agent is a gRPC client of its own with a chat of its own. They all begin at once; an agent asks again as
soon as it has its answer. First with the prefix cache, then the same chats without it: what an agent says the
second time is what it was told the first time, so the prompts are the same, and answers can be compared.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from cluster.bench_nano import to_request
from cluster.client import Client, collect
from model.local import Answer, LocalServer, open_server, prompt_builder
from model.nano import default_checkpoint
from model.options import EngineOptions
from model.sampling import SamplingOptions
from model.text.chat import ChatMessage, Conversation
from model.text.prompt import PromptBuilder
from model.weights import open_checkpoint

MOST_TOKENS = 24
NUM_SHARED_TOKENS = 2000
NUM_WARM_UP = 2  # agents with other tasks, before anything is measured

Application = Callable[[bool], AbstractContextManager[str]]  # prefix cache or not -> its address


@dataclass(frozen=True)
class Turn:
    """An answer, and what it took. `first_token_s` is what who asked has waited."""

    text: str
    reasoning: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    first_token_s: float


@dataclass(frozen=True)
class Run:
    """The turns of each agent, and the time from the first question to the last answer."""

    turns: list[list[Turn]] = field(default_factory=list)
    total_s: float = 0.0

    @property
    def all_turns(self) -> list[Turn]:
        """Of all agents, in the order of agents."""
        return [turn for turns in self.turns for turn in turns]


def bench_agents(application: Application, num_agents: int, num_turns: int) -> dict[str, Any]:
    """Through the chat API: share of prompt tokens cached, and times to the first token both ways."""
    tools = _tools(prompt_builder(open_checkpoint(default_checkpoint())))
    with application(True) as address:
        cached = _run_apart(address, tools, num_agents, num_turns, None)
    with application(False) as address:
        cold = _run_apart(address, tools, num_agents, num_turns, cached)
    return {
        **report(cached, cold),
        "total_s": round(cached.total_s, 1),
        "total_s_without": round(cold.total_s, 1),
        "path": "gRPC",
    }


def _run_apart(*args: Any) -> Run:
    """`run_agents` in a process of its own: beside what Ray leaves in this one, grpc.aio logs errors."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_run_all, *args).result()


def _run_all(*args: Any) -> Run:
    return asyncio.run(run_agents(*args))


async def run_agents(
    address: str, tools: Sequence[dict[str, Any]], num_agents: int, num_turns: int, script: Run | None
) -> Run:
    """All agents at once. With a script each goes on as if it had been told what its turns there say."""
    others = range(1000, 1000 + NUM_WARM_UP)
    await asyncio.gather(*(_agent(address, number, [], 1, None) for number in others))
    began_s = time.perf_counter()
    turns = await asyncio.gather(
        *(
            _agent(address, number, tools, num_turns, None if script is None else script.turns[number])
            for number in range(num_agents)
        )
    )
    return Run(turns, time.perf_counter() - began_s)


async def _agent(
    address: str,
    number: int,
    tools: Sequence[dict[str, Any]],
    num_turns: int,
    script: Sequence[Turn] | None,
) -> list[Turn]:
    """One agent's chat. With a script it goes on as if it had been told what stands there."""
    history, turns = [ChatMessage("user", _task(number, 0))], list[Turn]()
    async with Client(address) as client:
        for index in range(num_turns):
            turns.append(await _ask(client, Conversation(tuple(history), tuple(tools))))
            history += _next(turns[-1] if script is None else script[index], number, index + 1)
    return turns


async def _ask(client: Client, conversation: Conversation) -> Turn:
    request = to_request(conversation)
    request.sampling.max_tokens = MOST_TOKENS
    began_s, first_token_s, events = time.perf_counter(), 0.0, []
    async for event in client.generate(request):
        if not first_token_s and event.delta.token_ids:
            first_token_s = time.perf_counter() - began_s
        events.append(event)
    answer = collect(events)
    usage = answer.finished.usage
    return Turn(
        answer.text,
        answer.reasoning,
        answer.token_ids,
        usage.num_prompt_tokens,
        usage.num_cached_tokens,
        first_token_s,
    )


def bench_in_process(num_agents: int, num_turns: int, num_threads: int) -> dict[str, Any]:
    """The same with an engine in this process behind the chat template: all ask at once, turn by turn.

    With and without the cache by turns; the time to the first token is what usage says, waiting and prefill.
    """
    directory = default_checkpoint()
    with ExitStack() as stack:
        servers = [
            stack.enter_context(open_server(directory, EngineOptions(prefix_cache=on), num_threads))
            for on in (True, False)
        ]
        builder = prompt_builder(servers[0].checkpoint)
        tools = _tools(builder)
        histories = [[ChatMessage("user", _task(agent, 0))] for agent in range(num_agents)]
        cached, cold = (Run([[] for _ in histories]) for _ in servers)
        for turn in range(1, num_turns + 1):
            asked = [Conversation(tuple(history), tools) for history in histories]
            for server, run in reversed(list(zip(servers, (cached, cold), strict=True))):
                for turns, found in zip(run.turns, _answer(server, builder, asked), strict=True):
                    turns.append(found)
            for number, history in enumerate(histories):
                history.extend(_next(cached.turns[number][-1], number, turn))
    return {**report(cached, cold), "num_threads": num_threads, "path": "one process"}


def _answer(server: LocalServer, builder: PromptBuilder, asked: Sequence[Conversation]) -> list[Turn]:
    options = SamplingOptions(temperature=0.0, max_tokens=MOST_TOKENS)
    answers = [server.submit(builder.from_chat(each), options, builder) for each in asked]
    server.run()
    return [_turn_of(answer) for answer in answers]


def _turn_of(answer: Answer) -> Turn:
    usage = answer.usage
    assert usage is not None, answer
    return Turn(
        answer.text,
        answer.reasoning,
        tuple(answer.token_ids),
        usage.num_prompt_tokens,
        usage.num_cached_tokens,
        (usage.queue_us + usage.prefill_us) / 1e6,
    )


def report(cached: Run, cold: Run) -> dict[str, Any]:
    """What both runs say together."""
    medians_s = [statistics.median(turn.first_token_s for turn in run.all_turns) for run in (cached, cold)]
    num_prompt = sum(turn.num_prompt_tokens for turn in cached.all_turns)
    pairs = list(zip(cached.all_turns, cold.all_turns, strict=True))
    same = sum(one.token_ids == other.token_ids for one, other in pairs)
    return {
        "hit_rate": round(sum(turn.num_cached_tokens for turn in cached.all_turns) / num_prompt, 4),
        "first_token_ratio": round(medians_s[0] / medians_s[1], 4),
        "first_token_p50_s": round(medians_s[0], 3),
        "first_token_p50_s_without": round(medians_s[1], 3),
        "num_prompt_tokens": num_prompt,
        "same_answers": f"{same} of {len(pairs)}",
        "num_agents": len(cached.turns),
        "num_turns": len(cached.turns[0]),
    }


def _tools(builder: PromptBuilder) -> tuple[dict[str, Any], ...]:
    """As many as make the shared part of every prompt long enough."""
    tools = list[dict[str, Any]]()
    while True:
        number = len(tools)
        parameters = {
            "type": "object",
            "properties": {
                f"value_{number}": {"type": "string", "description": f"What tool {number} needs."}
            },
            "required": [f"value_{number}"],
        }
        description = f"Does the work of step {number} and says how it went."
        function = {"name": f"step_{number}", "description": description, "parameters": parameters}
        tools.append({"type": "function", "function": function})
        prompt = builder.from_chat(Conversation((ChatMessage("user", "?"),), tuple(tools)))
        if len(prompt.prompt_ids) >= NUM_SHARED_TOKENS:
            return tuple(tools)


def _next(told: Turn, agent: int, turn: int) -> list[ChatMessage]:
    """What an agent's history gains: the answer, and its next task."""
    answer = ChatMessage("assistant", told.text or "?", reasoning_content=told.reasoning)
    return [answer, ChatMessage("user", _task(agent, turn))]


def _task(agent: int, turn: int) -> str:
    return f"Calculate {100 + 7 * agent} + {31 * turn + agent}."
