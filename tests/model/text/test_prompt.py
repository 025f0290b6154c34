"""Prompts: BOS once, image blocks in their places, spans that name every image row once."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.errors import CheckpointError, InvalidRequest
from model.text.chat import ChatMessage, ContentPart, Conversation
from model.text.chat_json import question
from model.text.images import ImageInput, ImageLimits
from model.text.prompt import ImageTokens, PromptBuilder, check_ids, image_block, image_spans
from model.text.tiles import plan_tiles
from model.text.tokenizer import Tokenizer


def picture(width, height, colour="teal", max_tiles=None):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return ImageInput(buffer.getvalue(), max_tiles)


def test_a_chat_begins_with_bos_exactly_once(builder, tokenizer):
    prompt = builder.from_chat(question("Hi <|begin|>"))
    assert prompt.prompt_ids[0] == tokenizer.bos_id
    assert prompt.prompt_ids.count(tokenizer.bos_id) == 1
    assert prompt.text == "<|im_start|>user\nHi <|begin|><|im_end|>\n<|im_start|>assistant\n<think>\n"


def test_a_chat_carries_its_tools_to_what_reads_the_answer(builder):
    tools = ({"type": "function", "function": {"name": "f"}},)
    assert builder.from_chat(Conversation((ChatMessage("user", "x"),), tools)).tools == tools
    assert builder.from_text("x").tools == builder.from_ids([1]).tools == ()


def test_a_chat_has_the_ids_the_library_gives_its_text(builder, reference, shared_json):
    from model.text.chat_json import read_conversation

    for golden in shared_json("template-goldens.json"):
        prompt = builder.from_chat(read_conversation(golden["args"]))
        assert prompt.text == golden["rendered"]
        assert list(prompt.prompt_ids[1:]) == reference.encode(prompt.text, add_special_tokens=False).ids


@pytest.mark.parametrize(("size", "tokens"), [((100, 100), 171), ((1920, 1080), 836), ((595, 842), 338)])
def test_an_image_takes_its_tokens(builder, size, tokens):
    without, prompt = builder.from_chat(question("x")), builder.from_chat(question("x", [picture(*size)]))
    assert len(prompt.prompt_ids) - len(without.prompt_ids) == tokens == prompt.images[0].plan.tokens


@settings(deadline=None, max_examples=50)
@given(width=st.integers(32, 3000), height=st.integers(32, 3000), start=st.integers(0, 50))
def test_spans_cover_every_patch_and_every_row_once(tokenizer, width, height, start):
    tokens, plan = ImageTokens.of(tokenizer), plan_tiles(width, height)
    ids = image_block(plan, tokens)
    assert len(ids) == plan.tokens
    spans = image_spans(plan, "key", start)
    positions = [p for span in spans for p in range(span.start, span.start + span.num_tokens)]
    assert positions == [start + p for p, token_id in enumerate(ids) if token_id == tokens.patch]
    rows = [row for span in spans for row in range(span.offset, span.offset + span.num_tokens)]
    assert rows == list(range(plan.num_rows))


def test_a_block_is_written_as_the_model_reads_it(tokenizer):
    ids = image_block(plan_tiles(595, 842), ImageTokens.of(tokenizer))
    patch = "<im_patch>"
    tile = f"<patch_start>{patch * 81}<patch_end>"
    wanted = f"{tile}<patch_newline>{tile}<im_start>{patch * 169}<im_end>"
    assert tokenizer.decode(ids, skip_special=False) == wanted


def test_two_images_keep_their_order_and_keys(builder):
    red, blue = picture(800, 900, "red"), picture(100, 100, "blue")
    prompt = builder.from_chat(question("which?", [red, blue]))
    keys = [image.key for image in prompt.images]
    assert list(dict.fromkeys(span.key for span in prompt.spans)) == keys
    assert [span.start for span in prompt.spans] == sorted(span.start for span in prompt.spans)
    assert prompt.num_image_tokens == sum(image.plan.num_rows for image in prompt.images)


def test_a_literal_image_place_in_text_is_no_place(builder, tokenizer):
    prompt = builder.from_chat(question("<im_patch>"))
    assert prompt.spans == ()
    assert tokenizer.token_id("<im_patch>") not in prompt.prompt_ids


def test_raw_text_has_control_tokens_and_places(builder, tokenizer):
    text = "<|im_start|>user\n<im_patch>see?<|im_end|>\n"
    prompt = builder.from_text(text, [picture(100, 100)])
    assert prompt.prompt_ids[:2] == (tokenizer.bos_id, tokenizer.token_id("<|im_start|>"))
    assert [span.num_tokens for span in prompt.spans] == [169]
    assert builder.from_text("<|begin|>a").prompt_ids == builder.from_text("a").prompt_ids


def test_the_ids_of_a_prompt_give_the_same_prompt(builder):
    images = [picture(800, 900), picture(50, 50), picture(50, 50)]
    prompt = builder.from_chat(question("which?", images))
    again = builder.from_ids(prompt.prompt_ids, images)
    assert (again.prompt_ids, again.spans, again.images[0].key) == (
        prompt.prompt_ids,
        prompt.spans,
        prompt.images[0].key,
    )
    assert again.starts_in_thinking == prompt.starts_in_thinking is True


def test_given_ids_are_used_as_they_are(builder, tokenizer):
    ids = (5, tokenizer.token_id("<im_patch>"), 7)
    prompt = builder.from_ids(ids)
    assert (prompt.prompt_ids, prompt.spans) == (ids, ())


def test_thinking_is_open_only_after_the_generation_prompt(builder):
    messages = (ChatMessage("user", "a"), ChatMessage("assistant", "b"))
    closed = builder.from_chat(Conversation(messages, add_generation_prompt=False))
    assert not closed.starts_in_thinking
    assert builder.from_chat(Conversation(messages)).starts_in_thinking
    assert not builder.from_text("no chat").starts_in_thinking


@pytest.mark.parametrize(
    ("ids", "field", "message"),
    [
        ((), "token_ids", "empty"),
        ((1, 2, 600), "token_ids[2]", "600 is not in 0..599"),
        ((-1,), "token_ids[0]", "-1"),
    ],
)
def test_ids_outside_of_the_vocabulary_are_refused(ids, field, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        check_ids(ids, 600)
    assert caught.value.field == field


def test_image_places_and_images_must_agree(builder):
    with pytest.raises(InvalidRequest, match="2 image places in the prompt, 1 images"):
        builder.from_text("<im_patch><im_patch>", [picture(10, 10)])
    with pytest.raises(InvalidRequest, match=r"images\[0\]: its 171 tokens are not in token_ids"):
        builder.from_ids([1, 2, 3], [picture(10, 10)])


def test_too_many_images_are_counted_before_they_are_read(builder):
    with pytest.raises(InvalidRequest, match="messages: 61 images, at most 60"):
        builder.from_chat(question("x", [ImageInput(b"never read")] * 61))


def test_a_bad_image_names_its_message_and_part(builder):
    with pytest.raises(InvalidRequest) as caught:
        builder.from_chat(question("x", [picture(10, 10), ImageInput(b"no image")], system="s"))
    assert caught.value.field == "messages[1].content[1].image"


def test_an_image_part_needs_an_image(builder):
    message = ChatMessage("user", (ContentPart("image"),))
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.content\[0\]\.image: no image given"):
        builder.from_chat(Conversation((message,)))


def test_an_empty_text_is_refused(builder):
    with pytest.raises(InvalidRequest, match="text: empty"):
        builder.from_text("")


def test_a_model_without_vision_takes_no_images(checkpoint):
    builder = PromptBuilder.load(checkpoint, vocab_size=600, has_vision=False)
    with pytest.raises(InvalidRequest, match="no vision tower"):
        builder.from_chat(question("x", [picture(10, 10)]))


def test_a_checkpoint_without_a_template_takes_text_and_ids(checkpoint):
    builder = PromptBuilder(Tokenizer.load(checkpoint), None, vocab_size=600, limits=ImageLimits())
    assert builder.from_text("a").prompt_ids
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        builder.from_chat(question("x"))
