"""The agents of `fluyt bench agents` in front of a fake: they say the same twice, and all of it counts."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.bench_agents import NUM_WARM_UP, Run, Turn, report, run_agents
from tests.cluster.front.harness import answering, front_door
from tests.fakes import FakeLink

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


async def run_with(link: FakeLink, script: Run | None) -> tuple[Run, list[tuple[int, ...]]]:
    async with front_door(link) as door:
        run = await run_agents(door.address, TOOLS, 3, 2, script)
    return run, [request.prompt_ids for request in link.submitted[NUM_WARM_UP:]]


async def test_every_agent_takes_its_turns_in_a_chat_of_its_own() -> None:
    run, prompts = await run_with(answering("Well.\n</think>\nIt is 5.<|im_end|>"), None)
    assert [len(turns) for turns in run.turns] == [2, 2, 2]
    assert len(set(prompts)) == 6
    assert {turn.text for turn in run.all_turns} == {"It is 5."}
    assert sum(turn.num_prompt_tokens for turn in run.all_turns) == sum(map(len, prompts))
    assert all(0 < turn.first_token_s < run.total_s for turn in run.all_turns)


async def test_with_a_script_the_prompts_are_those_of_the_first_run() -> None:
    first, prompts = await run_with(answering("Well.\n</think>\nIt is 5.<|im_end|>"), None)
    second, again = await run_with(answering("Oh.\n</think>\nIt is 6.<|im_end|>"), first)
    assert sorted(again) == sorted(prompts)
    assert report(first, second)["same_answers"] == "0 of 6"
    assert report(first, first)["same_answers"] == "6 of 6"


@pytest.mark.parametrize(("cached_s", "ratio"), [(0.5, 0.25), (4.0, 2.0)])
def test_the_report_counts_tokens_and_takes_medians(cached_s: float, ratio: float) -> None:
    def run(**fields: Any) -> Run:
        turn = {
            "text": "",
            "reasoning": "",
            "token_ids": (1,),
            "num_prompt_tokens": 100,
            "num_cached_tokens": 0,
            "first_token_s": 2.0,
        }
        return Run([[Turn(**turn), Turn(**{**turn, **fields}), Turn(**{**turn, **fields})]])

    found = report(run(num_cached_tokens=90, first_token_s=cached_s), run())
    assert (found["hit_rate"], found["first_token_ratio"]) == (0.6, ratio)
    assert (found["num_prompt_tokens"], found["num_agents"], found["num_turns"]) == (300, 1, 3)
