"""A checkpoint's own codes as one rank's weights: no detour over floats, one matrix after the other.

What files hold in bfloat16 stays so, or is rounded on the way if `Formats` asks. What they hold in few bits
stays as it is, but for three cases, which cost no accuracy that kernels would have kept:
- int4 outside of the routed experts becomes int8 with the same scales (`Formats`: products of few tokens
  have no int4): the same values.
- FP8 blocks that would have to be cut (shapes other than the published one) become bfloat16, and are said.
- A scale for a whole row becomes one for each 128 columns: the same values.
Shapes: H hidden, W width, E experts of this rank, N rows and K columns of a matrix.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch

from model.config import LayerConfig
from model.device.weights import (
    AttentionWeights,
    DenseWeights,
    DeviceWeights,
    Formats,
    LayerWeights,
    MoEWeights,
    MTPWeights,
    Share,
    packed_group_size,
)
from model.errors import CheckpointError
from model.kernels.experts_config import SharedExpert
from model.kernels.packed import FP8_BLOCK, PackedFormat, PackedWeight, pack, tiled
from model.packed_weights import FP8_DTYPE, read_packed
from model.quant.parts import as_bf16, as_int8, columns, filled_zeros, in_kernel_groups, joined
from model.stored import TensorFiles, open_files
from model.weights import SCALE_SUFFIX, Checkpoint

logger = logging.getLogger(__name__)


def load_device_weights(
    checkpoint: Checkpoint,
    share: Share,
    formats: Formats | None = None,
    device: torch.device | None = None,
    *,
    with_mtp: bool = False,
    own_experts: Share | None = None,
) -> DeviceWeights:
    """One rank's weights; `formats` is what becomes of bfloat16 (None: it stays).

    `own_experts`: of routed and shared experts, if that is another share than of the rest.

    Routed experts that the checkpoint has in few bits keep their format: another one is a CheckpointError,
    as are ranks that cannot share evenly and FP8 in other blocks than 128 x 128.
    """
    text = checkpoint.config.text
    if with_mtp and not checkpoint.has_mtp:
        raise CheckpointError(f"{checkpoint.directory}: this checkpoint has no MTP layers")
    with open_files(checkpoint.stored) as files, torch.no_grad():
        loader = _Loader(
            checkpoint, files, share, own_experts or share, formats, device or torch.device("cpu")
        )
        tokens = share.of(text.vocab_size)
        layers = tuple(loader.layer(layer) for layer in text.layers)
        return DeviceWeights(
            text, loader.formats_of(layers), share,
            embedding_VH=loader.plain("model.embed_tokens.weight", torch.bfloat16),
            layers=layers,
            norm_H=loader.norm("model.norm"),
            head=loader.rest([("lm_head", tokens)]),
            first_token=tokens.start,
            mtp=tuple(loader.mtp(layer) for layer in text.mtp_layers) if with_mtp else (),
            own_experts=own_experts,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Loader:
    checkpoint: Checkpoint
    files: TensorFiles
    share: Share
    expert_share: Share
    formats: Formats | None
    device: torch.device

    # ---- one tensor

    def plain(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        return self.files.read(name).to(self.device, dtype).contiguous()

    def norm(self, name: str) -> torch.Tensor:
        return self.plain(f"{name}.weight", torch.float32) + 1

    def source(self, name: str, expert: int | None = None) -> PackedWeight:
        """A matrix as it is stored, on the device."""
        entry = f"{name}.weight"
        scheme, matrices = self.checkpoint.config.scheme, self.checkpoint.matrices.get(entry)
        if matrices is None:
            return self._from_hub(entry, expert)
        matrix = matrices[expert or 0]
        if matrix.form == "plain":
            return self._bf16(self.files.read(f"{matrix.name}.weight"))
        if matrix.form == "fp8":
            weight, scales = (self.files.read(part) for part in matrix.tensors)
            return self._fp8(weight, scales)
        assert scheme is not None, matrix
        return read_packed(self.files, matrix, scheme, self.device)

    def _from_hub(self, entry: str, expert: int | None) -> PackedWeight:
        tensor = self.files.read(entry, expert)
        if self.checkpoint.stored[entry].dtype != FP8_DTYPE:
            return self._bf16(tensor)
        return self._fp8(tensor, self.files.read(entry + SCALE_SUFFIX, expert))

    def _bf16(self, tensor: torch.Tensor) -> PackedWeight:
        data = tensor.to(self.device, torch.bfloat16)
        return PackedWeight("bf16", data, None, None, 0, tuple(data.shape))

    def _fp8(self, weight: torch.Tensor, scales: torch.Tensor) -> PackedWeight:
        block = self.checkpoint.config.fp8_block
        if block != (FP8_BLOCK, FP8_BLOCK):
            raise CheckpointError(
                f"fp8 in blocks of {block}; kernels read blocks of {FP8_BLOCK}, {FP8_BLOCK}"
            )
        scales = scales.to(self.device, torch.float32)
        return PackedWeight("fp8", weight.to(self.device), scales, None, FP8_BLOCK, tuple(weight.shape))

    # ---- matrices that every token is multiplied with

    def rest(self, parts: list[tuple[str, range]], own_columns: range | None = None) -> PackedWeight:
        """Rows of matrices as one, or some columns of them, in a format that products of few tokens have."""
        taken = []
        for name, rows in parts:
            weight = self.source(name)
            taken.append((weight if own_columns is None else columns(weight, own_columns), rows))
        result = in_kernel_groups(joined(taken))
        if result.format == "int4":
            return as_int8(result)
        if result.format != "bf16":
            return result
        if any(weight.format != "bf16" for weight, _ in taken):
            names = ", ".join(name for name, _ in parts)
            logger.warning("%s: codes cannot be kept on this rank, they become bfloat16", names)
        weight_format = self.formats.rest if self.formats else "bf16"
        return pack(result.data, weight_format, packed_group_size(weight_format, result.shape[-1]))

    def rows_of(self, name: str, count: int, each: int = 1) -> tuple[str, range]:
        """This rank's of `count` things of `each` rows."""
        own = self.share.of(count)
        return name, range(own.start * each, own.stop * each)

    def all_rows(self, name: str, count: int) -> tuple[str, range]:
        return name, range(count)

    # ---- layers

    def layer(self, config: LayerConfig) -> LayerWeights:
        name, text = f"model.layers.{config.index}", self.checkpoint.config.text
        mlp: DenseWeights | MoEWeights
        if config.is_moe:
            of_experts = replace(self, share=self.expert_share)
            shared = of_experts.dense(f"{name}.share_expert", text.shared_width, config)
            mlp = of_experts.moe(f"{name}.moe", config, shared)
        else:
            mlp = self.dense(f"{name}.mlp", text.dense_width, config)
        return LayerWeights(
            config, self.norm(f"{name}.input_layernorm"), self.attention(f"{name}.self_attn", config),
            self.norm(f"{name}.post_attention_layernorm"), mlp,
        )  # fmt: skip

    def attention(self, name: str, config: LayerConfig) -> AttentionWeights:
        text, num_q = self.checkpoint.config.text, config.num_heads
        size, heads, kv_heads = text.head_dim, self.share.of(num_q), self.share.of(text.num_kv_heads)
        parts = [
            self.rows_of(f"{name}.q_proj", num_q, size),
            *(self.rows_of(f"{name}.{part}_proj", text.num_kv_heads, size) for part in "kv"),
            self.rows_of(f"{name}.g_proj", num_q),
        ]
        return AttentionWeights(
            qkvg=self.rest(parts),
            output=self.rest(
                [self.all_rows(f"{name}.o_proj", text.hidden_size)],
                range(heads.start * size, heads.stop * size),
            ),
            q_norm_D=self.norm(f"{name}.q_norm"), k_norm_D=self.norm(f"{name}.k_norm"),
            num_heads=len(heads), num_kv_heads=len(kv_heads),
        )  # fmt: skip

    def dense(self, name: str, width: int, config: LayerConfig) -> DenseWeights:
        gate_up = [self.rows_of(f"{name}.gate_proj", width), self.rows_of(f"{name}.up_proj", width)]
        down = [self.all_rows(f"{name}.down_proj", self.checkpoint.config.text.hidden_size)]
        return DenseWeights(
            self.rest(gate_up), self.rest(down, self.share.of(width)), config.shared_swiglu_limit
        )

    def moe(self, name: str, config: LayerConfig, shared: DenseWeights) -> MoEWeights:
        experts = self.share.of(self.checkpoint.config.text.num_experts)
        return MoEWeights(
            router_EH=self.plain(f"{name}.gate.weight", torch.float32),
            bias_E=self.plain(f"{name}.router_bias", torch.float32),
            gate_up=self.stack(experts, f"{name}.gate_proj", f"{name}.up_proj"),
            down=self.stack(experts, f"{name}.down_proj"),
            limit=config.swiglu_limit, first_expert=experts.start,
            shared=SharedExpert(shared.gate_up, shared.down, shared.limit),
        )  # fmt: skip

    def stack(self, experts: range, *names: str) -> PackedWeight:
        """Matrices of each expert as one, all experts in one tensor that is made first and filled."""
        result: PackedWeight | None = None
        stored = self.source(names[0], experts.start).format
        for place, expert in enumerate(experts):
            weight = self.expert_matrix(names, expert)
            result = _empty_stack(len(experts), weight) if result is None else result
            result = _fill_place(result, place, weight)
        assert result is not None, names
        if result.format == "bf16" and stored != "bf16":
            logger.warning("%s: %s codes cannot be kept, they become bfloat16", ", ".join(names), stored)
        return result

    def expert_matrix(self, names: tuple[str, ...], expert: int) -> PackedWeight:
        sources = [self.source(name, expert) for name in names]
        asked = self.formats.experts if self.formats else None
        stored = sources[0].format
        if stored == "fp8" and self.checkpoint.config.text.expert_width % FP8_BLOCK:
            # Gate and up would share a block of rows. Down, too: a layer's experts are of one format.
            sources = [as_bf16(weight) for weight in sources]
        elif stored != "bf16" and asked not in (None, stored):
            raise CheckpointError(f"{names[0]}: experts are {stored} in the checkpoint; asked for: {asked}")
        weight = joined([(weight, range(weight.shape[0])) for weight in sources])
        if weight.format == "bf16" and asked is not None:
            return tiled(pack(weight.data, asked, packed_group_size(asked, weight.shape[-1])))
        return tiled(in_kernel_groups(weight))

    def mtp(self, config: LayerConfig) -> MTPWeights:
        name, text = f"model.layers.{config.index}", self.checkpoint.config.text
        head = f"{name}.transformer.shared_head"
        return MTPWeights(
            self.norm(f"{name}.enorm"), self.norm(f"{name}.hnorm"),
            self.rest([self.all_rows(f"{name}.eh_proj", text.hidden_size)]), self.layer(config),
            self.norm(f"{head}.norm"), self.rest([self.rows_of(f"{head}.output", text.vocab_size)]),
        )  # fmt: skip

    def formats_of(self, layers: tuple[LayerWeights, ...]) -> Formats:
        """What came of it: the format of the experts, and of the first layer's attention."""
        experts: PackedFormat = next(
            (layer.mlp.gate_up.format for layer in layers if isinstance(layer.mlp, MoEWeights)), "bf16"
        )
        return Formats(experts, layers[0].attention.qkvg.format)


def _empty_stack(count: int, like: PackedWeight) -> PackedWeight:
    data = torch.empty((count, *like.data.shape), dtype=like.data.dtype, device=like.data.device)
    scales = None if like.scales is None else like.scales.new_empty((count, *like.scales.shape))
    shape = (count, *like.shape)
    return PackedWeight(like.format, data, scales, None, like.group_size, shape, like.is_tiled)


def _fill_place(stack: PackedWeight, place: int, weight: PackedWeight) -> PackedWeight:
    """The stack with a matrix copied into it; it gets zero points when the first matrix has some."""
    assert weight.shape == stack.shape[1:] and weight.format == stack.format, (weight, stack)
    if weight.zeros is not None and stack.zeros is None:
        stack = replace(stack, zeros=filled_zeros(stack))
    stack.data[place].copy_(weight.data)
    if stack.scales is not None and weight.scales is not None:
        stack.scales[place].copy_(weight.scales)
    if stack.zeros is not None and weight.zeros is not None:
        stack.zeros[place].copy_(weight.zeros)
    return stack
