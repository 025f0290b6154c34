"""ClusterConfig: everything an operator sets, from one YAML file into frozen dataclasses.

Unknown keys are errors that name the key and those there are. Every default has its reason beside it.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cluster.admission import AdmissionLimits
from cluster.identity import IdentityConfig
from model.errors import InvalidRequest
from model.text.images import ImageLimits

MIB = 1 << 20


@dataclass(frozen=True)
class ModelSection:
    """Which weights, and how they are computed."""

    directory: str = ""  # "" is the default model that comes with the package
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"  # what a CPU computes fastest and exactly
    attention: Literal["data", "tensor"] = "data"  # any number of ranks, any hosts; tensor: one host


@dataclass(frozen=True)
class GangSection:
    """Ranks that step together, and what each of them holds."""

    count: int = 1
    size: int = 2  # the fewest with which tokens really travel between ranks
    on_gpus: bool = False  # a GPU for each rank, booked at Ray; the default model needs none
    threads_per_rank: int = 1  # ranks share the cores of a small machine; set it to cores / ranks
    chunk_tokens: int = 512  # a long prompt then holds up running streams for one such chunk at a time
    kv_blocks: int | None = None  # of the full-attention group; None: what the model's budget of memory gives
    max_running: int = 64  # per rank; more would wait for the same memory bandwidth
    prefix_cache: bool = True  # prompts that begin alike are computed once
    mtp: bool | None = None  # verify drafts; None: where the checkpoint has MTP layers
    exchange_timeout_s: float = 15.0  # a rank silent for so long inside a step is dead or hung


@dataclass(frozen=True)
class QueueSection:
    """What may wait at the scheduler, per gang."""

    max_requests: int = 1024  # minutes of work for one gang: who comes later is better told at once
    max_tokens: int = 4 * MIB  # sixteen prompts of the longest context of the large model


@dataclass(frozen=True)
class FrontDoorSection:
    """The public servers, one per node that has the resource."""

    count: int = 1
    host: str = "127.0.0.1"  # only this machine until somebody says otherwise; pods say 0.0.0.0
    port: int = 50051  # the usual gRPC port; the only one that clients need
    health_port: int = 50052  # health and metrics in plain text: kubelet cannot present a certificate
    # Ids of 50,000 short answers, with which chats that come back meet what was computed; 0: off.
    kept_answers_mib: int = 64
    drain_s: float = 30.0  # open streams may end in this time after a shutdown began


@dataclass(frozen=True)
class VisionSection:
    """The encoders of images."""

    count: int = 1
    threads: int = 1
    cache_mib: int = 256  # embeddings by content: a page that comes back is not computed again


@dataclass(frozen=True)
class RaySection:
    """How our own Ray is started; unused when joining one."""

    object_store_mib: int = 256  # holds image tiles on their way to the encoder, nothing else


@dataclass(frozen=True)
class ClusterConfig:
    """The whole application. `parse` and `load` check it."""

    model: ModelSection = field(default_factory=ModelSection)
    gang: GangSection = field(default_factory=GangSection)
    queue: QueueSection = field(default_factory=QueueSection)
    frontdoor: FrontDoorSection = field(default_factory=FrontDoorSection)
    vision: VisionSection = field(default_factory=VisionSection)
    ray: RaySection = field(default_factory=RaySection)
    admission: AdmissionLimits = field(default_factory=AdmissionLimits)
    images: ImageLimits = field(default_factory=ImageLimits)
    identity: IdentityConfig = field(default_factory=IdentityConfig)

    def resources(self) -> dict[str, int]:
        """Custom resources that the deployments take together, one unit a replica."""
        return {
            "frontdoor": self.frontdoor.count,
            "vision": self.vision.count,
            "scheduler": 1,
            "moe_shard": self.gang.count * self.gang.size,
        }

    def replaced(self, section: str, **values: Any) -> ClusterConfig:
        """This config with some values of one section changed; None leaves a value as it is."""
        changed = {name: value for name, value in values.items() if value is not None}
        part = dataclasses.replace(getattr(self, section), **changed)
        return _checked(dataclasses.replace(self, **{section: part}))


def load(path: str | Path) -> ClusterConfig:
    """Read a YAML file. Raises InvalidRequest naming file, key, value and what is allowed."""
    import yaml  # part of the server extra

    try:
        data = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InvalidRequest(str(path), str(error)) from error
    return parse({} if data is None else data)


def parse(data: Mapping[str, Any]) -> ClusterConfig:
    """Build the config from parsed YAML. Raises InvalidRequest naming the key by its path."""
    config = _read(ClusterConfig, data, "")
    assert isinstance(config, ClusterConfig), config
    return _checked(config)


def to_dict(config: ClusterConfig) -> dict[str, Any]:
    """The inverse of `parse`: what Ray carries to the replicas."""
    return dataclasses.asdict(config)


def _checked(config: ClusterConfig) -> ClusterConfig:
    gang = config.gang
    if config.model.attention == "tensor" and config.model.dtype == "float64":
        raise InvalidRequest("model.dtype", "'float64' is computed with model.attention 'data' only")
    for path, value, least in (
        ("gang.count", gang.count, 1),
        ("gang.size", gang.size, 1),
        ("gang.threads_per_rank", gang.threads_per_rank, 1),
        ("gang.chunk_tokens", gang.chunk_tokens, 1),
        ("gang.kv_blocks", 1 if gang.kv_blocks is None else gang.kv_blocks, 1),
        ("gang.max_running", gang.max_running, 1),
        ("admission.max_samples", config.admission.max_samples, 1),
        ("queue.max_requests", config.queue.max_requests, 1),
        ("queue.max_tokens", config.queue.max_tokens, 1),
        ("frontdoor.count", config.frontdoor.count, 1),
        ("frontdoor.kept_answers_mib", config.frontdoor.kept_answers_mib, 0),
        ("vision.count", config.vision.count, 0),
    ):
        if value < least:
            raise InvalidRequest(path, f"{value} is below {least}")
    for path, port in (
        ("frontdoor.port", config.frontdoor.port),
        ("frontdoor.health_port", config.frontdoor.health_port),
    ):
        if not 0 < port < 1 << 16:
            raise InvalidRequest(path, f"{port} is not a port (1 to 65535)")
    if config.frontdoor.port == config.frontdoor.health_port:
        raise InvalidRequest("frontdoor.health_port", f"{config.frontdoor.port} is also frontdoor.port")
    return config


def _read(kind: Any, value: Any, path: str) -> Any:
    """`value` as `kind`, recursively. Raises InvalidRequest."""
    if dataclasses.is_dataclass(kind):
        return _read_section(kind, value, path)
    origin = get_origin(kind)
    if origin is Literal:
        if value not in get_args(kind):
            raise InvalidRequest(path, f"{value!r} is not one of {', '.join(map(str, get_args(kind)))}")
        return value
    if origin in (Union, types.UnionType):
        inner = [part for part in get_args(kind) if part is not type(None)]
        return None if value is None else _read(inner[0], value, path)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InvalidRequest(path, f"{value!r} is not a list")
        return tuple(_read(get_args(kind)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidRequest(path, f"{value!r} is not {kind.__name__}")
    return value


def _read_section(kind: Any, value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise InvalidRequest(path or "config", f"{value!r} is not a mapping")
    hints = get_type_hints(kind)
    known = [item.name for item in dataclasses.fields(kind)]
    for key in value:
        if key not in known:
            where = f"{path}.{key}" if path else str(key)
            raise InvalidRequest(where, f"unknown key; known here: {', '.join(known)}")
    return kind(
        **{name: _read(hints[name], item, f"{path}.{name}" if path else name) for name, item in value.items()}
    )
