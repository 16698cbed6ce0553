"""The one place that imports array-api-compat, so that its quirks have one place to be met."""

from typing import Any

import array_api_compat
import numpy as np

__all__ = ["array_namespace", "device", "is_array_api_obj", "is_lazy_array", "numpy_namespace"]

array_namespace = array_api_compat.array_namespace
device = array_api_compat.device
is_array_api_obj = array_api_compat.is_array_api_obj
is_lazy_array = array_api_compat.is_lazy_array


def numpy_namespace() -> Any:
    """Array API namespace of NumPy."""
    return array_api_compat.array_namespace(np.empty(0))
