"""The text stage of a front door: prompts and pixels, in threads beside the event loop.

Rendering a template, tokenizing and cutting images are CPU work of milliseconds to seconds; in the
event loop they would hold up every stream.
"""

from __future__ import annotations

import asyncio
import importlib
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cluster import convert
from cluster.image_store import ImageStore
from model.config import read_config
from model.errors import InvalidRequest
from model.sampling import MAX_STOP_STRING_CHARS, MAX_STOP_STRINGS, GenerationDefaults, resolve
from model.text.chat import Conversation
from model.text.form import with_form
from model.text.grammars import Grammars
from model.text.images import ImageLimits, PlannedImage, TiledImage
from model.text.prompt import PreparedPrompt, PromptBuilder
from model.text.splices import OpenTurn, Splices, SpliceStore
from model.text.tokenizer import Tokenizer
from model.types import SamplingParams
from protos.fluyt.v1 import inference_pb2 as pb

T = TypeVar("T")

# Two, also on larger machines: one long prompt leaves a thread for everybody else, and the
# interpreter runs only one at a time outside of tokenizer and decoder.
_NUM_THREADS = 2


@dataclass(frozen=True)
class PreparedRequest:
    """A prompt and how it is to be continued: all that the scheduler needs."""

    prompt: PreparedPrompt
    sampling: SamplingParams


class TextStage:
    """Prompts of one model. Methods may be called from one event loop; `close` ends the threads."""

    def __init__(
        self,
        builder: PromptBuilder,
        defaults: GenerationDefaults,
        grammars: Grammars,
        *,
        vocab_size: int,
        context_len: int,
        kept_answers_mib: int = 0,
    ) -> None:
        """With `kept_answers_mib` chats go on with the ids that were generated for them."""
        self._builder = builder
        self._splices = SpliceStore(builder.tokenizer, kept_answers_mib << 20) if kept_answers_mib else None
        self._grammars = grammars
        self._defaults = defaults
        self._vocab_size = vocab_size
        self._context_len = context_len
        self._longest_token_chars = _longest_token_bytes(builder.tokenizer)
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="text")
        # Seconds of imports, which the first image would otherwise wait for.
        self._threads.submit(importlib.import_module, "model.text.pixels")

    @classmethod
    def load(
        cls, directory: str | Path, limits: ImageLimits | None = None, kept_answers_mib: int = 0
    ) -> TextStage:
        """From a checkpoint directory. Raises CheckpointError."""
        config = read_config(directory)
        vocab_size, context_len = config.text.vocab_size, config.text.context_len
        builder = PromptBuilder.load(
            directory, vocab_size=vocab_size, limits=limits, has_vision=config.vision is not None
        )
        return cls(
            builder,
            GenerationDefaults.load(directory),
            Grammars(directory, vocab_size),
            vocab_size=vocab_size,
            context_len=context_len,
            kept_answers_mib=kept_answers_mib,
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self._builder.tokenizer

    async def prepare(
        self,
        message: pb.GenerateRequest,
        images: ImageStore,
        tenant: str,
        capacity_tokens: int | None,
        max_samples: int,
    ) -> PreparedRequest:
        """Prompt and sampling of a request. A missing seed is drawn. Raises InvalidRequest, NotFound."""

        def work() -> PreparedRequest:
            prompt = self._build(message, images, tenant)
            sampling = resolve(
                convert.sampling_options(message.sampling),
                self._defaults,
                num_prompt_tokens=len(prompt.prompt_ids),
                context_len=self._context_len,
                capacity_tokens=capacity_tokens,
                seed=secrets.randbits(63),
                vocab_size=self._vocab_size,
                max_samples=max_samples,
            )
            form = convert.form(message)
            return PreparedRequest(prompt, with_form(sampling, form, prompt, self._grammars))

        return await self._in_thread(work)

    async def build(self, message: pb.TokenizeRequest, images: ImageStore, tenant: str) -> PreparedPrompt:
        """The prompt alone. Raises InvalidRequest, NotFound."""
        return await self._in_thread(lambda: self._build(message, images, tenant))

    async def tile(self, image: PlannedImage) -> TiledImage:
        """Decode and cut an image. Raises InvalidRequest."""
        return await self._in_thread(image.tile)

    def model_info(self) -> pb.ModelInfo:
        """What this stage knows about the model and its limits."""
        limits = self._builder.limits
        return pb.ModelInfo(
            context_len=self._context_len,
            vocab_size=self._vocab_size,
            eos_token_ids=self._defaults.eos_token_ids,
            limits=pb.Limits(
                max_images=limits.max_images,
                max_tiles_per_image=limits.max_tiles,
                max_image_side=limits.max_side_px,
                max_image_pixels=limits.max_pixels,
                max_stop_strings=MAX_STOP_STRINGS,
                max_stop_chars=MAX_STOP_STRING_CHARS,
            ),
        )

    def close(self) -> None:
        """End the threads once what runs in them is done; what waits is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _build(
        self, message: pb.GenerateRequest | pb.TokenizeRequest, images: ImageStore, tenant: str
    ) -> PreparedPrompt:
        """Runs in a thread."""

        def lookup(sha256: str) -> bytes:
            return images.get(tenant, sha256)

        kind = message.WhichOneof("prompt")
        if kind == "chat":
            self._refuse_hopeless(message.chat)
            prompt = self._from_chat(convert.conversation(message.chat, lookup), tenant)
        elif kind == "text":
            prompt = self._builder.from_text(*convert.raw_text(message.text, lookup))
        elif isinstance(message, pb.GenerateRequest) and kind == "token_ids":
            given = [
                convert.image_input(image, f"token_ids.images[{i}]", lookup)
                for i, image in enumerate(message.token_ids.images)
            ]
            prompt = self._builder.from_ids(message.token_ids.ids, given)
        else:
            raise InvalidRequest("prompt", "missing")
        for image in prompt.images:
            images.put(tenant, image.data)
        return prompt

    def _from_chat(self, conversation: Conversation, tenant: str) -> PreparedPrompt:
        if self._splices is None:
            return self._builder.from_chat(conversation)
        return self._builder.from_chat(conversation, Splices(self._splices, tenant))

    def keep_answer(self, turn: OpenTurn | None, answer_ids: Sequence[int]) -> None:
        """The ids of an answer, without its end: the chat may come back and say it."""
        if self._splices is not None and turn is not None:
            self._splices.keep(turn, answer_ids)

    def _refuse_hopeless(self, chat: pb.ChatPrompt) -> None:
        """A text that cannot fit even in the longest tokens is refused before minutes of tokenizing."""
        num_chars = sum(
            len(part.text) for turn in chat.messages if turn.role != "assistant" for part in turn.content
        )
        if num_chars > self._context_len * self._longest_token_chars:
            raise InvalidRequest(
                "messages",
                f"{num_chars} characters cannot fit into the context of {self._context_len} tokens",
            )


def _longest_token_bytes(tokenizer: Tokenizer) -> int:
    return max(len(tokenizer.token_bytes(token_id)) for token_id in range(tokenizer.vocab_size))
