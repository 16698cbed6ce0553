"""NumPy has no autodiff. `xentx.value_and_grad` returns gradients."""

from dataclasses import replace

import numpy as np

from xentx._backend import Operation
from xentx._core._spec import LossSpec
from xentx._namespace import extended
from xentx._types import Array


def placed_along_axis(
    like: Array, indices: Array, values: Array, *, axis: int, others: Array | None
) -> Array:
    """Put values along an axis of zeros, or of `others`, in the shape of `like`."""
    array = np.zeros(like.shape, values.dtype)
    if others is not None:
        array[...] = others
    np.put_along_axis(array, indices, values, axis)
    return array


def matmul(left: Array, right: Array) -> Array:
    """Multiply matrices by BLAS, for all strides.

    NumPy before 2.3 uses its own loop if no axis is contiguous. It is slower and rounds
    differently.
    """
    contiguous = (
        x if min(x.strides) == x.itemsize else np.ascontiguousarray(x) for x in (left, right)
    )
    return np.matmul(*contiguous)


NAMESPACE = extended(np.empty(0), placed_along_axis, matmul)


def attach(operation: Operation, spec: LossSpec, arrays: tuple[Array | None, ...]) -> Array:
    """Evaluate the operation."""
    return operation.forward(NAMESPACE, replace(spec, final=True), *arrays)[0]
