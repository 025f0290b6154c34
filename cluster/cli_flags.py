"""What flags amount to, for `run` and `ask` alike. Needs nothing but the base install."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from model.errors import InvalidRequest


@dataclass(frozen=True)
class Sampling:
    """Sampling flags by the names of the API; None was not given."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    ignore_eos: bool | None = None
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    n: int | None = None
    max_think_tokens: int | None = None
    mtp: bool | None = None
    stop: tuple[str, ...] | None = None

    def given(self) -> dict[str, Any]:
        """Those that were given."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Prompts:
    """What `run` shall answer: a text with images, ids, or a file of requests."""

    text: str | None
    images: tuple[Path, ...]
    prompt_ids: str | None
    requests: Path | None


def program() -> str:
    """How this program is called, in full: it is rarely on the PATH."""
    return shlex.quote(str(Path(sys.executable).with_name("fluyt")))


def read_bytes(path: Path, field: str) -> bytes:
    """A file's content. Raises InvalidRequest."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(field, f"{path}: {error.strerror}") from error
