"""`fluyt bench agents`: agents that share a long tool list and come back with a growing history.

All agents ask at once, turn by turn, with the prefix cache and without, alternating in one run. Prompts are
made by the chat template, as a server makes them; both get the same ones. Time to the first token is what
usage says: waiting and prefill.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from typing import Any

from model.local import Answer, LocalServer, open_server, prompt_builder
from model.nano import default_checkpoint
from model.options import EngineOptions
from model.sampling import SamplingOptions
from model.text.chat import ChatMessage, Conversation
from model.text.prompt import PreparedPrompt, PromptBuilder

MOST_TOKENS = 24
NUM_SHARED_TOKENS = 2000


def bench_agents(num_agents: int, num_turns: int, num_threads: int) -> dict[str, Any]:
    """Share of prompt tokens that were cached, and times to the first token, both ways."""
    directory = default_checkpoint()
    with ExitStack() as stack:
        cached, cold = (
            stack.enter_context(open_server(directory, EngineOptions(prefix_cache=on), num_threads))
            for on in (True, False)
        )
        builder = prompt_builder(cached.checkpoint)
        tools = _tools(builder)
        histories = [[ChatMessage("user", _task(agent, 0))] for agent in range(num_agents)]
        answers: dict[str, list[Answer]] = {"cached": [], "cold": []}
        for turn in range(1, num_turns + 1):
            prompts = [builder.from_chat(Conversation(tuple(history), tools)) for history in histories]
            answers["cold"] += _answer(cold, builder, prompts)
            new = _answer(cached, builder, prompts)
            answers["cached"] += new
            for agent, (history, answer) in enumerate(zip(histories, new, strict=True)):
                history += [
                    ChatMessage("assistant", answer.text or "?"), ChatMessage("user", _task(agent, turn)),
                ]  # fmt: skip
        num_prefixes = cached.load().num_prefixes
    first_s = {name: [_first_token_s(answer) for answer in found] for name, found in answers.items()}
    median_s = {name: statistics.median(times) for name, times in first_s.items()}
    usages = [answer.usage for answer in answers["cached"] if answer.usage is not None]
    num_prompt = sum(usage.num_prompt_tokens for usage in usages)
    same = sum(a.token_ids == b.token_ids for a, b in zip(answers["cached"], answers["cold"], strict=True))
    return {
        "hit_rate": round(sum(usage.num_cached_tokens for usage in usages) / num_prompt, 4),
        "first_token_ratio": round(median_s["cached"] / median_s["cold"], 4),
        "first_token_p50_s": round(median_s["cached"], 3),
        "first_token_p50_s_without": round(median_s["cold"], 3),
        "num_prompt_tokens": num_prompt,
        "same_answers": f"{same} of {len(usages)}",
        "num_prefixes": num_prefixes,
        "num_agents": num_agents,
        "num_turns": num_turns,
        "num_threads": num_threads,
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


def _task(agent: int, turn: int) -> str:
    return f"Calculate {100 + 7 * agent} + {31 * turn + agent}."


def _answer(server: LocalServer, builder: PromptBuilder, prompts: list[PreparedPrompt]) -> list[Answer]:
    options = SamplingOptions(temperature=0.0, max_tokens=MOST_TOKENS)
    answers = [server.submit(prompt, options, builder) for prompt in prompts]
    server.run()
    return answers


def _first_token_s(answer: Answer) -> float:
    assert answer.usage is not None, answer
    return (answer.usage.queue_us + answer.usage.prefill_us) / 1e6
