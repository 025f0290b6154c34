"""`make demo`: the whole application, three questions about pictures, and nothing left running."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from cluster.cli_flags import program
from cluster.cli_up import progress
from cluster.client import Client
from cluster.config import ClusterConfig
from cluster.demo_looks import Question, ask, read_questions
from cluster.local_ray import free_port
from cluster.up import down, up
from model.nano import ABOUT

PICTURES = Path(__file__).resolve().parents[1] / "deploy" / "demo"


def main() -> None:
    """Runs the demo. Its ports and state are its own, so that it disturbs nothing that is up."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    report = progress(sys.stdout.write)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    config = ClusterConfig().replaced("frontdoor", port=free_port(), health_port=free_port())
    with tempfile.TemporaryDirectory(prefix="fluyt-demo-") as directory:
        os.environ["FLUYT_STATE_DIR"] = directory
        try:
            report(f"starting Ray and four deployments, {config.gang.size} shards")
            state = up(config, None, report)
            asyncio.run(_ask_all(state.address, report))
            report("that was the last token; ending everything")
        except KeyboardInterrupt:
            report("interrupted; ending everything")
            sys.exit(130)
        finally:
            # Whoever presses Ctrl-C again now would leave processes behind.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            down(report)
            os.chdir(PICTURES.parents[1])
            report("nothing is left running")
    print(
        f'go on with: {program()} up, then {program()} ask "Hello"; or without Ray: {program()} run "Hello"'
    )


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


async def _ask_all(address: str, report: Callable[[str], None]) -> None:
    print(ABOUT)
    async with Client(address) as client:
        for question in read_questions(PICTURES):
            report(f"asking about {question.picture} over gRPC: {question.question}")
            await _ask(client, question)


async def _ask(client: Client, question: Question) -> None:
    looked = await ask(client, PICTURES, question)
    for box in looked.boxes:
        print(f"  looks closer at {list(box)} (thousandths of the picture)")
    rate = looked.num_tokens / looked.spent_s
    print(f"  {looked.text}")
    print(
        f"  drawn there: {question.drawn}; {looked.num_tokens} tokens, pictures included {rate:.0f} a second"
    )


if __name__ == "__main__":
    main()
