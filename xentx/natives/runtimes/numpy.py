"""NumPy: no autodiff and no compiler. The records of its losses have gradients."""

from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from xentx.natives._runtime import Loss, LossAndGradient

Array = np.ndarray[Any, Any]


class NumPyRuntime:
    """ndarray, also with the dtype ml_dtypes.bfloat16."""

    def array(self, values: Array, dtype: str) -> Array:
        if dtype == "bfloat16":
            import ml_dtypes  # noqa: PLC0415 -- only this dtype needs it

            return values.astype(ml_dtypes.bfloat16)
        return values.astype(dtype)

    def values(self, array: Array) -> Array:
        array = np.asarray(array)
        return array.astype(np.result_type(array, np.float64)) if array.dtype.kind != "i" else array

    def dtype(self, array: Array) -> str:
        return np.asarray(array).dtype.name

    def one_hot(self, indices: Array, classes: int, dtype: str, axis: int) -> Array:
        # The same result and errors as np.eye(classes)[indices], without the identity matrix.
        rows = np.zeros((*indices.shape, classes))
        np.put_along_axis(rows, indices[..., None], 1.0, axis=-1)
        return self.array(np.moveaxis(rows, -1, axis), dtype)

    def configured(self, dtype: str) -> AbstractContextManager[Any]:  # noqa: ARG002
        # Overflows are visible in the values, so NumPy's warnings are disabled.
        return np.errstate(all="ignore")

    def differentiate(self, loss: Loss, *, compiled: bool) -> LossAndGradient:  # noqa: ARG002
        return lambda logits, target: (loss(logits, target), None)

    def wait(self, array: Array) -> None:
        pass


RUNTIME = NumPyRuntime()
