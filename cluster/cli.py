"""The command `fluyt`: what can be typed. Each command imports what it needs when it runs.

Exit codes: 0 done; 2 bad input, with one line that says what and where; 1 anything else.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from cluster import cli_plan, cli_quantize
from cluster.cli_flags import Prompts, Sampling
from cluster.cli_options import (
    Choice,
    Effort,
    Grammar,
    IgnoreEos,
    Images,
    Json,
    LogitBias,
    Logprobs,
    MaxThinkTokens,
    MaxTokens,
    MinP,
    Model,
    Mtp,
    Priority,
    PromptLogprobs,
    Regex,
    Samples,
    Schema,
    Seed,
    Stop,
    Temperature,
    Text,
    ToolChoice,
    Tools,
    TopK,
    TopP,
)
from model.errors import CheckpointError, FluytError, InvalidRequest

# ruff: noqa: PLR0913, PLR0917, UP045 - a parameter is a flag; typer reads the types at run time

app = typer.Typer(
    help="Serves Step-3.7-Flash on a Ray cluster, behind a gRPC front door.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Measures, and says against what.", no_args_is_help=True)
app.add_typer(bench, name="bench")
app.command()(cli_quantize.quantize)
app.command()(cli_plan.plan)


def main() -> None:
    """The entry point: an error becomes one line and an exit code."""
    try:
        app()
    except (InvalidRequest, CheckpointError) as error:
        _fail(error.message, 2)
    except FluytError as error:
        _fail(error.message, getattr(error, "exit_code", 1))
    except ModuleNotFoundError as error:
        _fail(f"{error}; this command needs the server: pip install 'fluyt[server]'", 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(message: str, code: int) -> None:
    print(f"fluyt: {message}", file=sys.stderr)
    sys.exit(code)


@app.command()
def run(
    text: Text = None,
    model: Model = None,
    image: Images = None,
    prompt_ids: Annotated[Optional[str], typer.Option(help="1,2,3 or @FILE; used as given.")] = None,
    requests: Annotated[Optional[Path], typer.Option(help="One JSON object a line, run together.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    seed: Seed = None,
    ignore_eos: IgnoreEos = False,
    logprobs: Logprobs = None,
    shards: Annotated[int, typer.Option(help="Processes that share the experts.")] = 1,
    attention: Annotated[str, typer.Option(help="data or tensor.")] = "data",
    dtype: Annotated[str, typer.Option(help="float32, float64 or bfloat16.")] = "float32",
    chunk_tokens: Annotated[int, typer.Option(help="Most tokens of a step and shard.")] = 512,
    kv_blocks: Annotated[Optional[int], typer.Option(help="Blocks of the full-attention layers.")] = None,
    mtp: Mtp = None,
    prefix_cache: Annotated[
        bool, typer.Option("--prefix-cache/--no-prefix-cache", help="Compute what prompts share once.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Answer without Ray: the same engine in one process, or in as many as there are shards."""
    from cluster import cli_run
    from model.options import EngineOptions

    sampling = Sampling(max_tokens, temperature, top_p, top_k, min_p, seed, ignore_eos or None, logprobs)
    cli_run.check_choice("attention", attention, ("data", "tensor"))
    cli_run.check_choice("dtype", dtype, ("float32", "float64", "bfloat16"))
    options = EngineOptions(
        num_shards=shards,
        attention=attention,  # type: ignore[arg-type]
        dtype=dtype,  # type: ignore[arg-type]
        chunk_tokens=chunk_tokens,
        kv_blocks=kv_blocks,
        prefix_cache=prefix_cache,
        mtp=mtp,
    )
    cli_run.run(Prompts(text, tuple(image or ()), prompt_ids, requests), model, sampling, options, as_json)


@app.command()
def up(
    config: Annotated[Optional[Path], typer.Option(help="YAML; see cluster/config.py.")] = None,
    model: Model = None,
    gang_size: Annotated[Optional[int], typer.Option(help="Ranks that share the experts.")] = None,
    gangs: Annotated[Optional[int], typer.Option(help="Gangs of so many ranks.")] = None,
    ray: Annotated[Optional[str], typer.Option(help="Join a Ray: its address, or auto.")] = None,
) -> None:
    """Start the application and return when it serves."""
    from cluster import cli_up

    cli_up.up(config, model, gang_size, gangs, ray)


@app.command()
def down() -> None:
    """Let running requests end, then end what `up` started, and nothing else."""
    from cluster import cli_up

    cli_up.down()


@app.command()
def status(as_json: Json = False) -> None:
    """What is up, and how busy it is. Exit code 1 if it does not serve."""
    from cluster import cli_ask

    if not cli_ask.status(as_json):
        raise typer.Exit(1)


@app.command()
def ask(
    text: Annotated[str, typer.Argument(help="What to ask.")],
    image: Images = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    seed: Seed = None,
    ignore_eos: IgnoreEos = False,
    logprobs: Logprobs = None,
    prompt_logprobs: PromptLogprobs = None,
    n: Samples = None,
    stop: Stop = None,
    logit_bias: LogitBias = None,
    effort: Effort = None,
    max_think_tokens: MaxThinkTokens = None,
    schema: Schema = None,
    regex: Regex = None,
    grammar: Grammar = None,
    choice: Choice = None,
    tools: Tools = None,
    tool_choice: ToolChoice = "",
    priority: Priority = 0,
    mtp: Mtp = None,
    address: Annotated[Optional[str], typer.Option(help="host:port; without it, what is up here.")] = None,
    token: Annotated[Optional[str], typer.Option(help="Sent as a bearer token.")] = None,
    ca: Annotated[Optional[Path], typer.Option(help="PEM of the authority; turns TLS on.")] = None,
    as_json: Json = False,
) -> None:
    """Ask the application that is up; the answer streams."""
    from cluster import cli_ask
    from cluster.cli_request import Wishes, build_request

    sampling = Sampling(
        max_tokens, temperature, top_p, top_k, min_p, seed, ignore_eos or None, logprobs,
        prompt_logprobs, n, max_think_tokens, mtp, tuple(stop or ()) or None,
    )  # fmt: skip
    wishes = Wishes(
        priority, effort, schema, regex, grammar, tuple(choice or ()), tools, tool_choice,
        tuple(logit_bias or ()),
    )  # fmt: skip
    request = build_request(text, tuple(image or ()), sampling, wishes)
    cli_ask.ask(request, cli_ask.Target.of(address, token, ca), as_json)


@app.command()
def tokenize(
    text: Text = None,
    messages: Annotated[Optional[Path], typer.Option(help="JSON: messages, tools, ...")] = None,
    image: Images = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """What a prompt becomes: the rendered text, its ids, the tiles of its images."""
    from cluster import cli_run

    cli_run.tokenize(text, messages, tuple(image or ()), model, as_json)


@app.command()
def check(directory: Annotated[Path, typer.Argument(help="A checkpoint directory.")]) -> None:
    """Whether a checkpoint can be served, and what it holds; reads headers alone."""
    from cluster import cli_run

    cli_run.check(directory)


@bench.command()
def engine(
    peer: Annotated[str, typer.Option(help="Against what: transformers.")] = "transformers",
    rounds: Annotated[int, typer.Option(help="Alternating pairs.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads of both.")] = 1,
    as_json: Json = False,
) -> None:
    """Our engine against another one, alternating in one run."""
    from cluster import cli_bench

    cli_bench.engine(peer, rounds, threads, as_json)


@bench.command()
def cluster(
    streams: Annotated[int, typer.Option(help="Requests at once.")] = 1,
    as_json: Json = False,
) -> None:
    """The application over gRPC against the same engine without Ray."""
    from cluster import cli_bench

    cli_bench.cluster(streams, as_json)


@bench.command()
def mtp(
    rounds: Annotated[int, typer.Option(help="Alternating pairs.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads of both.")] = 1,
    as_json: Json = False,
) -> None:
    """The default model with drafts and without, and how many hold."""
    from cluster import cli_bench

    cli_bench.mtp(rounds, threads, as_json)


@bench.command()
def forms(
    rounds: Annotated[int, typer.Option(help="Of 40 answers each.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads of the decoder; masks have one more.")] = 1,
    as_json: Json = False,
) -> None:
    """What a regex, a schema and a nested schema add to a step of the default model."""
    from cluster import cli_bench

    cli_bench.forms(rounds, threads, as_json)


@bench.command()
def agents(
    agents: Annotated[int, typer.Option(help="Requests at once.")] = 40,
    turns: Annotated[int, typer.Option(help="Of each agent, with a growing history.")] = 8,
    threads: Annotated[int, typer.Option(help="Threads of a rank.")] = 1,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="The engine alone, without Ray and gRPC.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Agents with a shared tool list, over gRPC: what the prefix cache saves."""
    from cluster import cli_bench

    cli_bench.agents(agents, turns, threads, in_process, as_json)


@bench.command()
def nano(
    count: Annotated[int, typer.Option(help="Questions of each kind.")] = 20,
    as_json: Json = False,
) -> None:
    """What the default model gets right, asked over gRPC through an application of its own."""
    from cluster import cli_bench

    cli_bench.nano(count, as_json)


@bench.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def gpu(context: typer.Context) -> None:
    """All 198B with random weights on the GPUs here; flags as of python -m model.device.bench --help."""
    from cluster import cli_bench

    cli_bench.gpu(context.args)


if __name__ == "__main__":
    main()
