"""A small byte-level BPE tokenizer with the real control tokens, and the template of the default model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from model.text.chat import ChatTemplate
from model.text.prompt import PromptBuilder
from model.text.tokenizer import Tokenizer

REPOSITORY = Path(__file__).parents[3]
SHARED = REPOSITORY.parent / "shared"
BOS = "<|begin|>"
END = "<|end|>"
SPECIAL = [
    BOS,
    END,
    "<im_start>",
    "<im_patch>",
    "<im_end>",
    "<patch_start>",
    "<patch_newline>",
    "<patch_end>",
    "<|im_start|>",
    "<|im_end|>",
]
MARKERS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
TEXT = [
    "The patient has a small grey shadow on the left. Tell me what you see in this picture, please.",
    "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n<think>\nthinking\n</think>\nanswer",
    "system user assistant tool_response observation function parameter Reasoning: high low medium",
    "Ein Bär läuft über die Straße. 猫が好きです。 Привет, мир! 🙂🙃 naïve café",
    '{"type": "function", "function": {"name": "get_weather", "parameters": {"city": "Paris"}}}',
]


def train_tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE with about 500 tokens, split as GPT-2 does."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        show_progress=False,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in MARKERS])
    return tokenizer


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the text files of a checkpoint."""
    directory = tmp_path_factory.mktemp("checkpoint")
    train_tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": BOS}}))
    template = (REPOSITORY / "model/nano/chat_template.jinja").read_text(encoding="utf-8")
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.load(checkpoint)


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> tokenizers.Tokenizer:
    """The same file read by the library alone."""
    return tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))


@pytest.fixture(scope="session")
def template(checkpoint: Path, tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate.load(checkpoint, tokenizer)


@pytest.fixture(scope="session")
def builder(checkpoint: Path) -> PromptBuilder:
    return PromptBuilder.load(checkpoint, vocab_size=600)


@pytest.fixture(scope="session")
def shared_json():
    """Reads a data file that lies beside the repository, or skips."""

    def read(name: str) -> list[dict]:
        path = SHARED / "data" / name
        if not path.exists():
            pytest.skip(f"{path} is not there")
        return json.loads(path.read_text(encoding="utf-8"))

    return read


@pytest.fixture(scope="session")
def control_literal() -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, SPECIAL + MARKERS)))
