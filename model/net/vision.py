"""The vision tower: patches -> ViT -> two stride-2 convolutions -> projector.

Shapes: B views of one size, P = (side / patch)^2 patches, C width, N heads, D = C / N, E = D / 2,
M rows of embedding a view gives (728 px: 169, 504 px: 81), H hidden of the decoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from model.config import VisionConfig
from model.net.layers import empty_parameter

if TYPE_CHECKING:
    from model.text.images import TiledImage

Turns = tuple[torch.Tensor, torch.Tensor]  # cos and sin [P, E], one angle for a pair of a head's values

VIEWS_AT_ONCE = 8  # bounds the memory of an image of 100 tiles; larger batches were not faster on CPU


class Affine(nn.Module):
    """Weight and bias of a linear layer, layer norm or convolution."""

    def __init__(self, weight: tuple[int, ...], num_bias: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = empty_parameter(*weight, dtype=dtype)
        self.bias = empty_parameter(num_bias, dtype=dtype)


class VisionBlock(nn.Module):
    """Pre-norm ViT block with layer scale (Step3p7VisionEncoderLayer)."""

    def __init__(self, vision: VisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        width, mlp = vision.width, vision.mlp_width
        self.norm1, self.norm2 = Affine((width,), width, dtype), Affine((width,), width, dtype)
        self.in_proj = Affine((3 * width, width), 3 * width, dtype)
        self.out_proj = Affine((width, width), width, dtype)
        self.fc1, self.fc2 = Affine((mlp, width), mlp, dtype), Affine((width, mlp), width, dtype)
        self.scale1, self.scale2 = empty_parameter(width, dtype=dtype), empty_parameter(width, dtype=dtype)
        self.num_heads, self.eps = vision.num_heads, vision.layer_norm_eps

    def forward(self, x_BPC: torch.Tensor, turns: Turns) -> torch.Tensor:
        """[B, P, C] -> [B, P, C]."""
        x_BPC = x_BPC + self.scale1 * self._attend(_layer_norm(x_BPC, self.norm1, self.eps), turns)
        hidden = _linear(_layer_norm(x_BPC, self.norm2, self.eps), self.fc1)
        hidden = hidden * torch.sigmoid(1.702 * hidden)  # quick_gelu
        return x_BPC + self.scale2 * _linear(hidden, self.fc2)

    def _attend(self, x_BPC: torch.Tensor, turns: Turns) -> torch.Tensor:
        num_views, num_patches, width = x_BPC.shape
        qkv = _linear(x_BPC, self.in_proj).view(num_views, num_patches, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out_BNPD = F.scaled_dot_product_attention(_turn(q, *turns), _turn(k, *turns), v)
        return _linear(out_BNPD.transpose(1, 2).reshape(num_views, num_patches, width), self.out_proj)


class VisionTower(nn.Module):
    """Pixels of equally sized views -> embedding rows for the decoder."""

    def __init__(self, vision: VisionConfig, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        width, patch = vision.width, vision.patch_size
        self.vision = vision
        self.patch_weight = empty_parameter(width, 3, patch, patch, dtype=dtype)
        num_positions = (vision.image_size // patch) ** 2
        self.positions = empty_parameter(num_positions, width, dtype=dtype)
        self.norm = Affine((width,), width, dtype)
        self.blocks = nn.ModuleList(VisionBlock(vision, dtype) for _ in range(vision.num_layers))
        self.down1 = Affine((2 * width, width, 3, 3), 2 * width, dtype)
        self.down2 = Affine((4 * width, 2 * width, 3, 3), 4 * width, dtype)
        self.projector = empty_parameter(hidden, 4 * width, dtype=dtype)
        self.projector_bias = empty_parameter(hidden, dtype=dtype) if vision.projector_bias else None

    def forward(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        """[B, 3, side, side] -> [B, M, H]. Training comes here; serving calls `encode`."""
        patches = F.conv2d(
            pixels_B3SS.to(self.patch_weight.dtype), self.patch_weight, stride=self.vision.patch_size
        )
        grid = patches.shape[-1]
        x_BPC = patches.flatten(2).transpose(1, 2) + self._position_table(grid)
        x_BPC = _layer_norm(x_BPC, self.norm, self.vision.layer_norm_eps)
        turns = _axial_turns(self.vision, grid, x_BPC.device)
        for block in self.blocks:
            x_BPC = block(x_BPC, turns)
        x_BCGG = x_BPC.transpose(1, 2).unflatten(2, (grid, grid))
        for down in (self.down1, self.down2):
            x_BCGG = F.conv2d(x_BCGG, down.weight, down.bias, stride=2, padding=1)
        return F.linear(x_BCGG.flatten(2).transpose(1, 2), self.projector, self.projector_bias)

    @torch.inference_mode()
    def encode(self, image: TiledImage) -> torch.Tensor:
        """All rows of one image [num_rows, H]: its tiles in order, then the global view."""
        views = [*image.tile_pixels.split(VIEWS_AT_ONCE), image.global_pixels[None]]
        device = self.patch_weight.device
        return torch.cat([self(view.to(device)).flatten(0, 1) for view in views if view.shape[0]])

    def _position_table(self, grid: int) -> torch.Tensor:
        """Learned positions [P, C], resized bilinearly where the view is not the global one."""
        full = self.vision.image_size // self.vision.patch_size
        if grid == full:
            return self.positions
        table_1CGG = self.positions.T.reshape(1, -1, full, full)
        resized = F.interpolate(table_1CGG, size=(grid, grid), mode="bilinear", align_corners=False)
        return resized.flatten(2)[0].T


def _axial_turns(vision: VisionConfig, grid: int, device: torch.device) -> Turns:
    """A head's first half turns with the column, the second with the row."""
    quarter = vision.width // vision.num_heads // 4
    steps = torch.arange(quarter, dtype=torch.float32, device=device) / quarter
    frequencies = 1.0 / (vision.rope_theta**steps)
    along = torch.arange(grid, dtype=torch.float32, device=device)[:, None] * frequencies
    columns, rows = along.repeat(grid, 1), along.repeat_interleave(grid, 0)
    angles_PE = torch.cat((columns, rows), dim=-1)
    return angles_PE.cos(), angles_PE.sin()


def _turn(x_BNPD: torch.Tensor, cos_PE: torch.Tensor, sin_PE: torch.Tensor) -> torch.Tensor:
    """Rotate interleaved pairs (x0, x1), (x2, x3), ... in float32; real arithmetic, for compilers to fuse."""
    even_BNPE, odd_BNPE = x_BNPD.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = (even_BNPE * cos_PE - odd_BNPE * sin_PE, odd_BNPE * cos_PE + even_BNPE * sin_PE)
    return torch.stack(turned, dim=-1).flatten(-2).type_as(x_BNPD)


def _linear(x: torch.Tensor, affine: Affine) -> torch.Tensor:
    return F.linear(x, affine.weight, affine.bias)


def _layer_norm(x: torch.Tensor, affine: Affine, eps: float) -> torch.Tensor:
    return F.layer_norm(x, affine.weight.shape, affine.weight, affine.bias, eps)
