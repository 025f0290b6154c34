"""A step of the decoder on one rank: the same launches for whatever is in the rows, so that a graph holds it.

Shapes: T rows, C rows whose experts are computed here (T, or those of all ranks), H hidden, V vocabulary of
this rank, N query heads, D head size, X columns of the fused projection, P parts of a sum, K experts per
token, B sequences.

    embed + norm -> [qkvg -> norms, RoPE, cache -> attention, gate -> output -> (sum of ranks) -> add + norm
                     -> (dispatch) router -> experts with the shared one (combine) -> (sum of ranks)
                     -> add + norm]
                 -> head -> sample -> (best of ranks) -> advance

Sums that somebody adds anyway stay in parts (`Addends`): splits of K, rows of experts. The launch that adds
them to the residual stream norms it for what follows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.device.exchange import Addends, Exchange
from model.device.layout import KINDS, Kind
from model.device.ops import Ops
from model.device.state import Scratch, StepRows
from model.device.weights import AttentionWeights, DenseWeights, DeviceWeights, LayerWeights, MoEWeights
from model.kernels.linear_config import InputNorm, SwiGLU
from model.kernels.packed import PackedWeight
from model.kernels.paged import PagedKV, PagedSequences
from model.kernels.router_config import RouterOutput, UniformRouting
from model.kernels.sample_plain import Candidates


@dataclass(frozen=True, eq=False)  # tensors have no one equality
class TokenRows:
    """What layers read of a step. `query_starts_B1`: rows of each sequence (prefill); None: equally many."""

    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    seqs_T: torch.Tensor
    sequences: dict[Kind, PagedSequences]
    query_starts_B1: torch.Tensor | None = None

    @classmethod
    def of_step(cls, rows: StepRows) -> TokenRows:
        """A decode step's."""
        return cls(rows.token_ids_T, rows.positions_T, rows.seqs_T, rows.sequences)


@dataclass(frozen=True, eq=False)
class DeviceDecoder:
    """One rank's weights and cache, and what computes with them. `uniform_seed`: random routing."""

    weights: DeviceWeights
    pools: tuple[PagedKV, ...]  # one for each layer, MTP layers last
    ops: Ops
    exchange: Exchange
    uniform_seed: int | None = None

    def decode_step(self, rows: StepRows, scratch: Scratch) -> Candidates:
        """Compute all rows and sample each; a sequence of one row moves on to its next token.

        Returns candidates [R, T] (or [T] of one rank) in `scratch`. Logits stay in it, too.
        """
        tokens = TokenRows.of_step(rows)
        self.run_layers(tokens, scratch, rows.step_1)
        logits_TV = self.logits(scratch.normed_TH, self.weights.head, scratch)
        sampled = self.sample(logits_TV, rows, scratch)
        if rows.num_queries == 1:
            self.ops.advance(rows.decode_rows, sampled)
        return sampled

    def run_layers(self, tokens: TokenRows, scratch: Scratch, step_1: torch.Tensor) -> None:
        """Embed and run all layers: `scratch.hidden_TH`, and its final norm in `scratch.normed_TH`."""
        num_rows, weights = tokens.token_ids_T.shape[0], self.weights
        self.token_tables(tokens, scratch)
        positions_C = self.exchange.dispatch(tokens.positions_T)
        self.ops.add_norm(
            weights.embedding_VH, scratch.hidden_TH[:num_rows], row_ids_T=tokens.token_ids_T,
            norm=self._norm(weights.layers[0].attention_norm_H), normed_TH=scratch.normed_TH[:num_rows],
        )  # fmt: skip
        chosen = iter(scratch.chosen)
        following = [*(layer.attention_norm_H for layer in weights.layers[1:]), weights.norm_H]
        for layer, pool, next_norm_H in zip(weights.layers, self.pools, following, strict=False):
            addends = self.attention(layer, pool, tokens, scratch)
            self.add_norm(addends, layer.mlp_norm_H, scratch)
            if isinstance(layer.mlp, MoEWeights):
                addends = self._moe(layer, layer.mlp, num_rows, positions_C, next(chosen), scratch, step_1)
            else:
                addends = self.dense(layer.mlp, num_rows, scratch)
            self.add_norm(addends, next_norm_H, scratch)
        if weights.mtp:
            self.exchange.complete(scratch.hidden_TH[:num_rows])  # MTP layers join all rows

    def token_tables(self, tokens: TokenRows, scratch: Scratch) -> None:
        """Angles and cache slots of this step, for each block group that has layers."""
        num_rows = tokens.token_ids_T.shape[0]
        for kind in KINDS:
            if kind in scratch.frequencies:
                self.ops.token_tables(
                    tokens.positions_T, tokens.seqs_T, scratch.frequencies[kind],
                    tokens.sequences[kind].blocks_BM, self.pools[0].block_size,
                    scratch.cos_sin[kind][:num_rows], scratch.slots[kind][:num_rows],
                )  # fmt: skip

    def add_norm(self, addends: Addends, scale_H: torch.Tensor, scratch: Scratch) -> None:
        """Add to the residual stream and norm it."""
        num_rows = addends.deltas_PTH.shape[1]
        hidden_TH, normed_TH = scratch.hidden_TH[:num_rows], scratch.normed_TH[:num_rows]
        self.exchange.add_norm(addends, self.ops, hidden_TH, self._norm(scale_H), normed_TH)

    def attention(self, layer: LayerWeights, pool: PagedKV, tokens: TokenRows, scratch: Scratch) -> Addends:
        """Of the normed rows; this step's keys and values go into the cache first."""
        num_rows, attention, kind = tokens.token_ids_T.shape[0], layer.attention, layer.config.attention
        num_columns = attention.qkvg.shape[0]
        qkvg_TX = self.ops.linear(
            scratch.normed_TH[:num_rows], attention.qkvg, scratch.view("qkvg", num_rows, num_columns),
            workspace=scratch.linear,
        )  # fmt: skip
        attended_TND = self._attend(attention, kind, qkvg_TX, pool, tokens, scratch)
        return self.project(attended_TND.view(num_rows, -1), attention.output, scratch)

    def dense(self, mlp: DenseWeights, num_rows: int, scratch: Scratch) -> Addends:
        """A gated MLP of the normed rows."""
        activations_TW = self.ops.linear(
            scratch.normed_TH[:num_rows], mlp.gate_up,
            scratch.view("activations", num_rows, mlp.down.shape[1]), swiglu=SwiGLU(mlp.limit),
            workspace=scratch.linear,
        )  # fmt: skip
        return self.project(activations_TW, mlp.down, scratch)

    def project(self, x_TK: torch.Tensor, weight: PackedWeight, scratch: Scratch) -> Addends:
        """A product whose columns are split over ranks."""
        return Addends(self.ops.partial_sums(x_TK, weight, scratch.flat.get("partials")))

    def logits(self, normed_TH: torch.Tensor, head: PackedWeight, scratch: Scratch) -> torch.Tensor:
        """[T, V] of this rank's part of the vocabulary, float32."""
        shape = (normed_TH.shape[0], head.shape[0])
        out_TV = scratch.view("logits", *shape)
        if out_TV is None:
            out_TV = torch.empty(shape, dtype=torch.float32, device=normed_TH.device)
        return self.ops.linear(normed_TH, head, out_TV, workspace=scratch.linear)

    def sample(self, logits_TV: torch.Tensor, rows: StepRows, scratch: Scratch) -> Candidates:
        """Each rank's best tokens, [R, T] where there are several ranks."""
        self.ops.sample_tokens(
            logits_TV, rows.sampling, scratch.own, workspace=scratch.sampling,
            first_token=self.weights.first_token,
        )  # fmt: skip
        return self.exchange.gather(scratch.own, scratch.gathered)

    def _attend(
        self,
        attention: AttentionWeights,
        kind: Kind,
        qkvg_TX: torch.Tensor,
        pool: PagedKV,
        tokens: TokenRows,
        scratch: Scratch,
    ) -> torch.Tensor:
        num_rows, text, num_heads = qkvg_TX.shape[0], self.weights.text, attention.num_heads
        q_TND = scratch.view("q", num_rows, num_heads, text.head_dim)
        attended_TND = scratch.view("attended", num_rows, num_heads, text.head_dim)
        assert q_TND is not None and attended_TND is not None, "allocated for decode and prefill"
        self.ops.qkv_prepare(
            qkvg_TX, attention.q_norm_D, attention.k_norm_D, scratch.cos_sin[kind][:num_rows],
            scratch.slots[kind][:num_rows], pool, q_TND, text.rms_eps,
        )  # fmt: skip
        window = text.window if kind == "sliding" else None
        gate_TN, sequences = qkvg_TX[:, -num_heads:], tokens.sequences[kind]
        if tokens.query_starts_B1 is None:
            self.ops.paged_decode(q_TND, pool, sequences, gate_TN, attended_TND, scratch.attention, window)
        else:
            starts_B1 = tokens.query_starts_B1
            self.ops.paged_prefill(q_TND, pool, sequences, starts_B1, gate_TN, attended_TND, window)
        return attended_TND

    def _moe(
        self,
        layer: LayerWeights,
        moe: MoEWeights,
        num_own: int,
        positions_C: torch.Tensor,
        chosen: RouterOutput,
        scratch: Scratch,
        step_1: torch.Tensor,
    ) -> Addends:
        num_rows, text = positions_C.shape[0], self.weights.text
        chosen = RouterOutput(chosen.expert_ids_TK[:num_rows], chosen.weights_TK[:num_rows])
        x_CH = self.exchange.dispatch(scratch.normed_TH[:num_own])
        uniform = None
        if self.uniform_seed is not None:
            uniform = UniformRouting(self.uniform_seed, layer.config.index, step_1)
        self.ops.route(
            x_CH, moe.router_EH, moe.bias_E, chosen, positions_T=positions_C, uniform=uniform,
            workspace=scratch.router,
        )  # fmt: skip
        out_CH = scratch.view("partials", num_rows, text.hidden_size)
        if out_CH is None:
            out_CH = torch.empty_like(x_CH)
        result = self.ops.experts(
            x_CH, chosen, moe, routed_scale=text.routed_scale, num_ranks=self.exchange.num_expert_ranks,
            workspace=scratch.experts, out_TH=out_CH,
        )  # fmt: skip
        if isinstance(result, torch.Tensor):
            addends = Addends(result.unsqueeze(0))
        else:
            num_routed = result.rows_RH.shape[0]
            shared_CH = scratch.experts.rows[num_routed : num_routed + num_rows]
            addends = Addends(shared_CH.unsqueeze(0), result)
        return self.exchange.combine(addends, self.ops)

    def _norm(self, scale_H: torch.Tensor) -> InputNorm:
        return InputNorm(scale_H, self.weights.text.rms_eps)
