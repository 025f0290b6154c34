"""One Generate call, seen from the client."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from cluster.client import Client, ServerError, collect
from cluster.identity import IdentityConfig
from cluster.servicer import ServiceOptions
from model.errors import Internal, Overloaded, Unavailable
from model.types import Delta, FinishReason, Request, RequestKey, Usage
from protos.fluyt.v1 import inference_pb2 as pb
from tests.cluster.front.harness import answering, ask, front_door, png, settled, tokenizer
from tests.fakes import FakeEncoder, FakeLink, hashed_tokens


async def test_the_stream_is_started_deltas_finished_and_nothing_else() -> None:
    async with front_door() as door:
        kinds = [event.WhichOneof("event") async for event in door.client.generate(ask(max_tokens=5))]
    assert kinds == ["started", *["delta"] * 5, "finished"]


async def test_the_tokens_are_those_of_the_scheduler_in_order() -> None:
    async with front_door(FakeLink(delta_size=3)) as door:
        events = [event async for event in door.client.generate(ask(max_tokens=8))]
    deltas = [event.delta for event in events if event.WhichOneof("event") == "delta"]
    assert [delta.first_token_index for delta in deltas] == [0, 3, 6]
    assert sum((tuple(d.token_ids) for d in deltas), ()) == hashed_tokens(door.link.submitted[0])


async def test_started_says_who_answers_and_what_was_understood() -> None:
    async with front_door(service=ServiceOptions(instance="door-1")) as door:
        answer = await door.client.answer(ask(images=[png()], request_id="mine"))
    started = answer.started
    assert (started.request_id, started.instance) == ("mine", "door-1")
    assert (started.epoch, started.model_fingerprint) == (door.link.epoch, door.link.fingerprint)
    assert started.num_prompt_tokens == len(door.link.submitted[0].prompt_ids)
    assert [(image.num_tiles, image.num_tokens) for image in started.images] == [(0, 171)]


async def test_a_missing_request_id_is_drawn_and_returned() -> None:
    async with front_door() as door:
        first, second = [(await door.client.answer(ask())).started.request_id for _ in range(2)]
    assert first != second
    assert [request.key.request_id for request in door.link.submitted] == [first, second]


async def test_a_missing_seed_is_drawn_and_returned() -> None:
    async with front_door() as door:
        answers = [await door.client.answer(ask()) for _ in range(2)]
        again = await door.client.answer(ask(seed=answers[0].started.seed))
    assert answers[0].started.seed != answers[1].started.seed
    assert [request.sampling.seed for request in door.link.submitted[:2]] == [a.started.seed for a in answers]
    assert again.token_ids == answers[0].token_ids


async def test_thinking_and_answer_are_on_their_channels() -> None:
    async with front_door(answering("Let me see.\n</think>\nA red square.")) as door:
        answer = await door.client.answer(ask(max_tokens=100))
    assert (answer.reasoning, answer.text) == ("Let me see.", "A red square.")
    usage = answer.finished.usage
    assert 0 < usage.num_reasoning_tokens < usage.num_completion_tokens == len(answer.token_ids)


CALL = (
    '<tool_call>\n<function=search>\n<parameter=query>\n12 "red"\n</parameter>\n'
    "<parameter=exact>\nTrue\n</parameter>\n</function>\n</tool_call>"
)


def with_search(**fields: Any) -> pb.GenerateRequest:
    """A request that declares the tool `search`."""
    request = ask(max_tokens=200, **fields)
    parameters = {"properties": {"query": {"type": "string"}, "exact": {"type": "boolean"}}}
    request.chat.tools.append(
        json.dumps({"type": "function", "function": {"name": "search", "parameters": parameters}})
    )
    return request


async def test_a_tool_call_comes_as_name_and_json_typed_by_the_tools_of_the_request() -> None:
    async with front_door(answering(f"Let me look.\n{CALL}\n</think>\nWait.{CALL}")) as door:
        events = [event async for event in door.client.generate(with_search())]
    answer = collect(events)
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [
        ("search", r'{"query": "12 \"red\"", "exact": true}')
    ] * 2
    assert (answer.reasoning, answer.text) == ("Let me look.\n", "Wait.")
    written = "".join(e.delta.text for e in events if e.delta.channel == pb.CHANNEL_TOOL_CALL)
    assert written == CALL.removeprefix("<tool_call>").removesuffix("</tool_call>") * 2


async def test_arguments_stream_as_the_tokens_do() -> None:
    async with front_door(answering(CALL)) as door:
        events = [event async for event in door.client.generate(with_search())]
    pieces = [piece for event in events for piece in event.delta.tool_calls]
    assert [piece.name for piece in pieces if piece.name] == ["search"]
    assert len([piece for piece in pieces if piece.arguments]) > 4
    assert [piece.end for piece in pieces if piece.end] == [pb.TOOL_CALL_END_COMPLETE]
    assert pieces[-1].end


async def test_a_call_that_max_tokens_cuts_off_is_marked() -> None:
    async with front_door(answering(CALL)) as door:
        request = with_search()
        request.sampling.max_tokens = len(tokenizer().encode_prompt(tokenizer().split(CALL[:60])))
        answer = await door.client.answer(request)
    (call,) = answer.tool_calls
    assert not call.is_complete
    assert call.arguments.startswith('{"query": "12')
    assert answer.finish_reason == "length"


async def test_a_stop_string_ends_text_usage_and_work() -> None:
    text = "</think>\nred, green, blue, yellow"
    async with front_door(answering(text)) as door:
        answer = await door.client.answer(ask(max_tokens=100, stop=["blue"]))
    assert answer.text == "red, green, "
    assert (answer.finish_reason, answer.finished.stop_string) == ("stop", "blue")
    ((key, num_tokens),) = door.link.stops
    assert key == door.link.submitted[0].key
    assert answer.finished.usage.num_completion_tokens == num_tokens == len(answer.token_ids)
    assert "blue" in tokenizer().decode(answer.token_ids)
    assert "yellow" not in tokenizer().decode(answer.token_ids)


async def test_a_stop_string_in_the_last_delta_outweighs_the_length() -> None:
    link = answering("</think>\nred, green, blue, yellow")
    link.delta_size = 1000
    async with front_door(link) as door:
        answer = await door.client.answer(ask(max_tokens=100, stop=["green"]))
    assert (answer.text, answer.finish_reason) == ("red, ", "stop")
    assert answer.finished.usage.num_completion_tokens == len(answer.token_ids)
    assert door.link.stops == []


async def test_logprobs_come_with_their_tokens() -> None:
    async with front_door() as door:
        answer = await door.client.answer(ask(max_tokens=3, num_logprobs=2))
    assert [item.top[0].token_id for item in answer.logprobs] == list(answer.token_ids)
    assert [len(item.top) for item in answer.logprobs] == [2, 2, 2]


async def test_given_ids_are_used_as_given() -> None:
    patch = tokenizer().control_id("<im_patch>")
    request = pb.GenerateRequest(token_ids=pb.TokenPrompt(ids=[patch, 7, patch]))
    request.sampling.max_tokens = 1
    async with front_door() as door:
        await door.client.answer(request)
    assert door.link.submitted[0].prompt_ids == (patch, 7, patch)
    assert door.link.submitted[0].images == ()


async def test_raw_text_takes_images_where_they_stand() -> None:
    parts = [
        pb.ContentPart(text="before"),
        pb.ContentPart(image=pb.Image(data=png())),
        pb.ContentPart(text="after"),
    ]
    request = pb.GenerateRequest(text=pb.TextPrompt(parts=parts), sampling=pb.SamplingOptions(max_tokens=1))
    async with front_door() as door:
        await door.client.answer(request)
    (submitted,) = door.link.submitted
    (span,) = submitted.images
    before = [tokenizer().bos_id, *tokenizer().encode_text("before")]
    assert list(submitted.prompt_ids[: len(before)]) == before
    assert (span.start, span.num_tokens) == (len(before) + 1, 169)


async def test_tokenize_gives_what_generate_computes() -> None:
    request = ask(images=[png(800, 600)])
    async with front_door() as door:
        tokenized = await door.client.tokenize(pb.TokenizeRequest(chat=request.chat))
        await door.client.answer(request)
        assert door.num_open == 0
    assert tuple(tokenized.token_ids) == door.link.submitted[0].prompt_ids
    assert tokenized.prompt == "<|im_start|>user\n<im_patch>Hello<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert tokenized.images[0].num_tiles > 0


async def test_embeddings_are_kept_while_the_request_is_open_and_no_longer() -> None:
    link = FakeLink()
    link.gate.clear()
    async with front_door(link) as door:
        events = door.client.generate(ask(images=[png()]))
        await anext(events)
        await anext(events)
        (request,) = link.submitted
        (span,) = request.images
        rows = door.embeddings.get(span.key)
        assert (rows == door.encoder.rows_of(span.key, 169)).all()
        link.gate.set()
        assert [event async for event in events][-1].WhichOneof("event") == "finished"
        await settled(lambda: len(door.embeddings) == 0)


async def test_the_same_image_twice_is_encoded_once() -> None:
    async with front_door() as door:
        await door.client.answer(ask(images=[png(), png()]))
    assert len(door.encoder.images) == 1
    assert len(door.link.submitted[0].images) == 2


async def test_an_image_sent_before_may_be_named_by_its_hash() -> None:
    named = pb.Image(sha256=hashlib.sha256(png()).hexdigest())
    async with front_door() as door:
        with pytest.raises(ServerError) as unknown:
            await door.client.answer(ask(images=[named]))
        await door.client.answer(ask(images=[png()]))
        await door.client.answer(ask(images=[named]))
    assert unknown.value.code == "NOT_FOUND"
    assert door.link.submitted[0].prompt_ids == door.link.submitted[1].prompt_ids


async def test_max_tiles_lowers_the_resolution() -> None:
    async with front_door() as door:
        full = await door.client.answer(ask(images=[png(800, 600)]))
        low = await door.client.answer(ask(images=[pb.Image(data=png(800, 600), max_tiles=0)]))
    assert full.started.images[0].num_tiles > 0 == low.started.images[0].num_tiles


async def test_usage_counts_images_and_the_time_of_the_encoder() -> None:
    async with front_door(encoder=FakeEncoder(delay_s=0.02)) as door:
        answer = await door.client.answer(ask(images=[png()]))
    assert answer.finished.usage.num_image_tokens == 169
    assert answer.finished.usage.vision_us >= 20_000


async def test_a_failing_encoder_is_one_clear_error() -> None:
    async with front_door(encoder=FakeEncoder(error=Unavailable("no vision encoder is up"))) as door:
        with pytest.raises(ServerError, match="no vision encoder is up") as failed:
            await door.client.answer(ask(images=[png(), png(50, 50)]))
    assert failed.value.code == "UNAVAILABLE"
    assert door.link.submitted == []


async def test_an_open_request_id_is_refused_and_the_open_one_goes_on() -> None:
    link = FakeLink()
    link.gate.clear()
    async with front_door(link) as door:
        events = door.client.generate(ask(request_id="r"))
        await anext(events)
        with pytest.raises(ServerError) as refused:
            await door.client.answer(ask(request_id="r"))
        link.gate.set()
        rest = [event async for event in events]
    assert refused.value.code == "ALREADY_EXISTS"
    assert rest[-1].WhichOneof("event") == "finished"


async def test_two_tenants_may_use_the_same_request_id() -> None:
    link = FakeLink()
    link.gate.clear()
    async with front_door(link, identity=IdentityConfig("x-tenant")) as door:
        async with Client(door.address, metadata=[("x-tenant", "anna")]) as anna:
            mine = anna.generate(ask(request_id="r"))
            await anext(mine)
            theirs = door.client.generate(ask(request_id="r"))
            await anext(theirs)
            link.gate.set()
            assert [event async for event in mine] != []
            assert [event async for event in theirs] != []
    assert {request.key for request in link.submitted} == {RequestKey("anna", "r"), RequestKey("local", "r")}


async def test_a_full_queue_says_when_to_come_back() -> None:
    async with front_door(
        FakeLink(error=Overloaded("1024 requests wait", 2.0, "queue.max_requests"))
    ) as door:
        with pytest.raises(ServerError) as refused:
            await door.client.answer(ask())
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    assert (refused.value.quota, refused.value.retry_after_s) == ("queue.max_requests", 2.0)


@pytest.mark.parametrize("error", [Unavailable("the gang died"), Internal("a bug"), RuntimeError("a secret")])
async def test_an_error_in_the_middle_ends_the_call_once(error: Exception) -> None:
    async with front_door(FakeLink(error=error, error_after=3)) as door:
        seen: list[str | None] = []
        with pytest.raises(ServerError) as failed:
            async for event in door.client.generate(ask()):
                seen.append(event.WhichOneof("event"))  # noqa: PERF401 - what came before the error counts
        await settled(lambda: door.num_open == 0)
    assert seen == ["started", "delta", "delta", "delta"]
    assert failed.value.code == getattr(error, "code", "INTERNAL")
    assert "secret" not in failed.value.message


class EndsEarly(FakeLink):
    async def submit(self, request: Request, deadline_ms: int | None):  # type: ignore[no-untyped-def]
        yield Delta(request.key, 0, (40,))


async def test_a_stream_that_breaks_off_is_an_error_and_no_answer() -> None:
    async with front_door(EndsEarly()) as door:
        with pytest.raises(ServerError) as failed:
            await door.client.answer(ask())
    assert failed.value.code == "UNAVAILABLE"


class StopsAtEos(FakeLink):
    async def submit(self, request: Request, deadline_ms: int | None):  # type: ignore[no-untyped-def]
        eos = request.sampling.eos_token_ids[0]
        yield Delta(
            request.key, 0, (40, eos), finish_reason=FinishReason.STOP, stop_token_id=eos, usage=Usage()
        )


async def test_the_token_that_stopped_is_named() -> None:
    async with front_door(StopsAtEos()) as door:
        answer = await door.client.answer(ask())
    assert answer.finish_reason == "stop"
    assert answer.finished.stop_token_id == answer.token_ids[-1]


async def test_without_a_scheduler_requests_are_refused_at_once() -> None:
    async with front_door(FakeLink(ready=False)) as door:
        with pytest.raises(ServerError) as refused:
            await door.client.answer(ask())
        load = await door.client.load()
    assert refused.value.code == "UNAVAILABLE"
    assert refused.value.retry_after_s is not None
    assert not load.ready


async def test_load_counts_what_is_open_here() -> None:
    link = FakeLink()
    link.gate.clear()
    async with front_door(link) as door:
        events = door.client.generate(ask())
        await anext(events)
        await anext(events)
        load = await door.client.load()
        await events.aclose()
    assert (load.num_open_here, load.num_running, load.ready) == (1, 1, True)


async def test_model_info_names_the_limits() -> None:
    async with front_door(FakeLink(capacity_tokens=999), service=ServiceOptions(model_name="nano")) as door:
        info = await door.client.model_info()
    assert (info.name, info.capacity_tokens, info.accepts_images) == ("nano", 999, True)
    assert (info.limits.max_images, info.limits.max_message_bytes) == (60, 64 << 20)
    assert info.context_len > 0 < info.vocab_size
