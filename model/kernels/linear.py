"""Linear without bias: the one place that says which library multiplies.

Shapes: M rows, K in, N out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows

# Below this oneDNN's set-up costs more than it saves (model/README.md, Decisions).
MIN_ROWS_FOR_ONEDNN = 16
# oneDNN compiles a kernel per shape, 0.35 ms each. Expert batches have any size: round them up.
FEW_ROWS, FEW_ROWS_STEP, MANY_ROWS_STEP = 64, 8, 64


def linear(x_MK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    """x @ weight.T. On CPU in float32, many rows go to oneDNN: torch would take MKL, half as fast on AMD."""
    num_rows = x_MK.shape[0]
    use_onednn = (
        x_MK.device.type == "cpu"  # first: a compiled graph on a GPU cannot ask what follows
        and num_rows >= MIN_ROWS_FOR_ONEDNN
        and x_MK.dtype == torch.float32
        and torch.is_inference_mode_enabled()  # the operator has no gradient
        and torch.backends.mkldnn.is_available()  # x86; not on every ARM build
    )
    if not use_onednn:
        return F.linear(x_MK, weight_NK)
    step = FEW_ROWS_STEP if num_rows <= FEW_ROWS else MANY_ROWS_STEP
    num_missing = -num_rows % step
    padded_MK = F.pad(x_MK, (0, 0, 0, num_missing)) if num_missing else x_MK
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(padded_MK, weight_NK, None, "none", [], "")  # noqa: SLF001
    return result[:num_rows] if num_missing else result
