"""How each matrix of a checkpoint is stored: found, checked and read, strict both ways.

A matrix has one of the forms (parts that it may have are in brackets):

form     tensors behind the matrix's name
plain    weight
fp8      weight (e4m3), weight_scale (one for a block)
gptq     qweight, qzeros, scales, [g_idx]
packed4  weight_packed, weight_scale, weight_shape, [weight_zero_point]
packed8  weight_packed, weight_scale, weight_shape
int8     weight (int8), weight_scale

The hub's own files have stacks of experts, `moe.gate_proj.weight` [E, N, K], plain or in FP8 with
`weight_scale_inv`: those are no business of this file. Tools that quantize take the stack apart and write
matrices `moe.experts.{e}.gate_proj.*`, all of a stack in one form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil

import torch

from model.errors import CheckpointError
from model.kernels.packed import PackedWeight
from model.quant.layouts import from_gptq, from_int8, from_packed4, from_packed8
from model.quant.scheme import ONE_GROUP, Form, Scheme
from model.stored import StoredTensor, TensorFiles
from model.tensor_table import Entry

PLAIN_DTYPES = ("BF16", "F16", "F32", "F64")
SCALE_DTYPES = ("BF16", "F16", "F32")
FP8_DTYPE = "F8_E4M3"
_NIBBLES_IN_INT32, _BYTES_IN_INT32 = 8, 4
# The part that tells a form, the others that it needs, and those that it may have.
_PARTS: tuple[tuple[Form, tuple[str, ...], tuple[str, ...]], ...] = (
    ("gptq", ("qweight", "qzeros", "scales"), ("g_idx",)),
    ("packed4", ("weight_packed", "weight_scale", "weight_shape"), ("weight_zero_point",)),
    ("int8", ("weight", "weight_scale"), ()),
)
_LINEAR = re.compile(r"(_proj|^lm_head|shared_head\.output)\.weight$")


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix, its form, and which tensors it is made of (`{name}.{part}`)."""

    name: str
    form: Form
    shape: tuple[int, int]
    parts: tuple[str, ...]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names in the files."""
        return tuple(f"{self.name}.{part}" for part in self.parts)


Matrices = Mapping[str, tuple[StoredMatrix, ...]]


def matrix_names(entry: Entry) -> tuple[str, ...]:
    """What tools call the matrix of an entry, or those of its stack; empty for what they leave alone."""
    if entry.group == "vision" or not _LINEAR.search(entry.name):
        return ()
    base = entry.name.removesuffix(".weight")
    if not entry.is_stacked:
        return (base,)
    layer, projection = base.rsplit(".", 1)
    return tuple(f"{layer}.experts.{expert}.{projection}" for expert in range(entry.shape[0]))


def find_matrices(
    stored: Mapping[str, StoredTensor], table: Mapping[str, Entry], scheme: Scheme | None
) -> dict[str, tuple[StoredMatrix, ...]]:
    """By entry, what is not stored under the entry's own name alone. Raises CheckpointError."""
    return {
        entry.name: matrices
        for entry in table.values()
        if (matrices := tuple(_matrices_of(stored, entry, scheme)))
    }


def read_packed(
    files: TensorFiles, matrix: StoredMatrix, scheme: Scheme, device: torch.device | str = "cpu"
) -> PackedWeight:
    """An integer matrix with its own codes, rearranged on the device.

    Raises CheckpointError for values that nobody can take.
    """
    name = matrix.name
    parts = (part for part in matrix.parts if part != "weight_shape")
    tensors = {part: files.read(f"{name}.{part}").to(device) for part in parts}
    if matrix.form == "gptq":
        return from_gptq(
            name, tensors["qweight"], tensors["qzeros"], tensors["scales"], tensors.get("g_idx"),
            is_zero_less_one=scheme.is_zero_less_one,
        )  # fmt: skip
    if matrix.form == "int8":
        return from_int8(tensors["weight"], tensors["weight_scale"])
    assert matrix.form in ("packed4", "packed8"), matrix
    shape = files.read_scalar_list(f"{name}.weight_shape")
    if tuple(shape) != matrix.shape:
        raise CheckpointError(f"{name}.weight_shape: {shape}; config.json asks for {list(matrix.shape)}")
    packed, scale = tensors["weight_packed"], tensors["weight_scale"]
    if matrix.form == "packed8":
        return from_packed8(packed, scale)
    return from_packed4(packed, scale, tensors.get("weight_zero_point"))


def _matrices_of(
    stored: Mapping[str, StoredTensor], entry: Entry, scheme: Scheme | None
) -> Iterator[StoredMatrix]:
    names = matrix_names(entry)
    if not names or (entry.is_stacked and entry.name in stored):
        return
    shape = (entry.shape[-2], entry.shape[-1])
    found = [_matrix(stored, name, shape) for name in names]
    first = next((matrix for matrix in found if matrix is not None), None)
    if first is None or (first.form == "plain" and not entry.is_stacked):
        return  # missing, or stored as the entry says: the caller's to check
    for name, matrix in zip(names, found, strict=True):
        if matrix is None:
            raise CheckpointError(f"{name}: missing; {first.name} of the same stack is there")
        if matrix.form != first.form:
            raise CheckpointError(
                f"{name}: is {matrix.form}, and {first.name} of the same stack {first.form}"
            )
        _check(stored, matrix, scheme)
        yield matrix


def _matrix(stored: Mapping[str, StoredTensor], name: str, shape: tuple[int, int]) -> StoredMatrix | None:
    for form, needed, optional in _PARTS:
        has = [part for part in needed if f"{name}.{part}" in stored]
        if needed[0] not in has or (form == "int8" and len(has) == 1):
            continue
        if len(has) < len(needed):
            lacking = next(part for part in needed if part not in has)
            raise CheckpointError(f"{name}.{lacking}: missing; {name}.{needed[0]} is there")
        parts = (*needed, *(part for part in optional if f"{name}.{part}" in stored))
        return StoredMatrix(name, _form_by_header(form, stored[f"{name}.{needed[0]}"], shape), shape, parts)
    return StoredMatrix(name, "plain", shape, ("weight",)) if f"{name}.weight" in stored else None


def _form_by_header(form: Form, tensor: StoredTensor, shape: tuple[int, int]) -> Form:
    """Forms with the same parts differ in what the first of them is."""
    if form == "int8" and tensor.dtype == FP8_DTYPE:
        return "fp8"
    is_packed8 = form == "packed4" and tensor.shape[-1:] == (shape[1] // _BYTES_IN_INT32,)
    return "packed8" if is_packed8 else form


def _check(stored: Mapping[str, StoredTensor], matrix: StoredMatrix, scheme: Scheme | None) -> None:
    """Every part has the dtype and shape that form, config and scheme ask for."""
    if matrix.form == "plain":
        _expect(stored, f"{matrix.name}.weight", PLAIN_DTYPES, matrix.shape)
        return
    if scheme is None or matrix.form not in scheme.forms:
        known = ", ".join(scheme.forms) if scheme else "no quantization_config"
        raise CheckpointError(f"{matrix.tensors[0]}: stored as {matrix.form}; config.json says {known}")
    if matrix.form == "fp8":
        assert scheme.fp8_block is not None, scheme
        rows, columns = matrix.shape
        blocks = (ceil(rows / scheme.fp8_block[0]), ceil(columns / scheme.fp8_block[1]))
        _expect(stored, f"{matrix.name}.weight", (FP8_DTYPE,), matrix.shape)
        _expect(stored, f"{matrix.name}.weight_scale", SCALE_DTYPES, blocks)
        return
    has_zeros = "weight_zero_point" in matrix.parts
    needs_zeros = matrix.form == "packed4" and not scheme.is_symmetric
    if has_zeros != needs_zeros:
        there = "there" if has_zeros else "missing"
        raise CheckpointError(
            f"{matrix.name}.weight_zero_point: {there}; config.json says symmetric: {not needs_zeros}"
        )
    num_groups = _num_groups(stored, matrix, scheme)
    for part, (dtypes, shape) in _expected(matrix, num_groups).items():
        if part in matrix.parts:
            _expect(stored, f"{matrix.name}.{part}", dtypes, shape)


def _num_groups(stored: Mapping[str, StoredTensor], matrix: StoredMatrix, scheme: Scheme) -> int:
    """Of a row, as the scales have them; their size has to be one that the config names."""
    part, axis = ("scales", 0) if matrix.form == "gptq" else ("weight_scale", -1)
    name, columns = f"{matrix.name}.{part}", matrix.shape[1]
    known = scheme.int4_groups if matrix.form in ("gptq", "packed4") else scheme.int8_groups
    legal = {1 if size == ONE_GROUP else columns // size for size in known if columns % max(size, 1) == 0}
    scale_shape = stored[name].shape
    if len(scale_shape) != 2 or scale_shape[axis] not in legal:
        sizes = ", ".join("a whole row" if size == ONE_GROUP else str(size) for size in known)
        raise CheckpointError(
            f"{name}: shape is {list(scale_shape)}, for {columns} columns in groups of {sizes}"
        )
    return scale_shape[axis]


def _expected(matrix: StoredMatrix, num_groups: int) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Dtypes and shape of each part (model.quant.layouts)."""
    rows, columns = matrix.shape
    words = columns // (_BYTES_IN_INT32 if matrix.form == "packed8" else _NIBBLES_IN_INT32)
    row_words = ceil(rows / _NIBBLES_IN_INT32)
    if matrix.form == "gptq":
        return {
            "qweight": (("I32",), (words, rows)),
            "qzeros": (("I32",), (num_groups, row_words)),
            "scales": (SCALE_DTYPES, (num_groups, rows)),
            "g_idx": (("I32", "I64"), (columns,)),
        }
    return {
        "weight": (("I8",), (rows, columns)),
        "weight_packed": (("I32",), (rows, words)),
        "weight_scale": (SCALE_DTYPES, (rows, num_groups)),
        "weight_shape": (("I32", "I64"), (2,)),
        "weight_zero_point": (("I32",), (row_words, num_groups)),
    }


def _expect(
    stored: Mapping[str, StoredTensor], name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    tensor = stored[name]
    if tensor.dtype not in dtypes:
        raise CheckpointError(f"{name}: dtype {tensor.dtype}; known: {', '.join(dtypes)}")
    if tensor.shape != shape:
        raise CheckpointError(
            f"{name}: shape is {list(tensor.shape)} in {tensor.file.name}; needed {list(shape)}"
        )
