"""NumPy's implementation of `xentx._backend.Backend`."""

from typing import Any

import numpy as np

from xentx._backend import ArrayAPIBackend, Operation, plain
from xentx._core._spec import LossSpec
from xentx_numpy import _autodiff

Array = np.ndarray[Any, Any]


class NumPyBackend(ArrayAPIBackend):
    """ndarray, its subclasses and NumPy's scalars, also with the dtype ml_dtypes.bfloat16."""

    name = "numpy"

    def owns(self, value: object) -> bool:
        if type(value) is np.ndarray:
            return True
        # These two define other meanings of operators that the core uses.
        redefined = isinstance(value, np.ma.MaskedArray | np.matrix)
        return isinstance(value, np.ndarray | np.generic) and not redefined

    def array(self, value: Any, like: Array) -> Array:  # noqa: ARG002
        return plain(value)

    def namespace(self, array: Array) -> Any:  # noqa: ARG002
        return _autodiff.NAMESPACE

    def dtype_name(self, array: Array) -> str:
        return array.dtype.name

    def is_concrete(self, array: Array) -> bool:  # noqa: ARG002
        return True

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return array

    def has_float64(self, array: Array) -> bool:  # noqa: ARG002
        return True

    def attach(
        self, operation: Operation, spec: LossSpec, arrays: tuple[Array | None, ...]
    ) -> Array:
        return _autodiff.attach(operation, spec, arrays)


BACKEND = NumPyBackend()
