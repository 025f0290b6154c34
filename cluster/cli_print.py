"""How answers look on a terminal: samples one after another, log-probabilities in columns.

Needs nothing but the base install.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from protos.fluyt.v1 import inference_pb2 as pb


class SamplePrinter:
    """Shows samples in order: the one in front as it comes, what the others write when it is their turn.

    One alone has no headline.
    """

    def __init__(self, num_samples: int, write: Callable[[str], None]) -> None:
        self._num_samples = num_samples
        self._write = write
        self._front = 0
        self._waiting = [""] * num_samples
        self._ended = [False] * num_samples
        self._write(self._headline())

    def add(self, sample: int, text: str) -> None:
        """The next piece of a sample."""
        if sample == self._front:
            self._write(text)
        else:
            self._waiting[sample] += text

    def end(self, sample: int) -> None:
        """A sample is complete; so may be others that have waited for it."""
        self._ended[sample] = True
        while self._front < self._num_samples and self._ended[self._front]:
            self._write("\n")
            self._front += 1
            if self._front < self._num_samples:
                self._write(self._headline() + self._waiting[self._front])

    def _headline(self) -> str:
        alone = self._num_samples == 1
        return "" if alone else f"--- sample {self._front + 1} of {self._num_samples} ---\n"


def prompt_lines(first_index: int, tokens: Iterable[pb.PromptTokenLogprob]) -> str:
    """A line for each token of a prompt: position, id, log-probability, the most probable ids."""
    lines = []
    if first_index == 0:
        lines.append(f"{'prompt':>8} {'id':>8} {'logprob':>9}  most probable")
    for index, token in enumerate(tokens, first_index):
        logprob = f"{token.logprob:9.4f}" if token.HasField("logprob") else f"{'-':>9}"
        top = ", ".join(f"{item.token_id} {item.logprob:.4f}" for item in token.top)
        lines.append(f"{index:8} {token.token_id:8} {logprob}  {top}".rstrip())
    return "".join(f"{line}\n" for line in lines)
