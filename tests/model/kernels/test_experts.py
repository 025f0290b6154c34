from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from model.kernels import experts, experts_plain
from model.kernels.experts import sort_experts
from model.kernels.experts_config import (
    MIN_BLOCK_ROWS,
    ExpertsConfig,
    ExpertsShape,
    SharedExpert,
    TileConfig,
    choose_config,
    dot_tiles,
    gemv_tiles,
    make_workspace,
    max_num_blocks,
    quad_tiles,
    takes_quads,
)
from model.kernels.packed import PackedFormat, PackedWeight, random_packed, tiled

pytestmark = pytest.mark.slow  # interpreted, where there is no GPU

Kind = tuple[PackedFormat, int, bool]  # format, group size, with zero points
KINDS: list[Kind] = [
    ("bf16", 0, False),
    ("fp8", 128, False),
    ("int8", 32, False),
    ("int8", 128, False),
    ("int4", 32, False),
    ("int4", 64, True),
    ("int4", 128, False),
    ("int4", 128, True),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GEMV = TileConfig("gemv", 1, 64, 128, num_warps=4)
GEMV_DOWN = TileConfig("gemv", 1, 128, 128, num_warps=4)
FEW = TileConfig("dot", 8, 64, 128, num_warps=2, num_stages=3, weights_first=True)
MANY = TileConfig("dot", 16, 64, 128, num_warps=4, num_stages=3)
QUADS = TileConfig("dot", 8, 64, 256, num_warps=2, num_stages=3, weights_first=True)
CONFIGS = {
    "gemv": ExpertsConfig(sort=False, gate_up=GEMV, down=GEMV_DOWN),
    "gemv-fused": ExpertsConfig(sort=False, gate_up=GEMV, down=GEMV_DOWN, fuse_combine=True),
    "gemv-dot": ExpertsConfig(sort=False, gate_up=GEMV, down=replace(FEW, block_outputs=128)),
    "pairs": ExpertsConfig(sort=False, gate_up=FEW, down=replace(FEW, block_outputs=128)),
    "few": ExpertsConfig(sort=True, gate_up=FEW, down=replace(FEW, block_outputs=128)),
    "quads": ExpertsConfig(sort=True, gate_up=QUADS, down=replace(QUADS, block_outputs=128)),
    "many": ExpertsConfig(sort=True, gate_up=MANY, down=replace(MANY, block_outputs=128)),
    "groups": ExpertsConfig(
        sort=True, gate_up=replace(MANY, block_outputs=32, group_blocks=2), down=replace(MANY, group_blocks=3)
    ),
}
FP8_INPUTS = ExpertsConfig(
    sort=True,
    gate_up=TileConfig("dot", 64, 32, 128, num_warps=4, num_stages=3),
    down=TileConfig("dot", 64, 64, 128, num_warps=4, num_stages=3),
    quantize_inputs=True,
)
# Sizes that fit the blocks, as the real ones do, and sizes that fit nothing.
EVEN = ExpertsShape(num_experts=3, experts_per_token=2, hidden_size=256, width=128)
ODD = ExpertsShape(num_experts=3, experts_per_token=3, hidden_size=160, width=96)


@dataclass(frozen=True)
class Case:
    """Operands of one call, and the memory it works in."""

    shape: ExpertsShape
    gate_up: PackedWeight
    down: PackedWeight
    x: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    shared: SharedExpert | None
    first_expert: int


def weight(shape: tuple[int, ...], kind: Kind, generator: torch.Generator) -> PackedWeight:
    weight_format, group_size, with_zeros = kind
    packed = random_packed(
        shape, weight_format, group_size, generator, generator.device, with_zeros=with_zeros
    )
    return tiled(packed)


def make_case(
    shape: ExpertsShape,
    num_rows: int,
    kind: Kind,
    generator: torch.Generator,
    *,
    first_expert: int = 2,
    num_experts: int = 6,
    shared: Kind | None = None,
) -> Case:
    """Random operands; ids are of `num_experts` over all ranks."""
    device = generator.device
    hidden, width = shape.hidden_size, shape.width

    def mlp(lead: tuple[int, ...], wide: int, of: Kind) -> tuple[PackedWeight, ...]:
        return weight((*lead, 2 * wide, hidden), of, generator), weight((*lead, hidden, wide), of, generator)

    gate_up, down = mlp((shape.num_experts,), width, kind)
    x = torch.randn(num_rows, hidden, generator=generator, device=device).bfloat16()
    scores = torch.rand(num_rows, num_experts, generator=generator, device=device)
    ids = scores.argsort(-1)[:, : shape.experts_per_token].sort(-1).values.int()
    weights = torch.rand(ids.shape, generator=generator, device=device)
    expert = None if shared is None else SharedExpert(*mlp((), width // 2, shared), limit=0.5)
    return Case(shape, gate_up, down, x, ids.contiguous(), weights, expert, first_expert)


def run(
    case: Case,
    config: ExpertsConfig | None,
    *,
    limit: float | None = 0.7,
    num_tokens: torch.Tensor | int | None = None,
    rows_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernels' result in poisoned memory, and the twin's."""
    workspace = make_workspace(
        case.x.shape[0] + 3, case.shape, case.x.device, shared_width=case.shape.width // 2,
        rows_dtype=rows_dtype, quantize_inputs=config is not None and config.quantize_inputs,
    )  # fmt: skip
    workspace.activations.fill_(torch.nan)
    workspace.rows.fill_(torch.nan)
    operands = (case.x, case.ids, case.weights, case.gate_up, case.down)
    options = {
        "limit": limit, "first_expert": case.first_expert, "num_tokens": num_tokens,
        "shared": case.shared, "routed_scale": 3.0, "config": config, "workspace": workspace,
    }  # fmt: skip
    out = torch.full((case.x.shape[0], case.shape.hidden_size), torch.nan, device=case.x.device)
    result = experts.experts_forward(*operands, out_TH=out, **options)
    assert result is out
    return result, experts_plain.experts_forward(*operands, **options)


def assert_close(result: torch.Tensor, expected: torch.Tensor, error: float = 5e-3) -> None:
    assert bool(result.isfinite().all())
    assert float((result - expected).norm()) <= error * float(expected.norm())
    assert bool((result[(expected == 0).all(-1)] == 0).all())


def legal(shape: ExpertsShape, kind: Kind) -> bool:
    """Groups of ints divide the columns."""
    return kind[0] in ("bf16", "fp8") or shape.hidden_size % kind[1] == shape.width % kind[1] == 0


@pytest.mark.parametrize("name", ["gemv", "pairs", "few", "quads", "many", "groups"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_way_to_multiply_is_the_same_product(kind: Kind, name: str, generator: torch.Generator) -> None:
    assert_close(*run(make_case(EVEN, 2, kind, generator), CONFIGS[name]))


@pytest.mark.parametrize("name", ["gemv", "gemv-fused", "few", "many", "groups"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if legal(ODD, kind)], ids=str)
def test_sizes_that_no_block_divides(kind: Kind, name: str, generator: torch.Generator) -> None:
    assert_close(*run(make_case(ODD, 3, kind, generator), CONFIGS[name]))


@pytest.mark.parametrize("zeros", [False, True], ids=["no zeros", "zeros"])
@pytest.mark.parametrize("group_size", [64, 128])
def test_quads_of_columns_that_no_block_divides(
    group_size: int, zeros: bool, generator: torch.Generator
) -> None:
    shape = ExpertsShape(3, 2, hidden_size=5 * group_size, width=3 * group_size)
    case = make_case(shape, 3, ("int4", group_size, zeros), generator, shared=("int4", 32, True))
    config = CONFIGS["quads"]
    assert takes_quads(config, 3, case.gate_up, case.down)
    assert_close(*run(case, config))


@pytest.mark.parametrize(("block_rows", "num_rows"), [(8, 21), (16, 40), (32, 40)])
def test_quads_of_several_blocks_of_one_expert(
    block_rows: int, num_rows: int, generator: torch.Generator
) -> None:
    tile = replace(QUADS, block_rows=block_rows)
    case = make_case(EVEN, num_rows, ("int4", 64, True), generator, num_experts=5)
    case.ids[: num_rows // 2].copy_(torch.tensor([1, 3]))
    assert_close(*run(case, ExpertsConfig(sort=True, gate_up=tile, down=tile)))


def test_quads_keep_small_sums_beside_large_ones(generator: torch.Generator) -> None:
    """Inputs with a mean: what is taken off for 128 + zero is some hundred times what is left."""
    case = make_case(EVEN, 6, ("int4", 128, True), generator)
    case.x.add_(3)
    assert_close(*run(case, CONFIGS["quads"]))


@pytest.mark.parametrize("group_size", [64, 128])
def test_inputs_are_permuted_within_groups_and_padding_is_left(
    group_size: int, generator: torch.Generator
) -> None:
    case = make_case(ExpertsShape(3, 2, 1280, 128), 5, ("int4", group_size, False), generator)
    workspace = make_workspace(5, case.shape, DEVICE)
    workspace.permuted_inputs.fill_(7)
    sort_experts(case.ids, 0, 4, case.shape, 8, workspace, (case.x, group_size))
    expected = case.x.unflatten(1, (-1, group_size // 4, 4)).mT.flatten(1)
    assert torch.equal(workspace.permuted_inputs[:4], expected[:4])
    assert bool((workspace.permuted_inputs[4] == 7).all())


@pytest.mark.parametrize("name", ["gemv-fused", "pairs", "few"])
@pytest.mark.parametrize("routing", ["foreign", "one expert", "padding", "nothing real"])
def test_routing_may_be_anything(routing: str, name: str, generator: torch.Generator) -> None:
    case = make_case(
        EVEN, 9 if CONFIGS[name].sort else 3, ("fp8", 128, False), generator, shared=("bf16", 0, False)
    )
    if routing == "foreign":
        case.ids.copy_(torch.tensor([0, 5]))
    elif routing == "one expert":
        case.ids.copy_(torch.tensor([0, 3]))
    else:
        case.ids[2 if routing == "padding" else 0 :] = -1
    assert_close(*run(case, CONFIGS[name]))


@pytest.mark.parametrize(
    ("name", "on_device"),
    [
        ("gemv", True),
        ("gemv-fused", False),
        ("gemv-fused", True),
        ("few", True),
        ("quads", True),
        ("many", False),
    ],
)
def test_rows_from_num_tokens_on_are_padding(name: str, on_device: bool, generator: torch.Generator) -> None:
    case = make_case(EVEN, 4, ("int4", 128, False), generator, shared=("int8", 64, False))
    num_tokens = torch.tensor([3], dtype=torch.int32, device=case.x.device) if on_device else 3
    result, expected = run(case, CONFIGS[name], num_tokens=num_tokens)
    assert_close(result, expected)
    assert float(result[3].abs().max()) == 0 < float(result[2].abs().min())


@pytest.mark.parametrize("name", ["gemv", "gemv-fused", "few", "many", "groups"])
@pytest.mark.parametrize("kind", [("bf16", 0, False), ("int4", 32, True)], ids=str)
def test_the_shared_expert_has_its_own_format(kind: Kind, name: str, generator: torch.Generator) -> None:
    assert_close(*run(make_case(EVEN, 2, ("int8", 128, False), generator, shared=kind), CONFIGS[name]))


@pytest.mark.parametrize("shape", [EVEN, ODD], ids=["even", "odd"])
def test_rows_in_fp8_as_the_checkpoint_was_made_for(shape: ExpertsShape, generator: torch.Generator) -> None:
    case = make_case(shape, 5, ("fp8", 128, False), generator, shared=("bf16", 0, False))
    result, expected = run(case, FP8_INPUTS)
    assert_close(result, expected, error=2e-2)
    _, exact = run(case, CONFIGS["many"])
    assert 2e-2 < float((expected - exact).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize(
    ("kind", "block_rows"),
    [(("bf16", 0, False), 128), (("int8", 64, False), 64), (("int4", 64, True), 64)],
    ids=str,
)
def test_blocks_of_prefill(kind: Kind, block_rows: int, generator: torch.Generator) -> None:
    tile = TileConfig("dot", block_rows, 64, 128, num_warps=4, num_stages=3)
    config = ExpertsConfig(sort=True, gate_up=tile, down=replace(tile, block_outputs=128))
    case = make_case(EVEN, 100, kind, generator, num_experts=5)
    assert_close(*run(case, config, rows_dtype=torch.bfloat16), error=1e-2)


def test_no_limit_and_no_tokens(generator: torch.Generator) -> None:
    case = make_case(EVEN, 2, ("bf16", 0, False), generator)
    result, expected = run(case, CONFIGS["gemv"], limit=None)
    assert_close(result, expected)
    assert not torch.allclose(expected, run(case, CONFIGS["gemv"], limit=0.7)[1])
    none = replace(case, x=case.x[:0], ids=case.ids[:0], weights=case.weights[:0])
    assert run(none, None)[0].shape == (0, EVEN.hidden_size)


@pytest.mark.parametrize("name", ["gemv", "few"])
def test_rows_may_be_left_to_the_caller(name: str, generator: torch.Generator) -> None:
    case = make_case(EVEN, 3, ("fp8", 128, False), generator, shared=("fp8", 128, False))
    workspace = make_workspace(4, case.shape, case.x.device, shared_width=64)
    operands = (case.x, case.ids, case.gate_up, case.down)
    options = {
        "limit": 0.7, "first_expert": case.first_expert, "workspace": workspace, "shared": case.shared,
        "config": CONFIGS[name],
    }  # fmt: skip
    rows = experts.experts_rows(*operands, **options)
    expected = experts_plain.experts_rows(*operands, **options)
    assert rows.shape == expected.shape == (3 * 2 + 3, EVEN.hidden_size)
    is_written = (expected != 0).any(-1)
    assert_close(rows[is_written], expected[is_written])
    is_local = (case.ids >= case.first_expert) & (case.ids < case.first_expert + EVEN.num_experts)
    weights = torch.where(is_local, case.weights, 0)[..., None]
    _, total = run(case, CONFIGS[name])
    assert_close(3 * (expected[:6].view(3, 2, -1) * weights).sum(1) + expected[6:], total)


@pytest.mark.parametrize("name", ["gemv-fused", "few"])
def test_two_runs_give_the_same_bits(name: str, generator: torch.Generator) -> None:
    case = make_case(EVEN, 2, ("fp8", 128, False), generator, shared=("bf16", 0, False))
    assert torch.equal(run(case, CONFIGS[name])[0], run(case, CONFIGS[name])[0])


@pytest.mark.parametrize("num_rows", [1, 12, 60])
@pytest.mark.parametrize("kind", [("bf16", 0, False), ("fp8", 128, False), ("int4", 128, False)], ids=str)
def test_the_chosen_config_computes_it(kind: Kind, num_rows: int, generator: torch.Generator) -> None:
    case = make_case(EVEN, num_rows, kind, generator, shared=("fp8", 128, False))
    config = choose_config(num_rows, case.shape, kind[0], quantize_inputs=True)
    assert_close(*run(case, config), error=2e-2 if config.quantize_inputs else 5e-3)


@pytest.mark.parametrize("num_ranks", [1, 2, 8])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_chosen_configs_fit_their_workspace(kind: Kind, num_ranks: int) -> None:
    shape = ExpertsShape(288 // num_ranks, 8, hidden_size=4096, width=1280, num_ranks=num_ranks)
    assert choose_config(64, shape, kind[0]).gate_up.block_rows == 8
    for num_rows in (1, 2, 4, 5, 8, 16, 40, 64, 512, 2048, 8192):
        config = choose_config(num_rows, shape, kind[0])
        for tile in (config.gate_up, config.down):
            assert tile.kind == "gemv" or tile.block_rows >= MIN_BLOCK_ROWS
            assert shape.hidden_size % tile.block_outputs == shape.width % tile.block_outputs == 0


@pytest.mark.parametrize("gated", [False, True])
def test_the_sweep_tries_only_what_can_run(gated: bool) -> None:
    for block_rows in (8, 16, 64, 128):
        for tile in dot_tiles(block_rows, gated=gated):
            config = ExpertsConfig(sort=True, gate_up=tile, down=tile)
            assert config.gate_up.block_rows == block_rows
    for tile in quad_tiles(8, gated=gated):
        assert (2 if gated else 1) * tile.block_outputs >= 16 * tile.num_warps
    assert all(tile.kind == "gemv" for tile in gemv_tiles(gated=gated, weight_format="fp8"))


@given(
    num_rows=st.integers(1, 40), num_chosen=st.integers(1, 4), num_experts=st.integers(1, 40),
    first_expert=st.integers(0, 30), block_rows=st.sampled_from([8, 16]), seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=8, deadline=None)
def test_pairs_are_sorted_by_expert_and_token(
    num_rows: int, num_chosen: int, num_experts: int, first_expert: int, block_rows: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand(num_rows, 50, generator=generator).argsort(-1)[:, :num_chosen].sort(-1).values.int()
    ids[torch.rand(num_rows, generator=generator) < 0.2] = -1
    shape = ExpertsShape(num_experts, num_chosen, 32, 32)
    workspace = make_workspace(num_rows, shape, DEVICE)
    sort_experts(ids.to(DEVICE), first_expert, num_rows, shape, block_rows, workspace)
    flat = ids.flatten().tolist()
    blocks = []
    pairs = []
    for expert in range(num_experts):
        own = [pair for pair, of in enumerate(flat) if of == first_expert + expert]
        for start in range(0, len(own), block_rows):
            first = len(pairs) + start
            blocks.append((expert, first, len(pairs) + min(start + block_rows, len(own))))
        pairs += own
    count = int(workspace.num_blocks)
    assert workspace.sorted_pairs[: len(pairs)].tolist() == pairs
    columns = (workspace.block_experts, workspace.block_starts, workspace.block_ends)
    assert list(zip(*(column[:count].tolist() for column in columns), strict=True)) == blocks
    assert count <= max_num_blocks(ids.numel(), num_experts, block_rows)
