"""Repairs of Triton 3.6's interpreter; importing this file makes them. On a GPU nothing uses them.

- Bounds of loops are int() of arrays of one element, an error in NumPy 2.4.
- bfloat16 operands of `tl.dot` are multiplied as the integers that hold them.
- Conversions to bfloat16 and float8_e4m3fn cut off instead of rounding to the nearest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

TORCH_TYPES = {
    tl.float32: torch.float32,
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
}
convert_float = interpreter._convert_float
patch_lang_tensor = interpreter._patch_lang_tensor
create_dot = interpreter.InterpreterBuilder.create_dot


def rounded(data: Any, source: tl.dtype, target: tl.dtype, rounding: Any) -> Any:
    """`_convert_float`: bits in, bits out, rounded to the nearest by torch where it has the types."""
    if source not in TORCH_TYPES or target not in TORCH_TYPES:
        return convert_float(data, source, target, rounding)
    raw = torch.from_numpy(np.ascontiguousarray(data).view(np.uint8).copy())
    values = raw.reshape(-1).view(TORCH_TYPES[source]).to(TORCH_TYPES[target])
    bits = values.view(torch.uint8).numpy().view(f"uint{target.primitive_bitwidth}")
    return bits.reshape(data.shape)


def patch_with_index(tensor: Any, scope: Any) -> None:
    patch_lang_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def dot_of_floats(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
    def widened(handle: Any) -> Any:
        return self.cast_impl(handle, tl.float32) if handle.dtype.scalar == tl.bfloat16 else handle

    return create_dot(self, widened(a), widened(b), d, *options)


interpreter._convert_float = rounded
interpreter._patch_lang_tensor = patch_with_index
interpreter.InterpreterBuilder.create_dot = dot_of_floats
