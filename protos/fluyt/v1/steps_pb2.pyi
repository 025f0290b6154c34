from protos.fluyt.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_FRONT_DOOR: _ClassVar[Role]
    ROLE_GANG: _ClassVar[Role]
    ROLE_RANK: _ClassVar[Role]
ROLE_UNSPECIFIED: Role
ROLE_FRONT_DOOR: Role
ROLE_GANG: Role
ROLE_RANK: Role

class Hello(_message.Message):
    __slots__ = ("role", "proto_version", "epoch", "fingerprint", "gang_id", "generation", "world_size", "num_spaces", "block_size", "num_full_blocks", "num_sliding_blocks", "rank", "instance", "num_drafts")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PROTO_VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    GANG_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_SPACES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_FULL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_SLIDING_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    NUM_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    role: Role
    proto_version: int
    epoch: str
    fingerprint: str
    gang_id: str
    generation: int
    world_size: int
    num_spaces: int
    block_size: int
    num_full_blocks: int
    num_sliding_blocks: int
    rank: int
    instance: str
    num_drafts: int
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., proto_version: _Optional[int] = ..., epoch: _Optional[str] = ..., fingerprint: _Optional[str] = ..., gang_id: _Optional[str] = ..., generation: _Optional[int] = ..., world_size: _Optional[int] = ..., num_spaces: _Optional[int] = ..., block_size: _Optional[int] = ..., num_full_blocks: _Optional[int] = ..., num_sliding_blocks: _Optional[int] = ..., rank: _Optional[int] = ..., instance: _Optional[str] = ..., num_drafts: _Optional[int] = ...) -> None: ...

class FromFrontDoor(_message.Message):
    __slots__ = ("hello", "add", "stop", "abort", "load_query")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ADD_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    LOAD_QUERY_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    add: AddSequence
    stop: StopSequence
    abort: AbortSequence
    load_query: LoadQuery
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., add: _Optional[_Union[AddSequence, _Mapping]] = ..., stop: _Optional[_Union[StopSequence, _Mapping]] = ..., abort: _Optional[_Union[AbortSequence, _Mapping]] = ..., load_query: _Optional[_Union[LoadQuery, _Mapping]] = ...) -> None: ...

class AddSequence(_message.Message):
    __slots__ = ("ticket", "tenant", "request_id", "prompt_ids", "sampling", "images", "task_id", "embeddings_address", "deadline_ms", "prefix_ends", "priority")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_ENDS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ticket: int
    tenant: str
    request_id: str
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: SequenceSampling
    images: _containers.RepeatedCompositeFieldContainer[SequenceImage]
    task_id: str
    embeddings_address: str
    deadline_ms: int
    prefix_ends: _containers.RepeatedScalarFieldContainer[int]
    priority: int
    def __init__(self, ticket: _Optional[int] = ..., tenant: _Optional[str] = ..., request_id: _Optional[str] = ..., prompt_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[SequenceSampling, _Mapping]] = ..., images: _Optional[_Iterable[_Union[SequenceImage, _Mapping]]] = ..., task_id: _Optional[str] = ..., embeddings_address: _Optional[str] = ..., deadline_ms: _Optional[int] = ..., prefix_ends: _Optional[_Iterable[int]] = ..., priority: _Optional[int] = ...) -> None: ...

class SequenceSampling(_message.Message):
    __slots__ = ("max_tokens", "seed", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens", "stop", "stop_token_ids", "eos_token_ids", "num_logprobs", "mtp", "starts_in_thinking", "grammar", "max_think_tokens", "think_end_id", "logit_bias", "num_samples", "sample", "num_prompt_logprobs")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MTP_FIELD_NUMBER: _ClassVar[int]
    STARTS_IN_THINKING_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    MAX_THINK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    THINK_END_ID_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    seed: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    min_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_logprobs: int
    mtp: bool
    starts_in_thinking: bool
    grammar: SequenceGrammar
    max_think_tokens: int
    think_end_id: int
    logit_bias: _containers.ScalarMap[int, float]
    num_samples: int
    sample: int
    num_prompt_logprobs: int
    def __init__(self, max_tokens: _Optional[int] = ..., seed: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., min_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., num_logprobs: _Optional[int] = ..., mtp: bool = ..., starts_in_thinking: bool = ..., grammar: _Optional[_Union[SequenceGrammar, _Mapping]] = ..., max_think_tokens: _Optional[int] = ..., think_end_id: _Optional[int] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., num_samples: _Optional[int] = ..., sample: _Optional[int] = ..., num_prompt_logprobs: _Optional[int] = ...) -> None: ...

class SequenceGrammar(_message.Message):
    __slots__ = ("kind", "source")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    source: str
    def __init__(self, kind: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class SequenceImage(_message.Message):
    __slots__ = ("start", "num_tokens", "key", "offset", "content")
    START_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    start: int
    num_tokens: int
    key: str
    offset: int
    content: str
    def __init__(self, start: _Optional[int] = ..., num_tokens: _Optional[int] = ..., key: _Optional[str] = ..., offset: _Optional[int] = ..., content: _Optional[str] = ...) -> None: ...

class StopSequence(_message.Message):
    __slots__ = ("ticket", "num_tokens", "sample")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    ticket: int
    num_tokens: int
    sample: int
    def __init__(self, ticket: _Optional[int] = ..., num_tokens: _Optional[int] = ..., sample: _Optional[int] = ...) -> None: ...

class AbortSequence(_message.Message):
    __slots__ = ("tenant", "request_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    request_id: str
    def __init__(self, tenant: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class LoadQuery(_message.Message):
    __slots__ = ("query",)
    QUERY_FIELD_NUMBER: _ClassVar[int]
    query: int
    def __init__(self, query: _Optional[int] = ...) -> None: ...

class ToFrontDoor(_message.Message):
    __slots__ = ("state", "deltas", "load_reply")
    STATE_FIELD_NUMBER: _ClassVar[int]
    DELTAS_FIELD_NUMBER: _ClassVar[int]
    LOAD_REPLY_FIELD_NUMBER: _ClassVar[int]
    state: SchedulerState
    deltas: SequenceDeltas
    load_reply: LoadReply
    def __init__(self, state: _Optional[_Union[SchedulerState, _Mapping]] = ..., deltas: _Optional[_Union[SequenceDeltas, _Mapping]] = ..., load_reply: _Optional[_Union[LoadReply, _Mapping]] = ...) -> None: ...

class SchedulerState(_message.Message):
    __slots__ = ("epoch", "ready", "fingerprint", "capacity_tokens", "block_size", "num_gangs")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_GANGS_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    ready: bool
    fingerprint: str
    capacity_tokens: int
    block_size: int
    num_gangs: int
    def __init__(self, epoch: _Optional[str] = ..., ready: bool = ..., fingerprint: _Optional[str] = ..., capacity_tokens: _Optional[int] = ..., block_size: _Optional[int] = ..., num_gangs: _Optional[int] = ...) -> None: ...

class SequenceDeltas(_message.Message):
    __slots__ = ("deltas",)
    DELTAS_FIELD_NUMBER: _ClassVar[int]
    deltas: _containers.RepeatedCompositeFieldContainer[SequenceDelta]
    def __init__(self, deltas: _Optional[_Iterable[_Union[SequenceDelta, _Mapping]]] = ...) -> None: ...

class SequenceDelta(_message.Message):
    __slots__ = ("ticket", "first_token_index", "token_ids", "logprobs", "finish_reason", "stop_token_id", "usage", "error", "sample", "num_samples_left", "prompt")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_LEFT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    ticket: int
    first_token_index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[SequenceLogprob]
    finish_reason: _inference_pb2.FinishReason
    stop_token_id: int
    usage: _inference_pb2.Usage
    error: SequenceError
    sample: int
    num_samples_left: int
    prompt: SequencePrompt
    def __init__(self, ticket: _Optional[int] = ..., first_token_index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[SequenceLogprob, _Mapping]]] = ..., finish_reason: _Optional[_Union[_inference_pb2.FinishReason, str]] = ..., stop_token_id: _Optional[int] = ..., usage: _Optional[_Union[_inference_pb2.Usage, _Mapping]] = ..., error: _Optional[_Union[SequenceError, _Mapping]] = ..., sample: _Optional[int] = ..., num_samples_left: _Optional[int] = ..., prompt: _Optional[_Union[SequencePrompt, _Mapping]] = ...) -> None: ...

class SequenceLogprob(_message.Message):
    __slots__ = ("logprob", "top_ids", "top_logprobs")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprob: _Optional[float] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class SequencePrompt(_message.Message):
    __slots__ = ("seq_id", "first_token_index", "tokens")
    SEQ_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    seq_id: int
    first_token_index: int
    tokens: _containers.RepeatedCompositeFieldContainer[PromptToken]
    def __init__(self, seq_id: _Optional[int] = ..., first_token_index: _Optional[int] = ..., tokens: _Optional[_Iterable[_Union[PromptToken, _Mapping]]] = ...) -> None: ...

class PromptToken(_message.Message):
    __slots__ = ("logprob",)
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    logprob: SequenceLogprob
    def __init__(self, logprob: _Optional[_Union[SequenceLogprob, _Mapping]] = ...) -> None: ...

class SequenceError(_message.Message):
    __slots__ = ("code", "message", "field", "retry_after_s", "subject")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    field: str
    retry_after_s: float
    subject: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., retry_after_s: _Optional[float] = ..., subject: _Optional[str] = ...) -> None: ...

class LoadReply(_message.Message):
    __slots__ = ("query", "num_waiting", "num_running", "num_queued_tokens", "num_free_full_blocks")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_FULL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    query: int
    num_waiting: int
    num_running: int
    num_queued_tokens: int
    num_free_full_blocks: int
    def __init__(self, query: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_running: _Optional[int] = ..., num_queued_tokens: _Optional[int] = ..., num_free_full_blocks: _Optional[int] = ...) -> None: ...

class FromGang(_message.Message):
    __slots__ = ("hello", "done", "fetched")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FETCHED_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    done: StepDone
    fetched: Fetched
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., done: _Optional[_Union[StepDone, _Mapping]] = ..., fetched: _Optional[_Union[Fetched, _Mapping]] = ...) -> None: ...

class Order(_message.Message):
    __slots__ = ("reset", "step", "prefetch", "forget")
    RESET_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    reset: Reset
    step: PlannedStep
    prefetch: Prefetch
    forget: Forget
    def __init__(self, reset: _Optional[_Union[Reset, _Mapping]] = ..., step: _Optional[_Union[PlannedStep, _Mapping]] = ..., prefetch: _Optional[_Union[Prefetch, _Mapping]] = ..., forget: _Optional[_Union[Forget, _Mapping]] = ...) -> None: ...

class FromRank(_message.Message):
    __slots__ = ("hello", "done", "fetched")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FETCHED_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    done: RankDone
    fetched: Fetched
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., done: _Optional[_Union[RankDone, _Mapping]] = ..., fetched: _Optional[_Union[Fetched, _Mapping]] = ...) -> None: ...

class Reset(_message.Message):
    __slots__ = ("generation", "epoch", "secret")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    generation: int
    epoch: str
    secret: str
    def __init__(self, generation: _Optional[int] = ..., epoch: _Optional[str] = ..., secret: _Optional[str] = ...) -> None: ...

class PlannedStep(_message.Message):
    __slots__ = ("generation", "step_id", "ranks", "digest")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    generation: int
    step_id: int
    ranks: _containers.RepeatedCompositeFieldContainer[PlannedRank]
    digest: str
    def __init__(self, generation: _Optional[int] = ..., step_id: _Optional[int] = ..., ranks: _Optional[_Iterable[_Union[PlannedRank, _Mapping]]] = ..., digest: _Optional[str] = ...) -> None: ...

class PlannedRank(_message.Message):
    __slots__ = ("admitted", "work", "dropped", "copies")
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    admitted: _containers.RepeatedCompositeFieldContainer[PlannedSequence]
    work: _containers.RepeatedCompositeFieldContainer[PlannedWork]
    dropped: _containers.RepeatedScalarFieldContainer[int]
    copies: _containers.RepeatedCompositeFieldContainer[PlannedCopy]
    def __init__(self, admitted: _Optional[_Iterable[_Union[PlannedSequence, _Mapping]]] = ..., work: _Optional[_Iterable[_Union[PlannedWork, _Mapping]]] = ..., dropped: _Optional[_Iterable[int]] = ..., copies: _Optional[_Iterable[_Union[PlannedCopy, _Mapping]]] = ...) -> None: ...

class PlannedSequence(_message.Message):
    __slots__ = ("seq_id", "prompt_ids", "sampling", "images", "borders")
    SEQ_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    BORDERS_FIELD_NUMBER: _ClassVar[int]
    seq_id: int
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: SequenceSampling
    images: _containers.RepeatedCompositeFieldContainer[SequenceImage]
    borders: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, seq_id: _Optional[int] = ..., prompt_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[SequenceSampling, _Mapping]] = ..., images: _Optional[_Iterable[_Union[SequenceImage, _Mapping]]] = ..., borders: _Optional[_Iterable[int]] = ...) -> None: ...

class PlannedWork(_message.Message):
    __slots__ = ("seq_id", "start", "num_tokens", "samples", "new_full_blocks", "new_sliding_blocks", "num_drafts", "begins")
    SEQ_ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    NEW_FULL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NEW_SLIDING_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    BEGINS_FIELD_NUMBER: _ClassVar[int]
    seq_id: int
    start: int
    num_tokens: int
    samples: bool
    new_full_blocks: _containers.RepeatedScalarFieldContainer[int]
    new_sliding_blocks: _containers.RepeatedScalarFieldContainer[int]
    num_drafts: int
    begins: bool
    def __init__(self, seq_id: _Optional[int] = ..., start: _Optional[int] = ..., num_tokens: _Optional[int] = ..., samples: bool = ..., new_full_blocks: _Optional[_Iterable[int]] = ..., new_sliding_blocks: _Optional[_Iterable[int]] = ..., num_drafts: _Optional[int] = ..., begins: bool = ...) -> None: ...

class PlannedCopy(_message.Message):
    __slots__ = ("group", "source", "target")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    group: str
    source: int
    target: int
    def __init__(self, group: _Optional[str] = ..., source: _Optional[int] = ..., target: _Optional[int] = ...) -> None: ...

class StepDone(_message.Message):
    __slots__ = ("generation", "step_id", "ranks", "step_us")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    STEP_US_FIELD_NUMBER: _ClassVar[int]
    generation: int
    step_id: int
    ranks: _containers.RepeatedCompositeFieldContainer[RankOutputs]
    step_us: int
    def __init__(self, generation: _Optional[int] = ..., step_id: _Optional[int] = ..., ranks: _Optional[_Iterable[_Union[RankOutputs, _Mapping]]] = ..., step_us: _Optional[int] = ...) -> None: ...

class RankDone(_message.Message):
    __slots__ = ("generation", "step_id", "outputs", "step_us")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    STEP_US_FIELD_NUMBER: _ClassVar[int]
    generation: int
    step_id: int
    outputs: RankOutputs
    step_us: int
    def __init__(self, generation: _Optional[int] = ..., step_id: _Optional[int] = ..., outputs: _Optional[_Union[RankOutputs, _Mapping]] = ..., step_us: _Optional[int] = ...) -> None: ...

class RankOutputs(_message.Message):
    __slots__ = ("outputs", "prompts")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[SequenceTokens]
    prompts: _containers.RepeatedCompositeFieldContainer[SequencePrompt]
    def __init__(self, outputs: _Optional[_Iterable[_Union[SequenceTokens, _Mapping]]] = ..., prompts: _Optional[_Iterable[_Union[SequencePrompt, _Mapping]]] = ...) -> None: ...

class SequenceTokens(_message.Message):
    __slots__ = ("seq_id", "token_ids", "logprobs", "failure")
    SEQ_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    seq_id: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[SequenceLogprob]
    failure: str
    def __init__(self, seq_id: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[SequenceLogprob, _Mapping]]] = ..., failure: _Optional[str] = ...) -> None: ...

class Prefetch(_message.Message):
    __slots__ = ("fetch_id", "generation", "space", "keys", "prefix", "address")
    FETCH_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    fetch_id: int
    generation: int
    space: int
    keys: _containers.RepeatedScalarFieldContainer[str]
    prefix: str
    address: str
    def __init__(self, fetch_id: _Optional[int] = ..., generation: _Optional[int] = ..., space: _Optional[int] = ..., keys: _Optional[_Iterable[str]] = ..., prefix: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class Forget(_message.Message):
    __slots__ = ("fetch_id", "space")
    FETCH_ID_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    fetch_id: int
    space: int
    def __init__(self, fetch_id: _Optional[int] = ..., space: _Optional[int] = ...) -> None: ...

class Fetched(_message.Message):
    __slots__ = ("fetch_id", "generation", "rank", "error")
    FETCH_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    fetch_id: int
    generation: int
    rank: int
    error: SequenceError
    def __init__(self, fetch_id: _Optional[int] = ..., generation: _Optional[int] = ..., rank: _Optional[int] = ..., error: _Optional[_Union[SequenceError, _Mapping]] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("gang_id", "rank", "world_size", "proto_version", "leader_host", "store_port", "rank_port", "gang_secret")
    GANG_ID_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    PROTO_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEADER_HOST_FIELD_NUMBER: _ClassVar[int]
    STORE_PORT_FIELD_NUMBER: _ClassVar[int]
    RANK_PORT_FIELD_NUMBER: _ClassVar[int]
    GANG_SECRET_FIELD_NUMBER: _ClassVar[int]
    gang_id: str
    rank: int
    world_size: int
    proto_version: int
    leader_host: str
    store_port: int
    rank_port: int
    gang_secret: str
    def __init__(self, gang_id: _Optional[str] = ..., rank: _Optional[int] = ..., world_size: _Optional[int] = ..., proto_version: _Optional[int] = ..., leader_host: _Optional[str] = ..., store_port: _Optional[int] = ..., rank_port: _Optional[int] = ..., gang_secret: _Optional[str] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("leader_host", "store_port", "rank_port", "gang_secret")
    LEADER_HOST_FIELD_NUMBER: _ClassVar[int]
    STORE_PORT_FIELD_NUMBER: _ClassVar[int]
    RANK_PORT_FIELD_NUMBER: _ClassVar[int]
    GANG_SECRET_FIELD_NUMBER: _ClassVar[int]
    leader_host: str
    store_port: int
    rank_port: int
    gang_secret: str
    def __init__(self, leader_host: _Optional[str] = ..., store_port: _Optional[int] = ..., rank_port: _Optional[int] = ..., gang_secret: _Optional[str] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: str
    def __init__(self, key: _Optional[str] = ...) -> None: ...

class EmbeddingChunk(_message.Message):
    __slots__ = ("data", "num_rows", "row_size", "dtype")
    DATA_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    ROW_SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    num_rows: int
    row_size: int
    dtype: str
    def __init__(self, data: _Optional[bytes] = ..., num_rows: _Optional[int] = ..., row_size: _Optional[int] = ..., dtype: _Optional[str] = ...) -> None: ...
