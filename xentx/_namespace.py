"""The only module that imports array-api-compat."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import array_api_compat

__all__ = ["array_namespace", "device", "extended", "is_array_api_obj", "is_lazy_array"]

array_namespace = array_api_compat.array_namespace
device = array_api_compat.device
is_array_api_obj = array_api_compat.is_array_api_obj
is_lazy_array = array_api_compat.is_lazy_array


def extended(array: Any, *functions: Callable[..., Any]) -> Any:
    """Return the namespace of an array, with some functions replaced or added."""
    own = vars(array_api_compat.array_namespace(array))
    return SimpleNamespace(**own | {function.__name__: function for function in functions})
