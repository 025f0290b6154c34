"""Everything that crosses our own streams comes back as it was."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors_convert import error_from_proto, error_to_proto
from cluster.steps_convert import (
    delta_from_proto,
    delta_to_proto,
    outputs_to_proto,
    request_from_proto,
    request_to_proto,
    result_from_proto,
    step_from_proto,
    step_to_proto,
)
from model.errors import (
    AlreadyExists,
    Cancelled,
    CheckpointError,
    DeadlineExceeded,
    FluytError,
    Internal,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
    Unsupported,
)
from model.grammar import Grammar
from model.sched.step import (
    AdmittedSequence,
    BlockCopy,
    RankResult,
    RankStep,
    ScoredPrompt,
    SequenceOutput,
    SequenceWork,
    Step,
    StepResult,
)
from model.types import (
    Delta,
    FinishReason,
    ImageSpan,
    PromptLogprobs,
    Request,
    RequestKey,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from protos.fluyt.v1 import steps_pb2 as steps

KEY = RequestKey("tenant", "name")
ids = st.lists(st.integers(0, 2**31), max_size=5).map(tuple)
numbers = st.floats(-1e6, 1e6)
spans = st.lists(
    st.builds(
        ImageSpan,
        start=st.integers(0, 2**31),
        num_tokens=st.integers(1, 200),
        key=st.text(max_size=8),
        offset=st.integers(0, 9000),
        content=st.text(max_size=8),
    ),
    max_size=3,
).map(tuple)
grammars = st.builds(
    Grammar, kind=st.sampled_from(["regex", "choice", "tools_forced"]), source=st.text(max_size=9)
)
sampling = st.builds(
    SamplingParams,
    starts_in_thinking=st.booleans(),
    grammar=st.none() | grammars,
    max_think_tokens=st.none() | st.integers(0, 9),
    logit_bias=st.dictionaries(st.integers(0, 99), numbers, max_size=3).map(
        lambda biases: tuple(sorted(biases.items()))
    ),
    think_end_id=st.none() | st.integers(0, 9),
    max_tokens=st.integers(1, 2**31),
    seed=st.integers(0, 2**64 - 1),
    temperature=numbers,
    top_p=numbers,
    top_k=st.integers(0, 2**31),
    min_p=numbers,
    repetition_penalty=numbers,
    presence_penalty=numbers,
    frequency_penalty=numbers,
    min_tokens=st.integers(0, 1000),
    stop=st.lists(st.text(max_size=4), max_size=2).map(tuple),
    stop_token_ids=ids,
    eos_token_ids=ids,
    num_logprobs=st.none() | st.integers(0, 20),
    num_prompt_logprobs=st.none() | st.integers(0, 20),
    num_samples=st.integers(1, 16),
    sample=st.integers(0, 15),
    mtp=st.booleans(),
)
requests = st.builds(
    Request,
    key=st.just(KEY),
    prompt_ids=ids,
    sampling=sampling,
    images=spans,
    task_id=st.text(max_size=4),
    priority=st.integers(-100, 100),
    prefix_ends=ids,
    embeddings_address=st.text(max_size=4),
)
works = st.builds(
    SequenceWork,
    seq_id=st.integers(0, 2**40),
    start=st.integers(0, 2**31),
    num_tokens=st.integers(1, 2**20),
    samples=st.booleans(),
    num_drafts=st.integers(0, 3),
    begins=st.booleans(),
    new_full_blocks=ids,
    new_sliding_blocks=ids,
)
copies = st.builds(
    BlockCopy,
    group=st.sampled_from(("full", "sliding")),
    source=st.integers(0, 2**31),
    target=st.integers(0, 2**31),
)
admitted = st.builds(
    AdmittedSequence,
    seq_id=st.integers(0, 2**40),
    prompt_ids=ids,
    sampling=sampling,
    images=spans,
    borders=ids,
)
rank_steps = st.builds(
    RankStep,
    admitted=st.lists(admitted, max_size=2).map(tuple),
    work=st.lists(works, max_size=3).map(tuple),
    dropped=st.lists(st.integers(0, 2**40), max_size=3).map(tuple),
    copies=st.lists(copies, max_size=2).map(tuple),
)
one_logprob = st.builds(
    TokenLogprob,
    logprob=numbers,
    top=st.lists(st.tuples(st.integers(0, 2**31), numbers), max_size=3).map(tuple),
)
logprobs = st.lists(one_logprob, max_size=3).map(tuple)
prompts = st.builds(
    PromptLogprobs,
    first_token_index=st.integers(0, 2**31),
    logprobs=st.lists(st.none() | one_logprob, min_size=1, max_size=4).map(tuple),
)


@settings(max_examples=50, deadline=None)
@given(request=requests, deadline_ms=st.none() | st.integers(0, 2**40))
def test_a_request_survives(request: Request, deadline_ms: int | None) -> None:
    message = steps.AddSequence.FromString(request_to_proto(request, 7, deadline_ms).SerializeToString())
    assert request_from_proto(message) == request
    assert message.ticket == 7
    assert (message.deadline_ms if message.HasField("deadline_ms") else None) == deadline_ms


@settings(max_examples=50, deadline=None)
@given(ranks=st.lists(rank_steps, min_size=1, max_size=3).map(tuple), step_id=st.integers(0, 2**40))
def test_a_step_survives_and_so_does_its_digest(ranks: tuple[RankStep, ...], step_id: int) -> None:
    step = Step(3, step_id, ranks)
    message = steps.PlannedStep.FromString(step_to_proto(step).SerializeToString())
    assert step_from_proto(message) == step
    assert message.digest == step_from_proto(message).digest()


@settings(max_examples=50, deadline=None)
@given(
    outputs=st.lists(st.tuples(st.integers(0, 2**40), ids, logprobs), max_size=3),
    scored=st.lists(st.builds(ScoredPrompt, st.integers(0, 2**40), prompts), max_size=2).map(tuple),
)
def test_a_result_survives(
    outputs: list[tuple[int, tuple[int, ...], tuple[TokenLogprob, ...]]], scored: tuple[ScoredPrompt, ...]
) -> None:
    result = RankResult(tuple(SequenceOutput(*output) for output in outputs), scored)
    done = steps.StepDone(generation=2, step_id=9, ranks=[outputs_to_proto(result)] * 2, step_us=77)
    assert result_from_proto(steps.StepDone.FromString(done.SerializeToString())) == StepResult(
        2, 9, (result, result), 77
    )


@settings(max_examples=50, deadline=None)
@given(
    token_ids=ids,
    logprobs=logprobs,
    reason=st.none() | st.sampled_from(FinishReason),
    stop_token_id=st.none() | st.integers(0, 2**31),
    compute_us=st.none() | st.integers(0, 2**60),
    sample=st.integers(0, 15),
    num_samples_left=st.integers(0, 15),
    prompt=st.none() | prompts,
)
def test_a_delta_survives(
    token_ids: tuple[int, ...],
    logprobs: tuple[TokenLogprob, ...],
    reason: FinishReason | None,
    stop_token_id: int | None,
    compute_us: int | None,
    sample: int,
    num_samples_left: int,
    prompt: PromptLogprobs | None,
) -> None:
    usage = None if compute_us is None else Usage(num_prompt_tokens=3, compute_us=compute_us)
    delta = Delta(
        KEY,
        4,
        token_ids,
        logprobs,
        reason,
        stop_token_id,
        usage,
        sample=sample,
        num_samples_left=num_samples_left,
        prompt=prompt,
    )
    message = steps.SequenceDelta.FromString(delta_to_proto(delta, 1).SerializeToString())
    assert delta_from_proto(message, KEY) == delta


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("sampling.top_p", "2 is above 1"),
        Unsupported("resume_after_tokens", "later"),
        Overloaded("full", 2.5, "queue"),
        *(
            kind("text")
            for kind in (
                NotFound,
                AlreadyExists,
                DeadlineExceeded,
                Cancelled,
                Unavailable,
                Internal,
                CheckpointError,
            )
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_as_what_it_was(error: FluytError) -> None:
    arrived = error_from_proto(error_to_proto(error))
    assert type(arrived) is type(error)
    assert arrived.__dict__ == error.__dict__


def test_any_other_exception_arrives_as_internal_with_its_text() -> None:
    arrived = error_from_proto(error_to_proto(KeyError("x")))
    assert type(arrived) is Internal
    assert "KeyError" in arrived.message
