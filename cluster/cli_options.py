"""The flags that commands share, and those of `ask`, as typer reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

# ruff: noqa: UP045 - typer reads the types at run time

Text = Annotated[Optional[str], typer.Argument(help="What to ask.")]
Model = Annotated[
    Optional[Path], typer.Option("--model", help="Checkpoint directory; without it, the default model.")
]
Images = Annotated[Optional[list[Path]], typer.Option("--image", help="An image file; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="JSON and nothing else.")]
MaxTokens = Annotated[Optional[int], typer.Option(help="Most tokens of an answer.")]
Temperature = Annotated[Optional[float], typer.Option(help="0 is greedy.")]
TopP = Annotated[Optional[float], typer.Option(help="In (0, 1]; 1 is off.")]
TopK = Annotated[Optional[int], typer.Option(help="0 is off.")]
MinP = Annotated[Optional[float], typer.Option(help="In [0, 1); 0 is off.")]
Seed = Annotated[Optional[int], typer.Option(help="Drawn if not given.")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on after the end token.")]
Logprobs = Annotated[Optional[int], typer.Option(help="Log-probabilities, with the K most probable tokens.")]
PromptLogprobs = Annotated[
    Optional[int],
    typer.Option(help="Log-probabilities of the prompt's tokens, with the K most probable ones."),
]
Samples = Annotated[Optional[int], typer.Option("--n", help="So many answers, which share the prompt.")]
Stop = Annotated[Optional[list[str]], typer.Option(help="A text that ends the answer; may be repeated.")]
LogitBias = Annotated[
    Optional[list[str]], typer.Option(help="ID=BIAS, added to a token's logit; may be repeated.")
]
Effort = Annotated[Optional[str], typer.Option(help="Of the thinking: low, medium or high.")]
MaxThinkTokens = Annotated[Optional[int], typer.Option(help="Most tokens of thinking; then it answers.")]
Schema = Annotated[Optional[Path], typer.Option(help="File with a JSON schema that the answer obeys.")]
Regex = Annotated[Optional[str], typer.Option(help="An expression that the whole answer matches.")]
Grammar = Annotated[Optional[Path], typer.Option(help="File with a grammar of the answer: GBNF or Lark.")]
Choice = Annotated[
    Optional[list[str]], typer.Option(help="One of these is the answer; to be repeated, once for each.")
]
Tools = Annotated[Optional[Path], typer.Option(help="JSON file with the list of tools that may be called.")]
ToolChoice = Annotated[str, typer.Option(help="auto, none, required, or the name of a tool.")]
Priority = Annotated[int, typer.Option(help="-100 to 100; higher goes first.")]
Mtp = Annotated[
    Optional[bool],
    typer.Option("--mtp/--no-mtp", help="Verify drafts; default: where there are MTP layers."),
]
