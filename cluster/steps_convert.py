"""Step, StepResult, Request and Delta <-> messages of steps.proto. Pure functions."""

from __future__ import annotations

from typing import get_args

from cluster.errors_convert import error_from_proto, error_to_proto
from model.grammar import Grammar, Kind
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
from protos.fluyt.v1 import inference_pb2 as pb
from protos.fluyt.v1 import steps_pb2 as steps

_REASON_TO_PROTO = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
    FinishReason.LOOP: pb.FINISH_REASON_LOOP,
    FinishReason.ABORTED: pb.FINISH_REASON_ABORTED,
}
_REASON_FROM_PROTO = {value: reason for reason, value in _REASON_TO_PROTO.items()}
_KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
_USAGE_FIELDS = tuple(Usage.__dataclass_fields__)


# ---- requests


def sampling_to_proto(params: SamplingParams) -> steps.SequenceSampling:
    """Complete parameters, field by field."""
    grammar = params.grammar
    return steps.SequenceSampling(
        max_tokens=params.max_tokens,
        seed=params.seed,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        min_tokens=params.min_tokens,
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        eos_token_ids=params.eos_token_ids,
        num_logprobs=params.num_logprobs,
        mtp=params.mtp,
        starts_in_thinking=params.starts_in_thinking,
        max_think_tokens=params.max_think_tokens,
        think_end_id=params.think_end_id,
        num_samples=params.num_samples,
        sample=params.sample,
        num_prompt_logprobs=params.num_prompt_logprobs,
        logit_bias=dict(params.logit_bias),
        grammar=None if grammar is None else steps.SequenceGrammar(kind=grammar.kind, source=grammar.source),
    )


def sampling_from_proto(message: steps.SequenceSampling) -> SamplingParams:
    """The inverse of `sampling_to_proto`."""
    return SamplingParams(
        max_tokens=message.max_tokens,
        seed=message.seed,
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        min_tokens=message.min_tokens,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        eos_token_ids=tuple(message.eos_token_ids),
        num_logprobs=message.num_logprobs if message.HasField("num_logprobs") else None,
        mtp=message.mtp,
        starts_in_thinking=message.starts_in_thinking,
        max_think_tokens=message.max_think_tokens if message.HasField("max_think_tokens") else None,
        think_end_id=message.think_end_id if message.HasField("think_end_id") else None,
        num_samples=message.num_samples,
        sample=message.sample,
        num_prompt_logprobs=(
            message.num_prompt_logprobs if message.HasField("num_prompt_logprobs") else None
        ),
        logit_bias=tuple(sorted(message.logit_bias.items())),
        grammar=_grammar_from_proto(message.grammar) if message.HasField("grammar") else None,
    )


def _grammar_from_proto(message: steps.SequenceGrammar) -> Grammar:
    return Grammar(_KINDS[message.kind], message.source)


def _image_to_proto(span: ImageSpan) -> steps.SequenceImage:
    return steps.SequenceImage(
        start=span.start, num_tokens=span.num_tokens, key=span.key, offset=span.offset, content=span.content
    )


def _image_from_proto(message: steps.SequenceImage) -> ImageSpan:
    return ImageSpan(message.start, message.num_tokens, message.key, message.offset, message.content)


def request_to_proto(request: Request, ticket: int, deadline_ms: int | None) -> steps.AddSequence:
    """A request under its ticket, with what is left of its deadline."""
    return steps.AddSequence(
        ticket=ticket,
        tenant=request.key.tenant,
        request_id=request.key.request_id,
        prompt_ids=request.prompt_ids,
        sampling=sampling_to_proto(request.sampling),
        images=[_image_to_proto(span) for span in request.images],
        task_id=request.task_id,
        priority=request.priority,
        prefix_ends=request.prefix_ends,
        embeddings_address=request.embeddings_address,
        deadline_ms=deadline_ms,
    )


def request_from_proto(message: steps.AddSequence) -> Request:
    """The request; ticket and deadline are read from the message itself."""
    return Request(
        key=RequestKey(message.tenant, message.request_id),
        prompt_ids=tuple(message.prompt_ids),
        sampling=sampling_from_proto(message.sampling),
        images=tuple(_image_from_proto(image) for image in message.images),
        task_id=message.task_id,
        priority=message.priority,
        prefix_ends=tuple(message.prefix_ends),
        embeddings_address=message.embeddings_address,
    )


# ---- deltas


def _logprob_to_proto(logprob: TokenLogprob) -> steps.SequenceLogprob:
    ids, values = [i for i, _ in logprob.top], [value for _, value in logprob.top]
    return steps.SequenceLogprob(logprob=logprob.logprob, top_ids=ids, top_logprobs=values)


def _logprob_from_proto(message: steps.SequenceLogprob) -> TokenLogprob:
    return TokenLogprob(message.logprob, tuple(zip(message.top_ids, message.top_logprobs, strict=True)))


def _prompt_to_proto(prompt: PromptLogprobs, seq_id: int = 0) -> steps.SequencePrompt:
    return steps.SequencePrompt(
        seq_id=seq_id,
        first_token_index=prompt.first_token_index,
        tokens=[
            steps.PromptToken(logprob=None if item is None else _logprob_to_proto(item))
            for item in prompt.logprobs
        ],
    )


def _prompt_from_proto(message: steps.SequencePrompt) -> PromptLogprobs:
    tokens = (
        _logprob_from_proto(token.logprob) if token.HasField("logprob") else None for token in message.tokens
    )
    return PromptLogprobs(message.first_token_index, tuple(tokens))


def _usage_to_proto(usage: Usage) -> pb.Usage:
    return pb.Usage(**{name: getattr(usage, name) for name in _USAGE_FIELDS})


def _usage_from_proto(message: pb.Usage) -> Usage:
    return Usage(**{name: getattr(message, name) for name in _USAGE_FIELDS})


def delta_to_proto(delta: Delta, ticket: int) -> steps.SequenceDelta:
    """A delta under the ticket of its request."""
    message = steps.SequenceDelta(
        ticket=ticket,
        first_token_index=delta.first_token_index,
        token_ids=delta.token_ids,
        sample=delta.sample,
        num_samples_left=delta.num_samples_left,
    )
    if delta.logprobs:
        message.logprobs.extend(_logprob_to_proto(logprob) for logprob in delta.logprobs)
    if delta.finish_reason is not None:
        message.finish_reason = _REASON_TO_PROTO[delta.finish_reason]
    if delta.stop_token_id is not None:
        message.stop_token_id = delta.stop_token_id
    if delta.usage is not None:
        message.usage.CopyFrom(_usage_to_proto(delta.usage))
    if delta.prompt is not None:
        message.prompt.CopyFrom(_prompt_to_proto(delta.prompt))
    if delta.error is not None:
        message.error.CopyFrom(error_to_proto(delta.error))
    return message


def delta_from_proto(message: steps.SequenceDelta, key: RequestKey) -> Delta:
    """The delta of the request that holds the ticket."""
    return Delta(
        key=key,
        first_token_index=message.first_token_index,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(_logprob_from_proto(logprob) for logprob in message.logprobs),
        finish_reason=_REASON_FROM_PROTO.get(message.finish_reason),
        stop_token_id=message.stop_token_id if message.HasField("stop_token_id") else None,
        usage=_usage_from_proto(message.usage) if message.HasField("usage") else None,
        error=error_from_proto(message.error) if message.HasField("error") else None,
        sample=message.sample,
        num_samples_left=message.num_samples_left,
        prompt=_prompt_from_proto(message.prompt) if message.HasField("prompt") else None,
    )


# ---- steps


def _admitted_to_proto(sequence: AdmittedSequence) -> steps.PlannedSequence:
    return steps.PlannedSequence(
        seq_id=sequence.seq_id,
        prompt_ids=sequence.prompt_ids,
        sampling=sampling_to_proto(sequence.sampling),
        images=[_image_to_proto(span) for span in sequence.images],
        borders=sequence.borders,
    )


def _admitted_from_proto(message: steps.PlannedSequence) -> AdmittedSequence:
    return AdmittedSequence(
        seq_id=message.seq_id,
        prompt_ids=tuple(message.prompt_ids),
        sampling=sampling_from_proto(message.sampling),
        images=tuple(_image_from_proto(image) for image in message.images),
        borders=tuple(message.borders),
    )


def _work_to_proto(work: SequenceWork) -> steps.PlannedWork:
    return steps.PlannedWork(
        seq_id=work.seq_id,
        start=work.start,
        num_tokens=work.num_tokens,
        samples=work.samples,
        num_drafts=work.num_drafts,
        begins=work.begins,
        new_full_blocks=work.new_full_blocks,
        new_sliding_blocks=work.new_sliding_blocks,
    )


def _work_from_proto(message: steps.PlannedWork) -> SequenceWork:
    return SequenceWork(
        seq_id=message.seq_id,
        start=message.start,
        num_tokens=message.num_tokens,
        samples=message.samples,
        num_drafts=message.num_drafts,
        begins=message.begins,
        new_full_blocks=tuple(message.new_full_blocks),
        new_sliding_blocks=tuple(message.new_sliding_blocks),
    )


def _rank_to_proto(rank: RankStep) -> steps.PlannedRank:
    return steps.PlannedRank(
        admitted=[_admitted_to_proto(sequence) for sequence in rank.admitted],
        work=[_work_to_proto(work) for work in rank.work],
        dropped=rank.dropped,
        copies=[
            steps.PlannedCopy(group=copy.group, source=copy.source, target=copy.target)
            for copy in rank.copies
        ],
    )


def _rank_from_proto(message: steps.PlannedRank) -> RankStep:
    return RankStep(
        admitted=tuple(_admitted_from_proto(sequence) for sequence in message.admitted),
        work=tuple(_work_from_proto(work) for work in message.work),
        dropped=tuple(message.dropped),
        copies=tuple(BlockCopy(copy.group, copy.source, copy.target) for copy in message.copies),
    )


def step_to_proto(step: Step) -> steps.PlannedStep:
    """A step with its digest."""
    return steps.PlannedStep(
        generation=step.generation,
        step_id=step.step_id,
        ranks=[_rank_to_proto(rank) for rank in step.ranks],
        digest=step.digest(),
    )


def step_from_proto(message: steps.PlannedStep) -> Step:
    """The step; the caller compares its digest with the message's."""
    return Step(message.generation, message.step_id, tuple(_rank_from_proto(rank) for rank in message.ranks))


def outputs_to_proto(result: RankResult) -> steps.RankOutputs:
    """What one sequence space produced."""
    return steps.RankOutputs(
        outputs=[
            steps.SequenceTokens(
                seq_id=output.seq_id,
                token_ids=output.token_ids,
                logprobs=[_logprob_to_proto(logprob) for logprob in output.logprobs],
                failure=output.failure,
            )
            for output in result.outputs
        ],
        prompts=[_prompt_to_proto(scored.logprobs, scored.seq_id) for scored in result.prompts],
    )


def result_from_proto(message: steps.StepDone) -> StepResult:
    """The answer of a whole gang to one step."""
    return StepResult(
        generation=message.generation,
        step_id=message.step_id,
        ranks=tuple(_outputs_from_proto(rank) for rank in message.ranks),
        step_us=message.step_us,
    )


def _outputs_from_proto(message: steps.RankOutputs) -> RankResult:
    return RankResult(
        tuple(
            SequenceOutput(
                output.seq_id,
                tuple(output.token_ids),
                tuple(_logprob_from_proto(logprob) for logprob in output.logprobs),
                output.failure,
            )
            for output in message.outputs
        ),
        tuple(ScoredPrompt(prompt.seq_id, _prompt_from_proto(prompt)) for prompt in message.prompts),
    )
