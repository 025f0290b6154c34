"""The router against its twin, and both against the network's own choice, ties included.

Shapes: T tokens, H hidden, E experts, K experts per token.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import tests.model.kernels.interpreter  # noqa: F401 - repairs it
from model.kernels import router_plain
from model.kernels.linear_config import Workspace
from model.kernels.router import choose, route
from model.kernels.router_config import (
    RouterConfig,
    RouterOutput,
    UniformRouting,
    choose_config,
    workspace_sizes,
)
from model.net.moe import choose_experts

pytestmark = pytest.mark.slow  # interpreted, where there is no GPU


def poisoned(num_tokens: int, num_chosen: int, device: torch.device) -> RouterOutput:
    out = RouterOutput.allocate(num_tokens, num_chosen, device)
    out.expert_ids_TK.fill_(-7)
    out.weights_TK.fill_(torch.nan)
    return out


def in_order_of_ids(ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ids_TK, order_TK = ids_TK.sort(dim=1)
    return ids_TK, weights_TK.gather(1, order_TK)


@pytest.mark.parametrize(("num_experts", "num_chosen"), [(288, 8), (5, 5), (16, 3), (1, 1)])
def test_the_choice_is_that_of_the_network(
    num_experts: int, num_chosen: int, device: torch.device, generator: torch.Generator
) -> None:
    """Coarse logits and biases: most rows have ties at the border, some sigmoids are 1 exactly."""
    logits_TE = torch.randint(-8, 60, (12, num_experts), generator=generator, device=device) / 2
    bias_E = torch.randint(-2, 3, (num_experts,), generator=generator, device=device) / 8
    expected = in_order_of_ids(*choose_experts(logits_TE, bias_E, num_chosen))
    for chooser in (choose, router_plain.choose):
        out = poisoned(12, num_chosen, device)
        chooser(logits_TE, bias_E, out)
        assert out.expert_ids_TK.tolist() == expected[0].tolist()
        torch.testing.assert_close(out.weights_TK, expected[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("num_tokens", "hidden", "config"),
    [
        (1, 200, RouterConfig(num_splits=1, num_warps=1, num_chunks=8)),
        (3, 202, RouterConfig(num_splits=2, num_warps=1, num_chunks=8, num_rows=4)),
        (4, 256, None),
        (5, 200, RouterConfig(num_splits=2, block_t=16)),
        (40, 256, None),
        (70, 130, RouterConfig(num_splits=3, block_t=32, block_e=16)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_logits_and_choice(
    num_tokens: int, hidden: int, config: RouterConfig | None, dtype: torch.dtype, device: torch.device,
    generator: torch.Generator,
) -> None:  # fmt: skip
    num_experts, num_chosen = 36, 4
    x_TH = torch.randn(num_tokens, hidden, generator=generator, device=device).to(dtype)
    weight_EH = torch.randn(num_experts, hidden, generator=generator, device=device) * hidden**-0.5
    bias_E = torch.randn(num_experts, generator=generator, device=device) / 4
    positions_T = torch.arange(num_tokens, device=device) % 5 - 1  # some rows are padding
    config = config or choose_config(num_tokens, num_experts, hidden)
    space = Workspace.allocate(*workspace_sizes(config, num_tokens, num_experts), device)
    space.partials.fill_(torch.nan)
    out, expected = (poisoned(num_tokens, num_chosen, device) for _ in range(2))
    route(x_TH, weight_EH, bias_E, out, positions_T=positions_T, workspace=space, config=config)
    router_plain.route(x_TH, weight_EH, bias_E, expected, positions_T=positions_T)
    assert out.expert_ids_TK.tolist() == expected.expert_ids_TK.tolist()
    assert (out.expert_ids_TK[positions_T < 0] == -1).all()
    torch.testing.assert_close(out.weights_TK, expected.weights_TK, rtol=1e-4, atol=1e-6)
    assert not space.counters.any()


@pytest.mark.parametrize("num_tokens", [2, 9])
def test_uniform_routing_depends_on_counters_alone(
    num_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    bias_E = torch.zeros(288, device=device)
    seen = []
    for layer, step in ((3, 0), (3, 1), (4, 0)):
        uniform = UniformRouting(11, layer, torch.tensor([step], device=device))
        logits_TE = torch.randn(num_tokens, 288, generator=generator, device=device)
        out, expected = (poisoned(num_tokens, 8, device) for _ in range(2))
        choose(logits_TE, bias_E, out, uniform=uniform)
        router_plain.choose(logits_TE, bias_E, expected, uniform=uniform)
        assert out.expert_ids_TK.tolist() == expected.expert_ids_TK.tolist()
        torch.testing.assert_close(out.weights_TK, expected.weights_TK, rtol=1e-5, atol=0)
        assert (out.expert_ids_TK.diff(dim=1) > 0).all(), "distinct, ascending"
        seen.append(out.expert_ids_TK.tolist())
    assert seen[0] != seen[1]
    assert seen[0] != seen[2]


def test_uniform_routing_is_uniform(device: torch.device) -> None:
    uniform = UniformRouting(0, 0, torch.zeros(1, dtype=torch.int64, device=device))
    out = poisoned(4000, 8, device)
    router_plain.choose(
        torch.zeros(4000, 288, device=device), torch.zeros(288, device=device), out, uniform=uniform
    )
    counts_E = torch.bincount(out.expert_ids_TK.flatten().long(), minlength=288).float()
    expected = 4000 * 8 / 288
    assert ((counts_E - expected).square() / expected).sum() < 288 + 4 * (2 * 288) ** 0.5  # chi-squared
