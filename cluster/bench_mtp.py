"""`fluyt bench mtp`: the default model's answers with drafts and without, alternating in one run.

Pages of text to be written down, held-out typefaces: long answers. One stream (page after page) and 40
at once. Greedy, until the model ends. Pictures are encoded before the clock starts; prefill counts, and no
round has what the one before computed.
"""

from __future__ import annotations

import io
import random
import statistics
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from model.local import Answer, LocalServer, open_server, prompt_builder
from model.nano import default_checkpoint
from model.nano.data import reading, tasks
from model.nano.data.canvas import Style
from model.nano.data.fonts import held_out_faces
from model.options import EngineOptions
from model.sampling import SamplingOptions
from model.text.chat_json import question
from model.text.images import ImageInput
from model.text.prompt import PreparedPrompt, PromptBuilder

NUM_PAGES = 40
NUM_SINGLE = 6  # pages of one stream
MOST_TOKENS = 160
SEED = 3


def bench_mtp(num_rounds: int, num_threads: int) -> dict[str, Any]:
    """Tokens per second of both, their ratio as the median of alternating pairs, drafts accepted."""
    directory = default_checkpoint()
    with ExitStack() as stack:
        drafting, plain = (
            stack.enter_context(
                open_server(directory, EngineOptions(mtp=mtp, prefix_cache=False), num_threads)
            )
            for mtp in (True, False)
        )
        builder = prompt_builder(drafting.checkpoint)
        prompts = _pages(builder)
        single = _compare(drafting, plain, builder, [[page] for page in prompts[:NUM_SINGLE]], num_rounds)
        batch = _compare(drafting, plain, builder, [prompts], num_rounds)
    return {
        "single_stream_ratio": single["ratio"],
        "batch40_ratio": batch["ratio"],
        "single_stream": single,
        "batch40": batch,
        "num_threads": num_threads,
    }


def _pages(builder: PromptBuilder) -> list[PreparedPrompt]:
    rng, style = random.Random(SEED), Style(held_out_faces())  # noqa: S311 - pictures, not secrets
    prompts = list[PreparedPrompt]()
    while len(prompts) < NUM_PAGES:
        size = tasks.small_size(rng)
        scene = reading.page(rng, replace(style, unit=tasks.unit_of(*size)), *size)
        if scene.drills:
            file = io.BytesIO()
            scene.picture.save(file, "PNG")
            prompts.append(
                builder.from_chat(question(scene.drills[0].question, [ImageInput(file.getvalue())]))
            )
    return prompts


def _compare(
    drafting: LocalServer,
    plain: LocalServer,
    builder: PromptBuilder,
    turns: list[list[PreparedPrompt]],
    num_rounds: int,
) -> dict[str, Any]:
    """`turns`: prompts that are answered together, one turn after the other."""
    before = drafting.load()
    rates: list[tuple[float, float]] = []
    for round_index in range(num_rounds + 1):
        (ours_s, ours), (plain_s, theirs) = (_timed(server, builder, turns) for server in (drafting, plain))
        num_tokens = sum(len(answer.token_ids) for answer in ours)
        if round_index:  # the first round warms up, and the engine learns whether drafts pay
            rates.append((num_tokens / ours_s, num_tokens / plain_s))
    after = drafting.load()
    num_held = [b - a for a, b in zip(before.num_held, after.num_held, strict=True)]
    num_verified = [b - a for a, b in zip(before.num_verified, after.num_verified, strict=True)]
    same = sum(a.token_ids == b.token_ids for a, b in zip(ours, theirs, strict=True))
    return {
        "ratio": round(statistics.median(a / b for a, b in rates), 3),
        "tokens_per_s": round(statistics.median(a for a, _ in rates), 1),
        "plain_tokens_per_s": round(statistics.median(b for _, b in rates), 1),
        "ratios": [round(a / b, 3) for a, b in rates],
        "num_tokens": num_tokens,
        "same_answers": f"{same} of {len(ours)}",
        "accepted": [round(a / b, 3) if b else None for a, b in zip(num_held, num_verified, strict=True)],
        "num_verified": num_verified,
    }


def _timed(
    server: LocalServer, builder: PromptBuilder, turns: list[list[PreparedPrompt]]
) -> tuple[float, list[Answer]]:
    options, answers, spent_s = SamplingOptions(temperature=0.0, max_tokens=MOST_TOKENS), list[Answer](), 0.0
    for prompts in turns:
        answers += [server.submit(prompt, options, builder) for prompt in prompts]
        began_s = time.perf_counter()
        server.run()
        spent_s += time.perf_counter() - began_s
    return spent_s, answers
