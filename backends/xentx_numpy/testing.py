"""Routes of `xentx.testing` for NumPy and for array-api-strict."""

import importlib
from typing import Any

import numpy as np

from xentx.testing import Route


class NumPy(Route):
    """Read-only NumPy arrays."""

    name = framework = "numpy"

    def array(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = value.copy(order="A")
            value.flags.writeable = False
        return value


class Strict(Route):
    """array-api-strict, which represents all libraries that follow the standard."""

    name = "strict"
    framework = "numpy"
    dtypes = ("float32", "float64")

    def __init__(self) -> None:
        """Import the library, which the other tests don't need."""
        self.xp = importlib.import_module("array_api_strict")

    def array(self, value: Any) -> Any:
        return self.xp.asarray(value.copy())


ROUTES = (NumPy, Strict)
