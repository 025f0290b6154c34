"""The small byte-level BPE tokenizer, trained on the corpus of this package.

Ids: begin, end and padding first (0, 1, 2), then bytes and merges, then the control tokens of the
published model in their published order. The model has a few more rows than there are ids, as there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from model.nano.corpus import training_texts
from model.nano.shape import NUM_TEXT_IDS

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"  # noqa: RUF001
CONTROL_TOKENS = (
    "<im_start>",
    "<im_patch>",
    "<im_end>",
    "<patch_start>",
    "<patch_newline>",
    "<patch_end>",
    "<|im_start|>",
    "<|im_end|>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
# Alone, whatever stands beside them: codes and numbers are read one by one, and a line feed before a
# control token is the same token wherever a prompt is cut.
_SINGLES = Regex(r"\p{N}|\p{Lu}|\n")


def train_tokenizer() -> Tokenizer:
    """Train it; the same on every run, because ties between pairs are broken by their ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_SINGLES, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TEXT_IDS,
        min_frequency=1,
        special_tokens=[_control(text) for text in (BOS, EOS, PAD)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    num_text_ids = tokenizer.get_vocab_size()
    assert num_text_ids == NUM_TEXT_IDS, f"the corpus gives {num_text_ids} ids, not {NUM_TEXT_IDS}"
    tokenizer.add_special_tokens([_control(text) for text in CONTROL_TOKENS])
    return tokenizer


def _control(text: str) -> AddedToken:
    return AddedToken(text, special=True, normalized=False)


def write_tokenizer(directory: Path, context_len: int) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokenizer = train_tokenizer()
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n", encoding="utf-8")
    text = json.dumps(_tokenizer_config(context_len), indent=2, ensure_ascii=False) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _tokenizer_config(context_len: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "Step3p7Processor",
        "model_max_length": context_len,
        "bos_token": BOS,
        "eos_token": CONTROL_TOKENS[7],
        "pad_token": PAD,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
