"""`make demo`: the whole application, one question about a picture, and nothing left running."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from cluster.cli_flags import program
from cluster.cli_up import progress
from cluster.client import Client, chat_request
from cluster.config import ClusterConfig
from cluster.local_ray import free_port
from cluster.up import down, up
from model.nano import ABOUT

PICTURE = Path(__file__).resolve().parents[1] / "deploy" / "demo" / "receipt.png"
QUESTION = "What is the total on this receipt?"
MAX_TOKENS = 64


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
            report(f"asking about {PICTURE.name} over gRPC: {QUESTION}")
            asyncio.run(_ask(state.address))
            report("that was the last token; ending everything")
        except KeyboardInterrupt:
            report("interrupted; ending everything")
            sys.exit(130)
        finally:
            # Whoever presses Ctrl-C again now would leave processes behind.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            down(report)
            os.chdir(PICTURE.parents[2])
            report("nothing is left running")
    print(
        f'go on with: {program()} up, then {program()} ask "Hello"; or without Ray: {program()} run "Hello"'
    )


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


async def _ask(address: str) -> None:
    request = chat_request(QUESTION, [PICTURE.read_bytes()], max_tokens=MAX_TOKENS)
    print(ABOUT)
    async with Client(address) as client:
        async for event in client.generate(request):
            print(event.delta.text, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
